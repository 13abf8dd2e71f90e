"""Families of codecs: bits computed by hand, errors from closed forms and from the papers.

The laws of `fl.check.check` hold for every codec: real bytes, batches, bias, bounds, non-finite numbers. Here they run
for settings that are not the default.
"""

import math
import tracemalloc
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import scipy.linalg
import torch
from numpy.testing import assert_allclose, assert_array_equal

from fl.check.check import check
from fl.communication.bits import pack_bits, unpack_bits
from fl.communication.chain import Chain
from fl.communication.codec import RaggedTensor, decode, encode
from fl.communication.codecs.block_float import BlockFloat
from fl.communication.codecs.cast import FP16
from fl.communication.codecs.count_sketch import CountSketch
from fl.communication.codecs.eden import Eden, centroids
from fl.communication.codecs.hadamard import Hadamard, hadamard_transform
from fl.communication.codecs.k_means import KMeans
from fl.communication.codecs.k_means import centroids as k_means_centroids
from fl.communication.codecs.low_rank import LowRank
from fl.communication.codecs.quantise import Quantise
from fl.communication.codecs.random_k import RandomK
from fl.communication.codecs.sign import Sign
from fl.communication.codecs.ternary import Ternary
from fl.communication.codecs.threshold import Threshold
from fl.communication.codecs.top_k import TopK, largest_positions
from fl.communication.codecs.zstd import Zstd
from fl.communication.transmit import transmit
from fl.tensors.params import Params
from fl.tensors.random import hash64
from fl.tensors.trees import stack


def through(codec, values, key=0):
    return decode(codec, encode(codec, values, key), values.shape[-1], key)


def over_keys(codec, values, count):
    """Decode the values once for each of `count` keys, (count, n)."""
    return through(codec, values.repeat(count, 1), hash64("test", np.arange(count))).double()


def normal(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


SETTINGS = {
    "quantise": [
        {"mode": "nearest"},
        {"norm": "l2", "bits": 4},
        {"bucket": 16, "bits": 5},
        {"bits": 2},
        {"bits": 7, "bucket": 8, "norm": "l2"},
    ],
    "block_float": [{"mode": "stochastic"}, {"bits": 4, "block": 8}, {"bits": 3, "mode": "stochastic"}],
    "ternary": [{"mode": "stochastic"}],
    "random_k": [{"scale": False}, {"ratio": 1}, {"ratio": 0.01}],
    "eden": [{"bits": 4}, {"scale": "least"}, {"bits": 2, "scale": "least", "block": 16}, {"block": 8}],
    "k_means": [{"levels": 2}, {"levels": 5, "iterations": 1}, {"levels": 256}],
    "top_k": [{"positions": p} for p in ("golomb", "elias_gamma", "elias_fano", "auto")],
    "threshold": [{"value": 0}, {"value": 0.7, "relative": True, "positions": "golomb"}],
    "zstd": [{"shuffle": False}],
    "low_rank": [{"rank": 1}, {"rank": 100}],
    "count_sketch": [{"rows": 3}],
    "hadamard": [{"block": 16}],
}


@pytest.mark.parametrize(("name", "arguments"), [(name, a) for name, each in SETTINGS.items() for a in each])
def test_laws_of_other_settings(name, arguments):
    assert [(f.law, f.detail) for f in check(f"codec:{name}", **arguments) if not f.ok] == []


# -- bits -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1001])
def test_bits_are_packed_lowest_first(bits, n):
    numbers = np.random.default_rng(n).integers(0, 1 << bits, (2, n)).astype(np.uint8)
    expected = np.packbits((numbers[..., None] >> np.arange(bits) & 1).reshape(2, -1), axis=-1, bitorder="little")
    assert_array_equal(pack_bits(numbers, bits), expected)
    assert_array_equal(unpack_bits(expected, n, bits), numbers)


# -- quantise ---------------------------------------------------------------------------------------------------------
def test_quantise_by_hand():
    # 3 bits: s = 3, step 1; levels 3, -1, 0, 2 are 6, 2, 3, 5 in 3 bits each: 6 | 2 << 3 | 3 << 6 | 5 << 9 = 0xAD6
    values = torch.tensor([3.0, -1.4, 0.4, 1.6])
    encoded = encode(Quantise(bits=3, mode="nearest"), values)
    assert encoded.parts["scale"].tolist() == [3.0] and encoded.parts["values"].tolist() == [0xD6, 0x0A]
    assert through(Quantise(bits=3, mode="nearest"), values).tolist() == [3, -1, 0, 2]


def test_quantise_rounds_up_as_often_as_it_must():
    """A value at 0.3 of the way between two levels is rounded up in 30 % of the draws (within 4 standard errors)."""
    values = torch.tensor([127.0, 5.3, -5.3, 0.0])
    arrived = over_keys(Quantise(bits=8), values, 20_000)
    upper = (arrived == torch.tensor([127.0, 6.0, -5.0, 0.0])).double().mean(0)
    assert set(arrived[:, 1].tolist()) == {5.0, 6.0} and set(arrived[:, 2].tolist()) == {-5.0, -6.0}
    assert_allclose(upper, [1, 0.3, 0.7, 1], atol=4 * math.sqrt(0.21 / 20_000))


@pytest.mark.parametrize("bits", [2, 4])
def test_qsgd_has_the_papers_variance(bits):
    """E|error|^2 = |v|^2 / s^2 sum_i f_i (1 - f_i); f_i is the position between two levels.

    It is below min(n / s^2, sqrt(n) / s) |v|^2 (Lemma 3.1).
    """
    values, s = normal(500), 2 ** (bits - 1) - 1
    square = float(values.double().square().sum())
    fraction = (values.double().abs() / math.sqrt(square) * s) % 1
    expected = square / s**2 * float((fraction * (1 - fraction)).sum())
    error = (over_keys(Quantise(bits=bits, norm="l2"), values, 2000) - values.double()).square().sum(-1)
    assert float(error.mean()) == pytest.approx(expected, rel=0.03)
    assert expected <= min(500 / s**2, math.sqrt(500) / s) * square


def test_each_bucket_has_its_scale():
    values = torch.cat([torch.full((8,), 1.0), torch.full((8,), 100.0), torch.full((3,), 0.25)])
    codec = Quantise(bits=2, mode="nearest", bucket=8)
    assert encode(codec, values).parts["scale"].tolist() == [1.0, 100.0, 0.25]
    assert through(codec, values).equal(values)


# -- k-means ----------------------------------------------------------------------------------------------------------
def test_k_means_by_hand():
    values = torch.tensor([0.0, 10.0, 1.0, 12.0, 0.5])  # indices 0, 1, 0, 1, 0 in one bit each: 0b01010
    encoded = encode(KMeans(levels=2), values)
    assert encoded.parts["centroids"].tolist() == [0.5, 11.0] and encoded.parts["values"].tolist() == [0b01010]
    assert through(KMeans(levels=2), values).tolist() == [0.5, 11.0, 0.5, 11.0, 0.5]
    assert encoded.nbytes == 2 * 4 + 1 == KMeans(levels=2).exact_size(5)


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (16, 4), (17, 5), (256, 8)])
def test_k_means_takes_its_centroids_and_packed_indices(levels, bits):
    encoded = encode(KMeans(levels=levels), normal(1001).expand(2, -1))
    assert encoded.nbytes == 4 * levels + math.ceil(1001 * bits / 8)


def test_k_means_is_exact_for_as_many_numbers_as_it_has_centroids():
    numbers = torch.tensor([-3.5, 0.0, 1e-30, 1.0, 1.0000001])
    values = numbers[torch.randint(5, (3, 500), generator=torch.Generator().manual_seed(0))]
    assert through(KMeans(levels=5), values).equal(values)
    behind = Chain((TopK(ratio=0.1), KMeans(levels=5)))  # SKC: the kept numbers are exact
    assert through(behind, values[0]).equal(through(TopK(ratio=0.1), values[0]))


@pytest.mark.parametrize("levels", [2, 7, 16])
def test_k_means_finds_the_centroids_of_scikit_learn(levels):
    from sklearn.cluster import KMeans as Reference

    x = normal(400).exp().numpy()  # distinct, and skew
    starts = np.sort(x)[((np.arange(levels) + 0.5) * len(x) / levels).astype(int)][:, None]
    theirs = Reference(levels, init=starts, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(x[:, None])
    assert_allclose(k_means_centroids(x, levels, 300), np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-5)
    error = float((through(KMeans(levels=levels, iterations=300), torch.tensor(x)) - torch.tensor(x)).square().sum())
    assert error == pytest.approx(theirs.inertia_, rel=1e-5)


# -- signs and trits --------------------------------------------------------------------------------------------------
def test_sign_by_hand():
    values = torch.tensor([1.0, -2.0, 3.0, -4.0])
    encoded = encode(Sign(), values)
    assert encoded.parts["scale"].tolist() == [2.5] and encoded.parts["values"].tolist() == [0b1010]
    assert through(Sign(), values).tolist() == [2.5, -2.5, 2.5, -2.5]


def test_sign_has_the_error_of_the_closed_form():
    values = normal(1000)
    error = float((through(Sign(), values).double() - values.double()).square().sum())
    v = values.numpy().astype(np.float64)
    assert error == pytest.approx((v**2).sum() - np.abs(v).sum() ** 2 / 1000, rel=1e-6)


def test_ternary_by_hand():
    # levels 1, 2, 0, 1, 1 | 2: 1 + 3 * 2 + 27 + 81 = 115, 2; the scale is the mean of 3, 1, 2
    values = torch.tensor([0.0, 3.0, -1.0, 0.0, 0.0, 2.0])
    encoded = encode(Ternary(), values)
    assert encoded.parts["scale"].tolist() == [2.0] and encoded.parts["values"].tolist() == [115, 2]
    assert through(Ternary(), values).tolist() == [0, 2, -2, 0, 0, 2]


def test_sparse_ternary_compression_as_in_the_paper():
    """Algorithm 1: the signs of the top k, times their mean magnitude.

    Entropy: k (b* + 1 / (1 - (1-p)^(2^b*)) + 1) bits.
    """
    values, p = normal(400_000), Decimal("0.0025")
    k = int(p * 400_000)
    v = values.numpy().astype(np.float64)
    top = np.argsort(-np.abs(v), kind="stable")[:k]
    expected = np.zeros(400_000)
    expected[top] = np.sign(v[top]) * np.abs(v[top]).mean()
    chain = Chain((TopK(ratio=float(p), positions="golomb"), Ternary()))
    assert_allclose(through(chain, values), expected, rtol=1e-6)
    with_signs = Chain((TopK(ratio=float(p), positions="golomb"), Sign()))
    assert_allclose(through(with_signs, values), expected, rtol=1e-6)
    bits = k * (8 + 1 / (1 - 0.9975**256) + 1)
    assert 8 * encode(with_signs, values).nbytes == pytest.approx(bits, rel=0.02)


def test_terngrad_sends_the_share_that_it_must():
    values = torch.tensor([2.0, -0.5, 0.0])
    arrived = over_keys(Ternary(mode="stochastic"), values, 20_000)
    assert set(arrived[:, 1].tolist()) == {0.0, -2.0}
    assert float((arrived[:, 1] != 0).double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 20_000))


# -- block floats -----------------------------------------------------------------------------------------------------
def test_block_float_by_hand():
    # 4 bits: s = 7. Two blocks of 8: the largest is 7 (step 2^0) or 7.5 (step 2^1, because 7 steps of 1 are too few)
    values = torch.tensor([7.0, -3.0, 1.2, 0, 0, 0, 0, 0, 7.5, 0.9, -4.1, 0, 0, 0, 0, 0, 0, 0])
    codec = BlockFloat(bits=4, block=8)
    assert encode(codec, values).parts["exponents"].tolist() == [127, 128, 0]
    assert through(codec, values).tolist() == [7, -3, 1, 0, 0, 0, 0, 0, 8, 0, -4, 0, 0, 0, 0, 0, 0, 0]
    assert codec.exact_size(18) == 3 + 9


# -- rotations --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", [1, 2, 8, 128, 512, 4096])
def test_the_transform_is_the_hadamard_matrix(m):
    x = np.random.default_rng(m).standard_normal((3, m)).astype(np.float32)
    expected = x.astype(np.float64) @ scipy.linalg.hadamard(m) / math.sqrt(m)
    hadamard_transform(x)
    assert_allclose(x, expected, atol=2e-5)


def test_a_rotation_keeps_the_norm_and_spreads_a_spike():
    spike = torch.zeros(5000)
    spike[17] = 3.0
    rotated = encode(Hadamard(), spike, 5).parts["values"]
    assert_allclose(rotated.abs(), np.full(8192, 3 / math.sqrt(8192)), rtol=1e-5)
    assert_allclose(through(Hadamard(), spike, 5), spike, atol=1e-6)
    assert len(encode(Hadamard(), torch.zeros(20_000)).parts["values"]) == 32_768  # two blocks of 2^14


def test_levels_are_those_of_max_1960():
    assert_allclose(centroids(1), [-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)], rtol=1e-9)
    assert_allclose(centroids(2)[2:], [0.4528, 1.510], atol=5e-4)
    assert_allclose(centroids(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=5e-4)


@pytest.mark.parametrize("shape", ["normal", "heavy tails"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, math.pi / 2 - 1),  # DRIVE, theorem 3 and table 1
        ({"scale": "least"}, 1 - 2 / math.pi),
        ({"bits": 2}, 1 / (1 - 0.11748) - 1),  # EDEN: 1 / (1 - Lloyd-Max distortion) - 1
        ({"bits": 4}, 1 / (1 - 0.009497) - 1),
    ],
)
def test_drive_and_eden_have_the_papers_error(arguments, expected, shape):
    values = normal(1 << 16, 3) if shape == "normal" else normal(1 << 16, 3) ** 5
    error = [
        (through(Eden(**arguments), values, key) - values).square().sum() / values.square().sum() for key in range(3)
    ]
    assert float(np.mean(error)) == pytest.approx(expected, rel=0.03)


# -- sparsity ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [50, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_k_takes_every_entry_equally_often(n):
    values, k, count = normal(n), n // 10, 300 if n > 100 else 4000
    arrived = over_keys(RandomK(ratio=0.1), values, count)
    chosen = (arrived != 0).double()
    assert (chosen.sum(-1) == k).all()
    assert_allclose(arrived[chosen > 0], (10 * values.double()).repeat(count, 1)[chosen > 0], rtol=1e-6)
    share = chosen.mean(0)
    spread = math.sqrt(0.09 / count)
    assert float((share - 0.1).abs().max()) < 6 * spread
    assert float(share.std()) == pytest.approx(spread, rel=0.3)
    error = (arrived - values.double()).square().sum(-1).mean() / values.double().square().sum()
    assert float(error) == pytest.approx(9, rel=0.1)  # n/k - 1


def test_positions_of_random_k_take_no_bytes():
    assert RandomK(ratio=0.01).exact_size(1_000_000) == 40_000 == encode(RandomK(ratio=0.01), normal(1_000_000)).nbytes


def test_threshold_by_hand():
    values = torch.tensor([0.0, -3.0, 1.0, 0.0, 1.0, 0.5, 2.0, -2.0])
    encoded = encode(Threshold(value=2, positions="packed"), values)
    # three of eight: a bitmap of 8 bits, 1, 6 and 7
    assert encoded.parts["count"].tolist() == [3] and encoded.parts["positions"].tolist() == [0b11000010]
    assert encoded.parts["values"].tolist() == [-3, 2, -2] and encoded.nbytes == 4 + 1 + 12
    assert through(Threshold(value=0.5, relative=True), values).tolist() == [0, -3, 0, 0, 0, 0, 2, -2]


@pytest.mark.parametrize("kind", ["normal", "double", "ties", "zeros", "few", "misleading sample"])
def test_top_k_of_long_vectors_is_what_sorting_gives(kind):
    n, draw = 200_000, np.random.default_rng(1)
    v = {
        "normal": lambda: draw.standard_normal(n).astype(np.float32),
        "double": lambda: draw.standard_normal(n) * (1 + 1e-12),
        "ties": lambda: draw.integers(-3, 4, n).astype(np.float32),
        "zeros": lambda: np.zeros(n, np.float32),
        "few": lambda: draw.standard_normal(n).astype(np.float32) * (draw.random(n) < 1e-3),
        "misleading sample": lambda: (np.arange(n) % 12 == 0) * draw.standard_normal(n).astype(np.float32),
    }[kind]()
    for k in (1, 2000, 60_000, n):
        expected = np.sort(np.argsort(-np.abs(v), kind="stable")[:k])
        assert_array_equal(largest_positions(torch.from_numpy(np.asarray(v)), k), expected)


# -- sketches, low rank, zstd -----------------------------------------------------------------------------------------
def test_a_sketch_is_linear_and_has_the_papers_variance():
    a, b, codec = normal(300, 1), normal(300, 2), CountSketch(ratio=0.2)
    tables = [encode(codec, v, 9).parts["values"] for v in (a, b, a + b)]
    assert_allclose(tables[0] + tables[1], tables[2], atol=1e-5)
    one = torch.zeros(300)
    one[7] = -2.0
    assert through(codec, one, 3)[7] == -2.0
    # the variance of an estimate is (|v|^2 - v_i^2) / w, w = 60
    error = (over_keys(codec, a, 4000) - a.double()).square().mean(0)
    expected = (a.double().square().sum() - a.double().square()) / 60
    assert_allclose(error, expected, rtol=0.25)
    assert float(error.sum()) == pytest.approx(float(expected.sum()), rel=0.03)


def test_low_rank_sends_what_has_that_rank():
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(40, 3, generator=draw) @ torch.randn(3, 60, generator=draw)
    group = Params.of({"w": exact.reshape(40, 6, 10), "b": torch.randn(7, generator=draw)})
    arrived, sizes = transmit(LowRank(rank=3), group)
    assert_allclose(arrived["w"], group["w"], atol=1e-5)  # as a matrix: first axis x all other axes
    assert arrived["b"].equal(group["b"]) and sizes.encoded_bytes == 4 * (3 * (40 + 60) + 7)
    # one power step from a random start is close to the best matrix of that rank (Eckart, Young)
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 50)) * 0.7 ** np.arange(50)).float()
    best = float(torch.linalg.svdvals(matrix)[3:].square().sum().sqrt())
    arrived, _ = transmit(LowRank(rank=3), matrix)
    assert best <= float((arrived - matrix).norm()) < 1.5 * best


def test_zstd_is_zstd():
    values = torch.arange(1000).float().round() / 8
    encoded = encode(Zstd(level=7, shuffle=False), values)
    frame = bytes(encoded)[5:]
    assert pa.Codec("zstd").decompress(frame, 4000).to_pybytes() == values.numpy().tobytes()
    assert through(Zstd(), values).equal(values) and encode(Zstd(), values).nbytes < 2000
    noise = torch.randint(0, 256, (1000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert encode(Zstd(), noise).nbytes == 1005 and through(Zstd(), noise).equal(noise)


# -- codecs whose size depends on the numbers -------------------------------------------------------------------------
CHAINS = [
    Chain((TopK(ratio=0.1, positions="golomb"), Quantise(), Zstd())),
    Chain((Threshold(value=0.8), FP16())),
    Chain((Threshold(value=0.8, positions="elias_gamma"), Hadamard(block=8), Quantise(bits=4), Zstd())),
    Chain((Hadamard(), Quantise(bits=2))),
    Chain((RandomK(ratio=0.2), Ternary(mode="stochastic"))),
]


@pytest.mark.parametrize("codec", CHAINS, ids=str)
def test_many_clients_at_once_equal_one_by_one(codec):
    trees = [
        {"model": Params.of({"w": normal(60, c), "b": normal(5, 9 + c).double()}), "x": normal(30, c)} for c in range(4)
    ]
    keys = hash64("test", np.arange(4))
    arrived, sizes = transmit(codec, stack(trees), 4, keys)
    counted = np.broadcast_to(sizes.encoded_bytes, 4)
    for c, tree in enumerate(trees):
        alone, size = transmit(codec, tree, None, keys[c])
        assert size.encoded_bytes == counted[c] and size.payload_bytes == sizes.payload_bytes
        assert alone["x"].equal(arrived["x"][c])
        assert all(a[c].equal(b) for a, b in zip(arrived["model"].buffers, alone["model"].buffers))


def test_what_is_long_as_it_must_be_is_counted_per_client():
    rows = torch.zeros(2, 100)
    rows[1] = normal(100)
    encoded = encode(CHAINS[0], rows)
    assert isinstance(encoded.parts["0.positions"], RaggedTensor)
    assert encoded.nbytes.tolist() == [len(bytes(encoded.row(c))) for c in range(2)]
    assert encoded.nbytes[0] != encoded.nbytes[1]


def test_leaves_of_a_group_draw_apart():
    arrived, _ = transmit(RandomK(ratio=0.5), {"a": torch.ones(64), "b": torch.ones(64)})
    assert not arrived["a"].equal(arrived["b"])
    again, _ = transmit(RandomK(ratio=0.5), {"a": torch.ones(64), "b": torch.ones(64)}, None, 1)
    assert not arrived["a"].equal(again["a"])


# -- long vectors -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("codec", "extra"),
    [
        (Sign(), 8),
        (Quantise(), 8),
        (Quantise(bits=4, bucket=512), 8),
        (Ternary(), 8),
        (BlockFloat(), 8),
        (TopK(ratio=0.001, positions="auto"), 8),
        (RandomK(ratio=0.001), 8),
        (CountSketch(ratio=0.01), 12),
    ],
    ids=str,
)
def test_a_long_vector_takes_little_memory_besides_its_output(codec, extra):
    """16 million numbers (64 MiB) take at most `extra` MiB and three times the output."""
    values = torch.linspace(-1, 1, 1 << 24)
    tracemalloc.start()
    encoded = encode(codec, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (extra << 20) + 3 * encoded.nbytes
