"""Trimmed mean: by hand, compared with scipy, and within the honest range for all attacks."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean
from torch import Tensor

from fl.method.fold import Fold
from fl.method.reduction import Meta
from fl.tensors.params import Params
from strategies.trimmed_mean import Trim, TrimmedMean


@dataclass(frozen=True)
class InMemory:
    """Scratch storage in memory."""

    vector: Tensor

    def open(self) -> Tensor:
        return self.vector


def params(*w: float) -> Params:
    return Params.of({"w": torch.tensor(w, dtype=torch.float32)})


def one_round(rule: TrimmedMean, state: Params, updates: list[Params]) -> Params:
    reduction = rule.reduction(state, None)
    fold = Fold(reduction, len(updates))
    for k, update in enumerate(updates):
        fold.add(0, k, reduction.lift(update, Meta(client=k, num_examples=10**k, spill=InMemory)))
    return rule.step(state, fold.finish(), None)[0]


def test_two_rounds_by_hand():
    rule = TrimmedMean(beta=0.25)  # drops one of four on either side, coordinate by coordinate
    one = one_round(rule, params(1, 1), [params(0, 8), params(1, -9), params(3, 2), params(100, 4)])
    assert one["w"].tolist() == [3.0, 4.0]  # (1 + 3) / 2, (2 + 4) / 2
    two = one_round(rule, one, [params(-5, 1), params(-1, 1), params(-1, 1), params(9, 1)])
    assert two["w"].tolist() == [2.0, 5.0]


@given(st.integers(1, 12), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.49]), st.integers(0, 2**31 - 1))
def test_is_scipys(n, beta, seed):
    rows = np.random.default_rng(seed).standard_normal((n, 3))
    assert Trim(beta)(torch.from_numpy(rows), torch.ones(n)).numpy() == pytest.approx(trim_mean(rows, beta, axis=0))


def test_the_share_is_the_decimal_as_written():
    rows = torch.arange(100.0)[:, None] ** 2
    assert Trim(0.29)(rows, torch.ones(100)).item() == pytest.approx(float((rows[29:71]).mean()))


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7),
    st.lists(st.floats(allow_nan=True, width=32), max_size=3),
)
def test_attackers_cannot_leave_the_honest_range(honest, attack):
    rows = torch.tensor(honest + attack)[:, None]  # at most 3 of 10 rows are attacks
    value = Trim(0.45)(rows, torch.ones(len(rows))).item()
    assert min(honest) - 1e-6 <= value <= max(honest) + 1e-6


@given(st.permutations(range(6)))
def test_order_changes_no_bit(order):
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Trim(0.2)(rows, torch.ones(6)), Trim(0.2)(rows[list(order)], torch.ones(6)))


def test_beta_zero_is_the_uniform_mean():
    updates = [params(1, 2), params(2, 4), params(6, 0)]
    assert one_round(TrimmedMean(beta=0.0), params(0, 0), updates)["w"].tolist() == [3.0, 2.0]


def test_travels_to_workers():
    reduction = TrimmedMean(beta=0.2).reduction(None, None)
    assert pickle.loads(pickle.dumps(reduction)) == reduction


@pytest.mark.parametrize("beta", [-0.1, 0.5])
def test_impossible_values_are_named(beta):
    with pytest.raises(ValueError, match=rf"beta: {beta} is not in \[0, 0.5\)"):
        TrimmedMean(beta=beta)
