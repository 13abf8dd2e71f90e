"""The normalising flow: inverse, determinant, and density, on flows with drawn weights."""

import math

import pytest
import torch

from fl.models import flow


def drawn(features: int, couplings: int = 8, spread: float = 0.3) -> tuple[dict[str, torch.Tensor], torch.Generator]:
    """Return weights of a flow that changes its inputs, and the generator that drew them."""
    draw = torch.Generator().manual_seed(features)
    weights = flow.first_weights(features, couplings, [16], draw)
    return {name: t + spread * torch.randn(t.shape, generator=draw) for name, t in weights.items()}, draw


@pytest.mark.parametrize("features", [2, 5, 32])
def test_the_inverse_undoes_the_flow(features):
    weights, draw = drawn(features, spread=0.1)
    x = torch.randn(50, features, generator=draw)
    z, _ = flow.forward(weights, x)
    assert (z - x).abs().max() > 0.1
    torch.testing.assert_close(flow.inverse(weights, z), x, rtol=0, atol=1e-5)


def test_the_log_determinant_is_that_of_autograd():
    weights, draw = drawn(4)
    x = torch.randn(6, 4, generator=draw)
    _, log_det = flow.forward(weights, x)
    jacobians = torch.stack([torch.func.jacrev(lambda row: flow.forward(weights, row[None])[0][0])(row) for row in x])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians).logabsdet, rtol=1e-4, atol=1e-5)
    assert log_det.abs().max() > 0.5


def test_the_density_integrates_to_1():
    weights, _ = drawn(2, couplings=4)
    axis = torch.linspace(-12, 12, 601)
    grid = torch.cartesian_prod(axis, axis)
    mass = float(flow.log_density(weights, grid).double().exp().sum() * (axis[1] - axis[0]) ** 2)
    assert mass == pytest.approx(1, abs=0.01)


def test_a_coupling_by_hand():
    """One coupling of two features without hidden units: s = 2 a and t = 3 a."""
    weights = {"0.0.weight": torch.tensor([[2.0], [3.0]]), "0.0.bias": torch.zeros(2)}
    x = torch.tensor([[0.5, 0.5]])  # equal, so that the permutation does not matter
    z, log_det = flow.forward(weights, x)
    torch.testing.assert_close(z, torch.tensor([[0.5, 0.5 * math.exp(math.tanh(1.0)) + 1.5]]))
    assert float(log_det) == pytest.approx(math.tanh(1.0))
    density = -0.5 * float(z.square().sum()) - math.log(2 * math.pi) + math.tanh(1.0)
    assert float(flow.log_density(weights, x)) == pytest.approx(density, abs=1e-5)


def test_two_couplings_change_every_feature():
    for features in (2, 3, 7):
        weights, draw = drawn(features, couplings=2)
        x = torch.randn(1, features, generator=draw)
        assert not torch.isin(flow.forward(weights, x)[0], x).any()


@pytest.mark.parametrize("features, couplings, message", [(1, 8, "features: 1"), (4, 0, "couplings: 0")])
def test_impossible_flows_are_refused(features, couplings, message):
    with pytest.raises(ValueError, match=message):
        flow.first_weights(features, couplings, [4], torch.Generator())
