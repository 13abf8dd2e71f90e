"""Clipping, weights and noise of private sums, by hand."""

import math

import numpy as np
import pytest
import torch

from fl.method.reduction import Meta, Sum, WeightedMean
from fl.method.sampler import Poisson
from fl.privacy.adaptive import Adaptive
from fl.privacy.by_part import PerGroup, PerLayer
from fl.privacy.clipping import Counts, sensitivity
from fl.privacy.fixed import Fixed
from fl.privacy.gaussian import Gaussian
from fl.privacy.laplace import Laplace
from fl.privacy.mechanism import Release, Sampling
from fl.privacy.private_sum import PrivateSum
from fl.privacy.streams import Streams
from fl.tensors.params import Params

MEAN = {"model": WeightedMean()}


def params(**tensors):
    return Params.of({name.replace("_", "."): torch.tensor(values) for name, values in tensors.items()})


def test_two_clients_by_hand():
    """Norms 5 and 1 with bound 2.5: 1/2 (3, 4) + (0, 1); one of two is within the bound, which cancels out."""
    rule = PrivateSum(MEAN, Fixed(bound=2.5))
    accs = [rule.lift({"model": params(w=w)}, Meta(i, 7)) for i, w in enumerate(([3.0, 4.0], [0.0, 1.0]))]
    total = rule.merge(*accs)
    assert total["sums"]["model"]["w"].tolist() == [1.5, 3.0] and total["inside"].tolist() == [0.0]
    assert rule.divisors(10.0) == {"model": 10.0}


def test_norms_are_over_all_groups_and_only_means_are_weighted():
    """|(3, 4)| = 5 with bound 1: both groups shrink by 5; 3 of at most 10 samples weigh 0.3 in the mean."""
    rule = PrivateSum({"model": WeightedMean(), "control": Sum()}, Fixed(bound=1.0), cap=10)
    acc = rule.lift({"model": params(w=[3.0]), "control": params(w=[4.0])}, Meta(0, 3))
    assert acc["sums"]["model"]["w"].item() == pytest.approx(0.18)
    assert acc["sums"]["control"]["w"].item() == pytest.approx(0.8)
    assert rule.divisors(5.0) == {"model": 5.0, "control": 1.0}
    most = rule.lift({"model": params(w=[3.0]), "control": params(w=[4.0])}, Meta(0, 300))
    assert most["sums"]["model"]["w"].item() == pytest.approx(0.6), "a large client weighs 1"


def test_laplace_clips_in_the_l1_norm():
    acc = PrivateSum(MEAN, Fixed(bound=1.0), norm="l1").lift({"model": params(w=[-1.0, 3.0])}, Meta(0, 1))
    assert acc["sums"]["model"]["w"].tolist() == [-0.25, 0.75]


def test_each_layer_has_its_own_bound():
    """Two layers, bound sqrt(2): each is clipped to 1."""
    update = {"model": params(a_weight=[3.0], a_bias=[4.0], b_weight=[0.5])}
    acc = PrivateSum(MEAN, PerLayer(bound=math.sqrt(2))).lift(update, Meta(0, 1))
    clipped = {name: tensor.item() for name, tensor in acc["sums"]["model"].items()}
    assert clipped == pytest.approx({"a.weight": 0.6, "a.bias": 0.8, "b.weight": 0.5})
    assert acc["inside"].tolist() == [-0.5, 0.5]


def test_groups_of_tensors_have_their_own_bounds():
    clipping = PerGroup(bounds={"*.bias": 2.0, "*": 3.0})
    update = {"model": params(a_weight=[3.0], a_bias=[4.0], b_weight=[4.0])}
    acc = PrivateSum(MEAN, clipping).lift(update, Meta(0, 1))
    clipped = {name: tensor.item() for name, tensor in acc["sums"]["model"].items()}
    assert clipped == pytest.approx({"a.weight": 1.8, "a.bias": 2.0, "b.weight": 2.4})
    assert sensitivity(clipping.bounds_at(None, 2, "l2"), "l2") == pytest.approx(math.sqrt(13))


def test_the_adaptive_bound_moves_as_in_the_paper():
    """Algorithm 1 of Andrew et al.: C exp(-eta (b - gamma)), here b = 0.8 of 10 clients, eta 0.2, gamma 0.5."""
    rule = Adaptive(bound=2.0, quantile=0.5, lr=0.2)
    inside = np.array([8 * 0.5 - 2 * 0.5])
    assert rule.next(2.0, Counts(inside, 10.0)) == pytest.approx(2 * math.exp(-0.2 * 0.3))
    assert rule.next(2.0, Counts(np.array([0.0]), 10.0)) == 2.0, "half of the clients, and an empty cohort"


def test_the_noise_of_counts_is_taken_from_that_of_sums():
    """Theorem 1: z_sum = (z^-2 - (2 sigma_b)^-2)^(-1/2); 100 clients have sigma_b = 5."""
    rule = Adaptive()
    assert rule.multiplier_of_sum(1.0, 100.0) == pytest.approx((1 - 1 / 100) ** -0.5)
    with pytest.raises(ValueError, match="sigma_b: noise of 0.5"):
        rule.multiplier_of_sum(1.0, 10.0)


@pytest.mark.parametrize("mechanism, factor", [(Gaussian(), 1.0), (Laplace(), math.sqrt(2))])
@pytest.mark.parametrize("secret", ["", "5ec4e7"], ids=["reproducible", "cryptographic"])
def test_noise_has_mean_0_and_its_deviation(mechanism, factor, secret):
    """40 releases of 1,000 numbers: the deviation within 4 of its standard errors."""
    one = Sampling(Poisson(rate=1.0), 1.0, 10, 40)
    like, numbers = {"model": torch.zeros(1000)}, []
    for index in range(40):
        noise, _ = mechanism.noise(None, like, Release(index, 3.0, one, Streams(1, secret)))
        numbers.append(noise["model"].double())
    every = torch.cat(numbers)
    assert abs(every.mean()) < 4 * 3 * factor / 200
    assert float(every.std()) == pytest.approx(3 * factor, rel=0.04)
    flat = torch.stack(numbers)
    assert abs(torch.corrcoef(flat[:2])[0, 1]) < 4 / math.sqrt(1000), "releases are independent"
