"""Combinations have the numbers of the same arithmetic with parameters, whatever is done to them."""

import pytest
import torch

from fl.tensors.combination import Combination, NotKnown, Unknown
from fl.tensors.params import Layout, Params

LAYOUT = Layout.of([("w", (3,), torch.float32), ("b", (2,), torch.float32)])
PER_CLIENT = torch.tensor([2.0, -1.0])


def some(seed: int, *batch: int) -> Params:
    params = LAYOUT.zeros(*batch)
    for name, tensor in params.items():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + len(name))))
    return params


def in_place(p, q):
    p = p * 1.0
    p.add_(q, alpha=0.5).sub_(2.0 * q).mul_(PER_CLIENT)
    return p


def written(p, q):
    """Writes to a tensor of a sum stay; the operands do not change."""
    total = p + q
    total["w"].mul_(3.0)
    return total - p


LINEAR = {
    "sum": lambda p, q: p + q,
    "the other first": lambda p, q: q - p,
    "multiples": lambda p, q: 2 * p / 4.0 - q * PER_CLIENT,
    "negative": lambda p, q: -(q + p) * PER_CLIENT.numpy(),
    "in place": in_place,
}
OTHERS = {
    "product": lambda p, q: p * q,
    "plus a number": lambda p, q: 1.0 - p,
    "copy": lambda p, q: p.clone().add_(q),
    "selected": lambda p, q: p.select(["w"]),
    "tensors": lambda p, q: Params.of({"w": p["w"] * q["w"]}),
    "written": written,
}


@pytest.mark.parametrize("name", {**LINEAR, **OTHERS})
def test_the_numbers_are_those_of_parameters(name):
    fn, p, q = {**LINEAR, **OTHERS}[name], some(0, 2), some(5)
    before, wanted = p.buffers[0].clone(), fn(p, q)
    found = fn(Combination.single(p), q)
    assert found.layout is wanted.layout and found.batch == wanted.batch
    torch.testing.assert_close(found.buffers[0], wanted.buffers[0])
    assert torch.equal(p.buffers[0], before)
    assert isinstance(found, Combination) == (name in LINEAR or name == "written")


@pytest.mark.parametrize("name", {**LINEAR, **OTHERS})
def test_only_sums_of_what_is_not_known_are_possible(name):
    unknown, q = Combination.single(Unknown(LAYOUT, (2,))), some(5)
    if name in LINEAR:
        found = LINEAR[name](unknown, q)
        assert found.batch == (2,) and unknown.terms[0].params in [params for _, params in found.collected()]
        with pytest.raises(NotKnown):
            found.buffers
    else:
        with pytest.raises(NotKnown):
            OTHERS[name](unknown, q)


def test_a_difference_without_a_rest_has_no_term():
    p, q = some(0, 2), some(5)
    ((factor, left),) = ((Combination.single(p) - q) + q).collected()
    assert factor == 1.0 and left is p


def test_parameters_that_changed_are_noticed():
    p, q = some(0, 2), some(5)
    total = Combination.single(p) + q
    q.mul_(2.0)
    with pytest.raises(NotKnown):
        total.collected()
    with pytest.raises(NotKnown):
        total.buffers
