"""The algebra of named tensors: compared with plain tensors, padding stays zero, batch axes stand for clients."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl.models.binding import module_params
from fl.tensors.params import Layout, Params, dot, elementwise, match, norm, sign, sqrt, zeros_like

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4)


def tensors(shapes, seed=0, dtype=torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"t{k}": torch.randn(shape, generator=generator, dtype=dtype) for k, shape in enumerate(shapes)}


def assert_pads_are_zero(p: Params) -> None:
    for buffer, gaps in zip(p.buffers, p.layout.gaps):
        assert all(not buffer[..., a:b].any() for a, b in gaps)


def assert_equal(p: Params, expected: dict[str, Tensor]) -> None:
    assert list(p) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(p[name], tensor, rtol=0, atol=0)
    assert_pads_are_zero(p)


# -- layout -----------------------------------------------------------------------------------------------------------
@given(SHAPES)
def test_tensors_start_on_64_byte_boundaries_and_come_back(shapes):
    plain = tensors(shapes)
    p = Params.of(plain)
    assert_equal(p, plain)
    assert all(p[name].data_ptr() % 64 == p.buffers[0].data_ptr() % 64 for name in p)
    assert p.numel == sum(int(np.prod(s)) for s in shapes) and p.nbytes == 4 * p.numel


def test_layout_by_hand():
    layout = Layout.of([("w", (3, 6), torch.float32), ("n", (2,), torch.int64), ("b", (16,), torch.float32)])
    assert layout.dtypes == (torch.float32, torch.int64) and layout.lengths == (48, 8)
    assert [(e.buffer, e.offset, e.numel) for e in layout.entries.values()] == [(0, 0, 18), (1, 0, 2), (0, 32, 16)]
    assert layout.gaps == (((18, 32),), ((2, 8),))
    assert layout.numel == 36 and layout.nbytes == 34 * 4 + 2 * 8


def test_equal_layouts_are_one_object_also_after_pickling():
    p, q = Params.of(tensors([(2,), (3,)])), Params.of(tensors([(2,), (3,)], seed=1))
    assert p.layout is q.layout is pickle.loads(pickle.dumps(p.layout)) is Layout.from_spec(p.layout.spec)
    with pytest.raises(ValueError, match="tensor names repeat"):
        Layout.of([("a", (1,), torch.float32), ("a", (2,), torch.float32)])


# -- algebra ----------------------------------------------------------------------------------------------------------
@given(SHAPES, st.floats(-3, 3, width=32))
def test_algebra_is_that_of_the_tensors(shapes, c):
    a, b = tensors(shapes, 1), tensors(shapes, 2)
    p, q = Params.of(a), Params.of(b)
    assert_equal(p + q, {n: a[n] + b[n] for n in a})
    assert_equal(p - q, {n: a[n] - b[n] for n in a})
    assert_equal(p * q, {n: a[n] * b[n] for n in a})
    assert_equal(p / q, {n: a[n] / b[n] for n in a})
    assert_equal(c * p, {n: c * a[n] for n in a})
    assert_equal(p + c, {n: a[n] + c for n in a})
    assert_equal(c - p, {n: -a[n] + c for n in a})
    assert_equal(-p, {n: -a[n] for n in a})
    assert_equal(sign(p), {n: a[n].sign() for n in a})
    assert_equal(sqrt(p * p), {n: (a[n] * a[n]).sqrt() for n in a})
    assert_equal(p.clone().add_(q, alpha=c), {n: a[n].clone().add_(b[n], alpha=c) for n in a})
    flat_a, flat_b = (torch.cat([t.reshape(-1) for t in x.values()]).double() for x in (a, b))
    torch.testing.assert_close(dot(p, q).double(), flat_a @ flat_b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(p).double(), flat_a.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("two", [np.float64(2), np.float32(2), np.int64(2), np.array(2.0)], ids=lambda two: two.dtype)
def test_numpy_numbers_are_numbers(two):
    p = Params.of({"w": torch.tensor([1.0, 3.0])})
    found = [two * p, p * two, two + p, two - p, p - two, p / two]
    expected = [[2, 6], [2, 6], [3, 5], [1, -1], [-1, 1], [0.5, 1.5]]
    assert [q["w"].tolist() for q in found] == expected


def test_a_numpy_array_holds_one_number_per_client():
    p = Params.of({"w": torch.tensor([1.0, 3.0])}).layout.zeros(2) + 1.0
    assert (np.array([1.0, 4.0]) * p)["w"].tolist() == [[1.0, 1.0], [4.0, 4.0]]


def test_pads_stay_zero_under_functions_that_move_zero():
    p = Params.of(tensors([(3,), (2, 2)]))
    for q in (p + 1.0, 1.0 - p, p / 0.0, p / zeros_like(p), elementwise(torch.exp, p), elementwise(torch.cos, p)):
        assert_pads_are_zero(q)
    assert float(norm(zeros_like(p) + 1.0)) == pytest.approx(np.sqrt(7))


def test_layouts_must_agree():
    p, q = Params.of({"w": torch.ones(2)}), Params.of({"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"parameters differ: w: \(2,\) and \(3,\)"):
        p + q
    with pytest.raises(ValueError, match="order or dtype"):
        p + Params.of({"w": torch.ones(2, dtype=torch.float64)})


# -- batch axes -------------------------------------------------------------------------------------------------------
def test_rows_of_a_batch_are_single_clients():
    """Arithmetic on (C, P) has the bits of arithmetic on each of the C rows."""
    single = [Params.of(tensors([(3, 2), (5,)], seed=c)) for c in range(4)]
    batch = single[0].layout.empty(4)
    for c, p in enumerate(single):
        batch.row(c).copy_(p)
    assert batch.batch == (4,) and batch["t0"].shape == (4, 3, 2) and batch.numel == 11
    factors = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for c, p in enumerate(single):
        assert_equal((batch - single[0]).row(c), dict(p - single[0]))
        assert_equal((batch * factors).row(c), dict(p * float(factors[c])))
        assert_equal((batch + 1.0).row(c), dict(p + 1.0))
        assert_equal(batch.clone().mul_(factors).row(c), dict(p.clone().mul_(float(factors[c]))))
        torch.testing.assert_close(norm(batch)[c], norm(p))
    assert_equal(batch.row(slice(1, 3)).row(0), dict(single[1]))
    assert zeros_like(batch).batch == (4,)


def test_rows_are_views():
    batch = Layout.of([("w", (2,), torch.float32)]).zeros(3)
    batch.row(1).add_(Params.of({"w": torch.ones(2)}))
    assert batch["w"].tolist() == [[0, 0], [1, 1], [0, 0]]


# -- compact, select, replace -----------------------------------------------------------------------------------------
@given(SHAPES, st.integers(0, 3))
def test_expand_inverts_compact(shapes, clients):
    plain = tensors([(clients, *s) for s in shapes] if clients else shapes)
    p = Params.of(tensors(shapes)).layout.zeros(*([clients] if clients else []))
    for name, tensor in plain.items():
        p[name].copy_(tensor)
    flat = p.compact()
    expected = torch.cat([t.reshape(clients, -1) if clients else t.reshape(-1) for t in plain.values()], -1)
    assert torch.equal(flat, expected)
    assert_equal(Params.expand(p.layout, flat), plain)


def test_compact_is_a_view_where_there_are_no_pads():
    p = Params.of({"w": torch.ones(16), "v": torch.ones(32)})
    assert p.compact().data_ptr() == p.buffers[0].data_ptr()
    with pytest.raises(ValueError, match="one dtype"):
        Params.of({"w": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)}).compact()


def test_select_and_replace():
    p = Params.of({"body.w": torch.ones(3), "body.b": torch.ones(2), "head.w": torch.ones(4)})
    assert p.select(None) is p and p.select(["*"]) is p
    head = p.select(["head.*"])
    assert_equal(head, {"head.w": torch.ones(4)})
    head.add_(head)
    assert p["head.w"].tolist() == [1] * 4  # select returns a copy
    assert_equal(p.replace(head), {**dict(p), "head.w": 2 * torch.ones(4)})
    assert list(p.select(["head.w", "*.b"])) == ["body.b", "head.w"]  # in the order of p
    batch = p.layout.zeros(2).copy_(p)
    assert_equal(batch.select(["*.b"]), {"body.b": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"pattern 'tail.\*' matches no parameter; the parameters are \['body.w'"):
        p.select(["tail.*"])
    assert match(["a1", "b1"], ["?1"]) == ["a1", "b1"]


def test_copy_takes_names_that_both_have():
    p = Params.of({"a": torch.zeros(2), "b": torch.zeros(3)})
    p.copy_({"a": torch.ones(2), "c": torch.ones(1)}, names=["a"])
    assert_equal(p, {"a": torch.ones(2), "b": torch.zeros(3)})
    assert_equal(p.zero_(), {"a": torch.zeros(2), "b": torch.zeros(3)})


def test_module_params_are_a_copy():
    module = torch.nn.Linear(3, 2)
    p = module_params(module)
    assert_equal(p, {"weight": module.weight.detach(), "bias": module.bias.detach()})
    p.zero_()
    assert module.weight.abs().sum() > 0


def test_scalars_are_tensors_too():
    p = Params.of({"temperature": torch.tensor(2.0)})
    assert_equal(3 * p, {"temperature": torch.tensor(6.0)})
    assert p.layout.zeros(4)["temperature"].shape == (4,)


def test_changes_of_some_tensors_are_added():
    model = Params.of({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]]), "c": torch.tensor([4.0])})
    moved = model.added(Params.of({"b": torch.tensor([[10.0]])}), Params.of({"a": torch.tensor([1.0, 1.0])}))
    assert {name: tensor.flatten().tolist() for name, tensor in moved.items()} == {"a": [2, 3], "b": [13], "c": [4]}
    assert model["b"].item() == 3 and model.added() is model
