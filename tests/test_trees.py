"""Trees of values: written and read as text and tensors, or sent between processes."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.tensors.params import Params
from fl.tensors.pickling import pack, unpack
from fl.tensors.serialise import aligned_offsets, digest, flatten, raw_bytes, shapes, unflatten
from fl.tensors.trees import leaves, replace_leaves, row, stack, tree_map


@dataclass(frozen=True)
class State:
    model: Params
    rest: Any


class Pair(NamedTuple):
    left: Any
    right: Any


def same(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Params):
        return a.layout is b.layout and all(map(torch.equal, a.buffers, b.buffers))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, State):
        return same(a.model, b.model) and same(a.rest, b.rest)
    return a == b


def params(seed=0) -> Params:
    return Params.of({"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)), "n": torch.tensor([seed])})


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
LEAVES = PLAIN | st.builds(params, st.integers(0, 9)) | st.builds(torch.arange, st.integers(0, 4))
LEAVES |= st.sampled_from([np.arange(3, dtype=np.uint64), np.zeros((2, 0)), torch.zeros((), dtype=torch.bfloat16)])
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.sampled_from(["params", "tensor", "dict", "class"]))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(State, st.builds(params), inner),
    ),
    max_leaves=8,
)


@given(TREES)
def test_unflatten_inverts_flatten(tree):
    skeleton, tensors = flatten(tree)
    assert isinstance(skeleton, str) and all(isinstance(t, torch.Tensor) for t in tensors)
    assert same(unflatten(skeleton, tensors), tree)


@given(TREES)
def test_unpack_inverts_pack(tree):
    code, memories = pack(tree)
    assert same(unpack(code, [bytearray(m) for m in memories]), tree)


def test_packing_copies_nothing():
    tensor = torch.zeros(1000)
    code, memories = pack({"x": tensor})
    assert len(code) < 1000 and [m.nbytes for m in memories] == [4000]
    tensor[7] = 1.0
    assert unpack(code, memories)["x"].tolist() == tensor.tolist()


class Quantised(torch.nn.Parameter):
    """A parameter with an attribute, like the weights of bitsandbytes."""

    scale: torch.Tensor


@pytest.mark.parametrize("size", [4, 1 << 20])
def test_parameters_keep_their_class_and_attributes(size):
    weight = Quantised(torch.arange(size, dtype=torch.int8), requires_grad=False)
    weight.scale = torch.tensor([0.5])
    layer = torch.nn.Linear(1, 1)
    layer.weight = weight
    found = unpack(*pack(layer)).weight
    assert type(found) is Quantised and not found.requires_grad and torch.equal(found.data, weight.data)
    assert found.scale.tolist() == [0.5]


def test_code_travels_by_value():
    factor = 3
    code, memories = pack(lambda x: factor * x)
    assert unpack(code, memories)(2) == 6


def test_what_a_state_cannot_hold():
    with pytest.raises(TypeError, match="a state may hold"):
        flatten({"f": print})
    skeleton, tensors = flatten(State(params(), 1))
    with pytest.raises(ValueError, match="not a dataclass"):
        unflatten(skeleton.replace(f"{__name__}:State", "builtins:int"), tensors)


def test_map_row_and_stack():
    trees = [State(params(c), {"h": torch.tensor([c, c]), "k": "plain"}) for c in range(3)]
    stacked = stack(trees)
    assert stacked.model.batch == (3,) and stacked.rest["k"] == "plain"
    for c, tree in enumerate(trees):
        assert same(row(stacked, c), tree)
    assert row(stacked, slice(1, 3)).rest["h"].tolist() == [[1, 1], [2, 2]]
    total = tree_map(lambda a, b: a + b, trees[1], trees[2])
    assert total.rest["h"].tolist() == [3, 3] and total.model["n"].tolist() == [3]
    pair = tree_map(lambda x: -x, Pair(torch.ones(1), (2, [torch.ones(1)])))
    assert type(pair) is Pair and pair.left.item() == -1 and pair.right[0] == 2 and pair.right[1][0].item() == -1


def test_leaves_shapes_and_rebuilt():
    tree = State(params(), {"h": torch.zeros(2, 3), "k": "plain"})
    assert [tuple(t.shape) for t in leaves(tree)] == [(16,), (8,), (2, 3)]  # buffers with their padding
    assert shapes(flatten(tree)[0]) == [(torch.float32, (16,)), (torch.int64, (8,)), (torch.float32, (2, 3))]
    doubled = replace_leaves(tree, [2 * t for t in leaves(tree)])
    assert same(doubled, tree_map(lambda leaf: 2 * leaf, tree))


def test_digest_by_hand():
    w, b = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    sha = hashlib.sha256(
        b"b [1] torch.float32\n" + b.numpy().tobytes() + b"w [1, 2] torch.float32\n" + w.numpy().tobytes()
    )
    assert digest(Params.of({"w": w, "b": b})) == digest(Params.of({"b": b, "w": w})) == sha.hexdigest()


def test_raw_bytes_and_aligned():
    assert bytes(raw_bytes(torch.tensor([1, 256], dtype=torch.int16))) == b"\x01\x00\x00\x01"
    assert bytes(raw_bytes(torch.empty(0))) == b"" and len(raw_bytes(torch.tensor(1.0))) == 4
    assert aligned_offsets([1, 64, 65, 0, 3]) == ([0, 64, 128, 256, 256], 320)
