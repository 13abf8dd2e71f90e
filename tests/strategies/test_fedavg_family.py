"""FedAvg, FedAvgM, FedAdam, FedProx: two rounds by hand, and the settings that equal FedAvg."""

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.method.fold import Fold
from fl.method.reduction import Meta, Sum, WeightedMean
from fl.method.strategy import FedAvgEquivalent
from fl.registry import lookup, names
from fl.tensors.params import Params
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedprox import FedProx


def params(*w: float, dtype=torch.float64) -> Params:
    return Params.of({"w": torch.tensor(w, dtype=dtype)})


def two_rounds(rule, start, first, second):
    one, _ = rule.step(rule.init(params(*start), None), params(*first), None)
    two, _ = rule.step(one, params(*second), None)
    return one, two


def test_fedavg_by_hand():
    one, two = two_rounds(FedAvg(lr=0.5), (1, 2), (0.5, -1), (0, 4))
    assert one.model["w"].tolist() == [1.25, 1.5]
    assert two.model["w"].tolist() == [1.25, 3.5]


@pytest.mark.parametrize("weights, expected", [("examples", 2.5), ("uniform", 2.0)])
def test_fedavg_weights(weights, expected):
    reduction = FedAvg(weights=weights).reduction(None, None)  # updates 1 and 3 of clients with 1 and 3 examples
    fold = Fold(reduction, 2)
    for k, (value, n) in enumerate([(1.0, 1), (3.0, 3)]):
        fold.add(0, k, reduction.lift(params(value), Meta(k, n)))
    assert fold.finish()["w"].tolist() == [expected]


def test_fedavgm_by_hand():
    one, two = two_rounds(FedAvgM(beta=0.5), (1, 2), (0.5, -1), (0, 4))
    assert one.model["w"].tolist() == [1.5, 1.0]  # round 0 already changes the model
    assert two.model["w"].tolist() == [1.75, 4.5]  # velocity (.25, 3.5)


def test_fedavgm_server_learning_rate_leaves_the_velocity_alone():
    one, two = two_rounds(FedAvgM(beta=0.5, lr=2.0), (0,), (1,), (1,))
    assert tuple(state.optimiser.moments["velocity"]["w"].item() for state in (one, two)) == (1.0, 1.5)
    assert (one.model["w"].item(), two.model["w"].item()) == (2.0, 5.0)


def test_fedadam_first_step_in_closed_form():
    lr, beta1, beta2, tau, d = 0.1, 0.9, 0.99, 1e-3, np.array([0.03, -2.0, 0.0])
    expected = lr * (1 - beta1) * d / (np.sqrt(beta2 * tau**2 + (1 - beta2) * d**2) + tau)
    rule = FedAdam(lr=lr, beta1=beta1, beta2=beta2, tau=tau)
    one, _ = rule.step(rule.init(params(0, 0, 0), None), params(*d), None)
    assert one.model["w"].numpy() == pytest.approx(expected, rel=1e-12)
    assert one.model["w"][0].item() == pytest.approx(0.0721034, abs=1e-7)  # .1 * .003 / (sqrt(9.99e-6) + .001)


def test_fedadam_two_rounds_by_hand():
    rule = FedAdam(lr=2.0, beta1=0.5, beta2=0.75, tau=1.0)
    one, two = two_rounds(rule, (0,), (1,), (sqrt(13),))
    assert (
        one.optimiser.moments["v"]["w"].item() == 1.0 and one.model["w"].item() == 0.5
    )  # v: 3/4 + 1/4; m: 1/2; step 2 (1/2) / (1 + 1)
    m = 0.25 + sqrt(13) / 2  # v: 3/4 + 13/4 = 4
    assert two.optimiser.moments["v"]["w"].item() == pytest.approx(4.0)
    assert two.model["w"].item() == pytest.approx(0.5 + 2 * m / 3)


def test_fedadam_pads_stay_neutral():
    rule = FedAdam()
    state, _ = rule.step(rule.init(params(1, 2, 3), None), params(1, 1, 1), None)
    assert all(p.buffers[0][3:].eq(0).all() for p in (state.model, *state.optimiser.moments.values()))


finite = st.floats(-1e3, 1e3, width=32).map(
    lambda x: x + 0.0
)  # -0 + 0 is 0 and -0 - 0 is -0, so use positive zeros only


@pytest.mark.parametrize("rule", [FedAvgM, FedAdam, FedProx])
@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=8))
def test_neutral_setting_is_fedavg_to_the_bit(rule, values):
    assert (
        rule.fedavg_equivalent.bits or rule is FedProx
    )  # FedProx's server is FedAvg's; only its clients may fuse steps
    start, first, second = (params(*v, dtype=torch.float32) for v in zip(*values))
    plain, equivalent = FedAvg(), rule(**rule.fedavg_equivalent.strategy)
    a, b = plain.init(start, None), equivalent.init(start, None)
    for mean in (first, second):
        a, b = plain.step(a, mean, None)[0], equivalent.step(b, mean, None)[0]
        assert torch.equal(a.model.buffers[0].view(torch.int32), b.model.buffers[0].view(torch.int32))


@pytest.mark.parametrize(
    "rule, options, complaint",
    [
        (FedAvgM, {"beta": 1.0}, "beta: 1.0"),
        (FedAdam, {"beta1": -0.1}, "beta1: -0.1"),
        (FedAdam, {"beta2": 1.5}, "beta2: 1.5"),
        (FedAdam, {"tau": 0.0}, "tau: 0.0"),
    ],
)
def test_impossible_values_are_named(rule, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        rule(**options)


def test_every_strategy_brings_a_client_that_exists_and_neutral_settings_that_it_takes():
    for name in names("strategy"):
        rule = lookup("strategy", name)
        client = lookup("client", rule.client)
        assert rule.__module__ == f"fl.strategies.{name}"
        if rule.fedavg_equivalent is not None:
            assert isinstance(rule.fedavg_equivalent, FedAvgEquivalent)
            rule(**rule.fedavg_equivalent.strategy), client(**rule.fedavg_equivalent.client)


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("rule", [Sum(), WeightedMean("uniform"), WeightedMean("examples")])
def test_a_sum_leaves_updates_as_they_were_that_it_does_not_own(rule, count):
    """Client i sends 2^i, so that all sums are exact."""
    value = 2.0 ** torch.arange(count)[:, None].expand(count, 3).contiguous()
    before, fold = value.clone(), Fold(rule, count)
    meta = Meta(torch.arange(count), torch.full((count,), 4))
    fold.add_stacked(0, count, fold.stacked(rule.lift(value, meta), count, owned=False))
    expected = (2.0**count - 1) / (1 if isinstance(rule, Sum) else count)
    assert torch.equal(value, before)
    torch.testing.assert_close(fold.finish(), torch.full((3,), expected))
