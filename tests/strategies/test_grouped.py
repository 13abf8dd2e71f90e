"""Means of groups: by hand, with empty groups, and in any order of merging."""

import numpy as np
import pytest
import torch

from fl.method.fold import Fold
from fl.method.grouped import ByClient, Grouped, weighted_sum
from fl.method.reduction import Meta, WeightedMean
from fl.tensors.params import Params


def params(*w: float) -> Params:
    return Params.of({"w": torch.tensor(w)})


def reduced(reduction, updates):
    """Reduce updates (client, examples, value)."""
    fold = Fold(reduction, len(updates))
    for position, (client, examples, value) in enumerate(updates):
        fold.add(0, position, reduction.lift(params(value), Meta(client, examples)))
    return fold.finish()


@pytest.mark.parametrize(
    "weights, expected", [("examples", {0: (2.0, 4.0), 3: (6.0, 2.0)}), ("uniform", {0: (3.0, 2.0), 3: (6.0, 1.0)})]
)
def test_means_and_weights_of_groups_by_hand(weights, expected):
    by_table = ByClient(np.array([0, 3, 0, 1]))
    found = reduced(Grouped(by_table, WeightedMean(weights)), [(0, 3, 1.0), (1, 2, 6.0), (2, 1, 5.0)])
    assert {group: (mean["w"].item(), weight) for group, (mean, weight) in found.items()} == expected
    assert list(found) == [0, 3]  # ascending; group 1 has no update


def test_members_without_a_group_and_groups_without_weight_are_left_out():
    reduction = Grouped(lambda value, meta: (0, value) if int(meta.client) else None)
    assert reduced(reduction, [(0, 5, 1.0)]) == {}
    assert reduced(reduction, [(1, 0, 1.0)]) == {}


def test_each_group_has_the_bits_of_its_mean_alone():
    draw = np.random.default_rng(0)
    values = [(client, int(draw.integers(1, 9)), float(draw.normal())) for client in range(4)]
    found = reduced(Grouped(ByClient(np.array([0, 0, 1, 1]))), values)
    for group in (0, 1):
        alone = reduced(WeightedMean(), values[2 * group : 2 * group + 2])
        assert torch.equal(found[group].mean["w"], alone["w"])


def test_weighted_sum_by_hand():
    assert weighted_sum([(0.25, params(4.0)), (0.5, params(-2.0)), (1.0, params(3.0))])["w"].item() == 3.0
