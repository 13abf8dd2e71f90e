"""Codecs: errors are within their bounds, the ledger counts real bytes, a batch has the bits of its single rows."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

from fl.communication.chain import Chain
from fl.communication.codec import Codec, Encoded
from fl.communication.codecs.cast import BF16, FP16
from fl.communication.codecs.identity import Identity
from fl.communication.codecs.top_k import TopK
from fl.communication.transmit import Sizes, transmit
from fl.registry import lookup
from fl.tensors.params import Params
from fl.tensors.serialise import raw_bytes
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import stack

CODECS = [
    Identity(),
    FP16(),
    BF16(),
    TopK(ratio=0.01),
    TopK(ratio=0.4),
    TopK(ratio=1),
    Chain((TopK(ratio=0.3), FP16())),
    Chain((FP16(), TopK(ratio=0.3))),
    Chain((Chain((TopK(ratio=0.5), TopK(ratio=0.5))), BF16())),
]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
floats = st.floats(-65504, 65504, width=32)
vectors = arrays.arrays(np.float32, st.integers(0, 70), elements=floats).map(torch.from_numpy)
matrices = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(0, 40)), elements=floats).map(
    torch.from_numpy
)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and (a.numel() == 0 or raw_bytes(a) == raw_bytes(b))


# -- laws of every codec ----------------------------------------------------------------------------------------------
@every_codec
@given(values=vectors)
def test_bytes_sizes_and_shape_agree(codec, values):
    encoded = codec.encode(values)
    assert len(bytes(encoded)) == encoded.nbytes == codec.exact_size(len(values))
    decoded = codec.decode(encoded, len(values))
    assert decoded.shape == values.shape and decoded.dtype == torch.float32


@every_codec
@given(values=matrices)
def test_many_clients_at_once_equal_one_by_one(codec, values):
    encoded = codec.encode(values)
    decoded = codec.decode(encoded, values.shape[-1])
    for c, row in enumerate(values):
        alone = codec.encode(row)
        assert encoded.nbytes == alone.nbytes and list(encoded.parts) == list(alone.parts)
        assert all(same_bits(encoded.parts[name][c], part) for name, part in alone.parts.items())
        assert same_bits(decoded[c], codec.decode(alone, len(row)))


@every_codec
@pytest.mark.parametrize("values", [[], [0.0], [-1.5], [0.0, 0.0, 0.0], [0.0, -0.0, 1.0]], ids=str)
def test_empty_zero_and_single_vectors_pass(codec, values):
    values = torch.tensor(values)
    decoded = codec.decode(codec.encode(values), len(values)).float()
    assert set(decoded.tolist()) <= set(values.tolist()) | {0.0}


@pytest.mark.parametrize("codec", CODECS[:3], ids=str)
def test_elementwise_codecs_do_not_hide_what_is_not_finite(codec):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    assert_array_equal(codec.decode(codec.encode(values), 4), values)


@every_codec
def test_exact_size_is_of_float32_and_sizes_of_any_width(codec):
    values = torch.arange(50.0, dtype=torch.float64)
    beside, length, width = codec.sizes(50, 8)
    assert beside + length * width == codec.encode(values).nbytes


# -- bounds -----------------------------------------------------------------------------------------------------------
@given(values=vectors)
def test_identity_is_exact(values):
    assert same_bits(Identity().decode(Identity().encode(values), len(values)), values)


@given(values=vectors)
def test_half_precision_is_within_its_bounds(values):
    # significands of 11 and 8 bits: half a unit in the last place is 2^-11 and 2^-8; subnormal halves are 2^-24 apart
    for codec, relative, absolute in ((FP16(), 2.0**-11, 2.0**-25), (BF16(), 2.0**-8, 2.0**-134)):
        error = (codec.decode(codec.encode(values), len(values)).double() - values.double()).abs()
        assert (error <= torch.clamp(relative * values.double().abs(), min=absolute)).all()


def test_half_precision_by_hand():
    values = torch.tensor([1.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 70000.0])  # ties go to the even neighbour
    assert_array_equal(FP16().decode(FP16().encode(values), 4), [1.0, 1.0, 1 + 2.0**-9, np.inf])
    assert bytes(FP16().encode(torch.tensor([1.0, -2.0]))) == bytes.fromhex("003c 00c0")  # little-endian
    assert bytes(BF16().encode(torch.tensor([1.0, -2.0]))) == bytes.fromhex("803f 00c0")


def test_half_precision_takes_floats_only():
    with pytest.raises(ValueError, match="int64"):
        FP16().encode(torch.arange(3))


# -- top-k ------------------------------------------------------------------------------------------------------------
@given(values=vectors, ratio=st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9, 1]))
def test_top_k_keeps_the_largest_and_of_equals_the_first(values, ratio):
    n, numbers = len(values), values.tolist()
    k = min(n, max(1, int(ratio * n)))
    kept = sorted(range(n), key=lambda i: (-abs(numbers[i]), i))[:k]
    expected = torch.zeros(n)
    for i in kept:
        expected[i] = numbers[i]
    codec = TopK(ratio=ratio)
    assert same_bits(codec.decode(codec.encode(values), n), expected)


@given(values=arrays.arrays(np.float32, (3, 30), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])))
def test_ties_in_some_rows_are_cut_alike_in_all(values):
    decoded = TopK(ratio=0.2).decode(TopK(ratio=0.2).encode(torch.from_numpy(values)), 30)
    for row, got in zip(values, decoded.numpy()):
        kept = np.sort(np.argsort(-np.abs(row), kind="stable")[:6])
        assert_array_equal(got, np.where(np.isin(np.arange(30), kept), row, 0))


def test_top_k_by_hand():
    # n=8, k=2: two indices of 3 bits are 6 bits, fewer than a bitmap of 8; 1 | 6 << 3 = 49
    values = torch.tensor([0.0, -3.0, 1.0, 0.0, 1.0, 0.5, 2.0, -2.0])
    encoded = TopK(ratio=0.25).encode(values)
    assert encoded.parts["positions"].tolist() == [49] and encoded.parts["values"].tolist() == [-3.0, 2.0]
    # k=4: 12 bits of indices, 8 of a bitmap with bits 1, 2, 6, 7 (entries 2 and 4 are equal; top-k keeps the first)
    encoded = TopK(ratio=0.5).encode(values)
    assert encoded.parts["positions"].tolist() == [0b11000110]
    assert encoded.parts["values"].tolist() == [-3.0, 1.0, 2.0, -2.0]


@pytest.mark.parametrize(
    ("n", "ratio", "k", "position_bytes"),
    [(1, 0.5, 1, 0), (100, 0.29, 29, 13), (1_000_000, 0.01, 10_000, 25_000), (1000, 1, 1000, 125), (1000, 1e-5, 1, 2)],
)
def test_top_k_sizes_on_paper(n, ratio, k, position_bytes):
    assert TopK(ratio=ratio).exact_size(n) == position_bytes + 4 * k
    encoded = TopK(ratio=ratio).encode(torch.arange(n).float())
    assert encoded.parts["positions"].shape == (position_bytes,) and encoded.parts["values"].shape == (k,)


def test_top_k_carries_large_positions():
    values = torch.zeros(300_000)
    values[[1, 65_536, 299_999]] = torch.tensor([1.0, 2.0, 3.0])
    assert_array_equal(TopK(ratio=1e-5).decode(TopK(ratio=1e-5).encode(values), 300_000), values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_top_k_refuses_what_has_no_order(bad):
    values = torch.ones(2, 9)
    values[1, 4] = bad
    with pytest.raises(ValueError, match="not finite.*on_client_error"):
        TopK(ratio=0.2).encode(values)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_top_k_refuses_a_share_that_is_none(ratio):
    with pytest.raises(ValueError, match=r"ratio: .* not in \(0, 1\]"):
        TopK(ratio=ratio)


# -- chains -----------------------------------------------------------------------------------------------------------
def test_chain_encodes_the_values_of_the_one_before():
    values = torch.tensor([0.0, 1 + 2.0**-12, 0.0, 0.0, -3.0, 0.0, 0.0, 0.5])
    encoded = Chain((TopK(ratio=0.25), FP16())).encode(values)
    assert bytes(encoded) == bytes([1 | 4 << 3]) + np.array([1, -3], "<f2").tobytes()  # positions 1, 4; halves
    assert_array_equal(Chain((TopK(ratio=0.25), FP16())).decode(encoded, 8), [0, 1, 0, 0, -3, 0, 0, 0])


def test_order_of_a_chain_matters():
    values = torch.tensor([1.0, 1 + 2.0**-12])  # equal in half precision
    keep, half = TopK(ratio=0.5), FP16()
    first, second = Chain((half, keep)), Chain((keep, half))
    assert first.decode(first.encode(values), 2).tolist() == [1.0, 0.0]  # a tie: top-k keeps the first
    assert second.decode(second.encode(values), 2).tolist() == [0.0, 1.0]
    assert first.exact_size(1000) == second.exact_size(1000) == 125 + 500 * 2
    assert Chain((FP16(), Identity())).elementwise and not second.elementwise


def test_chain_refuses_what_a_receiver_could_not_read():
    @dataclass(frozen=True)
    class Nonzero(Codec):
        """A codec whose size depends on the numbers."""

        def encode(self, values):
            return Encoded({"positions": values.nonzero()[:, 0], "values": values[values != 0]})

    chain = Chain((Nonzero(), FP16()))
    assert chain.exact_size(3) is None
    with pytest.raises(ValueError, match="only end a chain"):
        chain.decode(chain.encode(torch.ones(3)), 3)
    with pytest.raises(ValueError, match="empty chain"):
        Chain(())


def test_bytes_are_of_one_client():
    with pytest.raises(ValueError, match="one client"):
        bytes(Identity().encode(torch.zeros(2, 3)))


def test_codecs_are_found_by_name():
    assert [lookup("codec", name) for name in ("identity", "fp16", "bf16", "top_k")] == [Identity, FP16, BF16, TopK]


# -- groups -----------------------------------------------------------------------------------------------------------
def model(seed):
    draw = torch.Generator().manual_seed(seed)
    return Params.of(
        {
            "w": torch.randn(3, 5, generator=draw),
            "seen": torch.tensor([4, 5, 6]),
            "b": torch.randn(7, generator=draw),
            "d": torch.randn(2, generator=draw).double(),
        }
    )


def group(seed):
    return {
        "model": model(seed),
        "dense": (torch.full((2, 3), 1 + 2.0**-12), torch.arange(4)),
        "table": Table(torch.tensor([2, 9]), torch.full((2, 3), 1 + 2.0**-12), torch.tensor([5, 1])),
        "sparse": Sparse(torch.tensor([0, 7]), torch.full((2,), 1 + 2.0**-12), 10),
        "note": [1, 0.5, "text", None],
    }


# by hand: model 22 floats, 2 doubles, 3 int64 = 128; dense 6 floats, 4 int64 = 56;
# table 2 int64, 6 floats, 2 int64 = 56; sparse 2 floats = 8. Its positions are not payload and take 1 byte:
# two indices of 4 bits below 10
PAYLOAD, ARRAYS = 128 + 56 + 56 + 8, 4 + 2 + 3 + 2
POSITIONS = 1


@pytest.mark.parametrize("count", [None, 3])
def test_identity_delivers_the_very_tree(count):
    tree = group(0) if count is None else stack([group(c) for c in range(count)])
    arrived, sizes = transmit(Identity(), tree, count)
    assert arrived is tree and sizes == Sizes(PAYLOAD, PAYLOAD + POSITIONS, ARRAYS)


@pytest.mark.parametrize("count", [None, 3])
def test_cast_of_a_group(count):
    tree = group(0) if count is None else stack([group(c) for c in range(count)])
    arrived, sizes = transmit(FP16(), tree, count)
    # 2 bytes for each of 24 + 6 + 6 + 2 floating-point numbers; integers are unchanged: 24 + 32 + 32
    assert sizes == Sizes(PAYLOAD, 2 * 38 + 88 + POSITIONS, ARRAYS)
    for name in ("w", "b", "d"):
        assert same_bits(arrived["model"][name], tree["model"][name].half().to(tree["model"][name].dtype))
    assert arrived["model"].layout is tree["model"].layout and arrived["model"]["seen"].equal(tree["model"]["seen"])
    assert (arrived["dense"][0] == 1).all() and arrived["dense"][0].shape == tree["dense"][0].shape
    assert (arrived["table"].values == 1).all() and arrived["table"].keys.equal(tree["table"].keys)
    assert (arrived["sparse"].values == 1).all() and arrived["sparse"].size == 10
    assert arrived["note"] == tree["note"]


def test_top_k_of_a_group():
    tree = group(0)
    arrived, sizes = transmit(TopK(ratio=0.25), tree)
    # float32 of the model: 5 of 22, bitmap of 3 bytes (25 bits of indices); doubles: 1 of 2, 1 bit;
    # dense: 1 of 6, 3 bits; the values of table and sparse are sent unchanged
    assert sizes == Sizes(PAYLOAD, (3 + 20) + (1 + 8) + 24 + (1 + 4) + 32 + 56 + 8 + POSITIONS, ARRAYS)
    flat = np.concatenate(
        [tree["model"]["w"].numpy().ravel(), tree["model"]["b"].numpy()]
    )  # top-k sees w and b as one vector
    flat[np.argsort(-np.abs(flat), kind="stable")[5:]] = 0
    assert_array_equal(arrived["model"]["w"], flat[:15].reshape(3, 5))
    assert_array_equal(arrived["model"]["b"], flat[15:])
    assert arrived["dense"][0].flatten().tolist() == [1 + 2.0**-12, 0, 0, 0, 0, 0]
    assert arrived["table"].values is tree["table"].values and arrived["sparse"].values is tree["sparse"].values


@every_codec
def test_a_group_of_many_clients_equals_theirs_one_by_one(codec):
    trees = [{"model": model(c), "scale": torch.tensor(0.5 + c)} for c in range(4)]
    arrived, sizes = transmit(codec, stack(trees), 4)
    for c, tree in enumerate(trees):
        alone, size = transmit(codec, tree)
        assert size == sizes and same_bits(arrived["scale"][c], alone["scale"])
        assert all(same_bits(a[c], b) for a, b in zip(arrived["model"].buffers, alone["model"].buffers))


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="ndarray"):
        transmit(Identity(), {"model": np.zeros(3)})
