"""Combinations have the numbers of the same arithmetic with parameters, whatever is done to them."""

import inspect

import numpy as np
import pytest
import torch

from fl.tensors import params as module
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
    "copy": lambda p, q: p.clone().add_(q),
    "copy in place": lambda p, q: (2.0 * p).copy_(p + q),
}
OTHERS = {
    "product": lambda p, q: p * q,
    "plus a number": lambda p, q: 1.0 - p,
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


def test_a_sum_with_itself_keeps_one_term():
    p = total = Combination.single(some(0))
    for _ in range(60):
        total = total + total
    ((factor, _),) = total.collected()
    assert factor == 2.0**60 and len(total.terms) == 1 and p.terms[0].factor == 1.0


def test_views_of_numbers_see_changes_in_place():
    p, q = some(0, 2), some(5)
    total = p + q
    lazy = Combination.single(p) + q
    view, wanted = lazy["w"], total["w"]
    lazy.add_(q).mul_(2.0).copy_(lazy - q)
    total.add_(q).mul_(2.0).copy_(total - q)
    torch.testing.assert_close(view, wanted)


# name of each public method, operator and function of `fl.tensors.params` -> ways to use it, of p and another q
USES = {
    "__add__": [lambda p, q: p + q, lambda p, q: p + 1.0, lambda p, q: q + p],
    "__radd__": [lambda p, q: 1.0 + p, lambda p, q: PER_CLIENT + p, lambda p, q: sum([p, q])],
    "__sub__": [lambda p, q: p - q, lambda p, q: p - PER_CLIENT, lambda p, q: p - p],
    "__rsub__": [lambda p, q: q - p, lambda p, q: 1.0 - p, lambda p, q: PER_CLIENT - p],
    "__mul__": [
        lambda p, q: p * q,
        lambda p, q: p * 3,
        lambda p, q: p * PER_CLIENT,
        lambda p, q: p * PER_CLIENT.numpy(),
        lambda p, q: p * torch.tensor(0.5),
        lambda p, q: p * PER_CLIENT[:, None],
        lambda p, q: p * "x",
    ],
    "__rmul__": [lambda p, q: q * p, lambda p, q: np.float32(2) * p, lambda p, q: PER_CLIENT * p],
    "__truediv__": [
        lambda p, q: p / q,
        lambda p, q: q / p,
        lambda p, q: p / 0,
        lambda p, q: p / torch.tensor([3, 7]),
        lambda p, q: p / PER_CLIENT.double(),
    ],
    "__neg__": [lambda p, q: -p],
    "__getitem__": [lambda p, q: p["w"]],
    "__iter__": [lambda p, q: list(p)],
    "__len__": [lambda p, q: len(p)],
    "__contains__": [lambda p, q: ("w" in p, "v" in p)],
    "__repr__": [lambda p, q: repr(p)],
    "__eq__": [lambda p, q: p == q, lambda p, q: p == 1.0],
    "keys": [lambda p, q: list(p.keys())],
    "items": [lambda p, q: list(p.items())[0][1]],
    "values": [lambda p, q: list(p.values())[0]],
    "get": [lambda p, q: p.get("w"), lambda p, q: p.get("v")],
    "layout": [lambda p, q: p.layout],
    "buffers": [lambda p, q: p.buffers[0]],
    "batch": [lambda p, q: p.batch, lambda p, q: (p * PER_CLIENT).batch],
    "device": [lambda p, q: p.device],
    "numel": [lambda p, q: p.numel],
    "nbytes": [lambda p, q: p.nbytes],
    "row": [lambda p, q: p.row(slice(0, 1)).zero_(), lambda p, q: p.row(torch.tensor([0])).zero_()],
    "to": [lambda p, q: p.to("cpu").mul_(2.0)],
    "clone": [lambda p, q: p.clone().add_(q), lambda p, q: p.clone().zero_()],
    "select": [
        lambda p, q: p.select(None).add_(q),
        lambda p, q: p.select(["*"]).mul_(2.0),
        lambda p, q: p.select(["w"]),
    ],
    "replace": [lambda p, q: p.replace({}), lambda p, q: p.replace(q.select(["w"]).row(slice(None)))],
    "added": [lambda p, q: p.added(), lambda p, q: p.added(q), lambda p, q: p.added(q.select(["b"]))],
    "compact": [lambda p, q: p.compact()],
    "expand": [lambda p, q: Params.expand(LAYOUT, p.compact())],
    "of": [lambda p, q: Params.of({"w": p["w"] * 2.0}), lambda p, q: Params.of(p)],
    "copy_": [
        lambda p, q: p.copy_(q),
        lambda p, q: p.copy_(2.0 * p),
        lambda p, q: p.copy_(p.row(slice(None))),
        lambda p, q: p.copy_(q, names=["w"]),
        lambda p, q: p.copy_(dict(q)),
        lambda p, q: q.clone().copy_(p),
    ],
    "add_": [
        lambda p, q: p.add_(q),
        lambda p, q: p.add_(q, alpha=0.5),
        lambda p, q: p.add_(p, torch.tensor(0.5)),
        lambda p, q: p.add_(q, PER_CLIENT),
        lambda p, q: p.add_(q * PER_CLIENT),
        lambda p, q: q.clone().add_(p),
    ],
    "sub_": [lambda p, q: p.sub_(q).sub_(p * 0.5), lambda p, q: q.clone().sub_(p), lambda p, q: p.sub_(1.0)],
    "mul_": [lambda p, q: p.mul_(2.0), lambda p, q: p.mul_(PER_CLIENT), lambda p, q: p.mul_(q)],
    "zero_": [lambda p, q: p.zero_()],
    "elementwise": [
        lambda p, q: module.elementwise(torch.maximum, p, q),
        lambda p, q: module.elementwise(torch.exp, p),
    ],
    "match": [lambda p, q: module.match(p, ["w"])],
    "difference": [lambda p, q: module.difference(p, q)],
    "zeros_like": [lambda p, q: module.zeros_like(p), lambda p, q: module.zeros_like(p) + p],
    "sign": [lambda p, q: module.sign(p)],
    "sqrt": [lambda p, q: module.sqrt(p * p)],
    "dot": [lambda p, q: module.dot(p, q), lambda p, q: p * module.dot(p, q)],
    "norm": [lambda p, q: module.norm(p)],
    "clipped": [lambda p, q: module.clipped(p, 0.1)],
    "join": [lambda p, q: module.join(p, q)],
    "torch": [lambda p, q: torch.add(p, q), lambda p, q: torch.relu(p)],
}
EVERY_USE = [pytest.param(use, id=f"{name} {k}") for name, uses in USES.items() for k, use in enumerate(uses)]


def test_every_use_of_parameters_is_in_the_table():
    """A new method, property, operator or function needs a line in `USES`."""
    operators = {name for name, value in vars(Params).items() if inspect.isfunction(value)} - {"__init__"}
    own = {name for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    assert operators | {name for name in {*dir(Params), *own} if not name.startswith("_")} <= USES.keys()


def result_of(use, p, q):
    """Return what a use returns, or the error that it raises."""
    try:
        return use(p, q)
    except (Exception, NotKnown) as error:
        return error


def same(found, wanted) -> None:
    """Check two results of a use."""
    if isinstance(wanted, Params):
        assert isinstance(found, Params) and found.layout is wanted.layout and found.batch == wanted.batch
        for a, b in zip(found.buffers, wanted.buffers):
            torch.testing.assert_close(a, b, equal_nan=True)
    elif isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, equal_nan=True)
    elif isinstance(wanted, Exception):
        assert type(found) is type(wanted)
    else:
        assert found == wanted


def put(combination: Params, numbers: Params) -> Params:
    """Return a combination with numbers in place of what is unknown."""
    if not isinstance(combination, Combination):
        return combination
    terms = [(numbers if isinstance(params, Unknown) else params) * factor for factor, params, _ in combination.current]
    return sum(terms[1:], terms[0])


@pytest.mark.parametrize("axes", [((2,), ()), ((2,), (2,)), ((), (2,)), ((), ())])
@pytest.mark.parametrize("use", EVERY_USE)
def test_every_use_gives_the_numbers_of_parameters_or_needs_numbers(use, axes):
    """For p of either kind, the result and p itself afterwards; the parameters that a combination is made of stay."""
    p, q = some(0, *axes[0]), some(5, *axes[1])
    changed, known, unknown = p.clone(), Combination.single(p), Combination.single(Unknown(LAYOUT, axes[0]))
    wanted = result_of(use, changed, q.clone())

    same(result_of(use, known, q.clone()), wanted)
    same(known, changed)
    same(p, some(0, *axes[0]))

    found = result_of(use, unknown, q.clone())
    if not isinstance(found, NotKnown):
        same(put(found, p), wanted)
        same(put(unknown, p), changed)
