"""Codes of positions: by hand, decoded again, and with the lengths of the papers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.communication.positions import code_positions, coded_bytes, decode_positions, golomb_bits

CODINGS = ("packed", "elias_fano", "golomb", "elias_gamma", "auto")


@st.composite
def some(draw):
    n = draw(st.integers(1, 400))
    return n, sorted(draw(st.sets(st.integers(0, n - 1))))


@pytest.mark.parametrize("coding", CODINGS)
@given(case=some())
def test_there_and_back(coding, case):
    n, chosen = case
    coded = code_positions(coding, torch.tensor(chosen, dtype=torch.int64), n)
    assert coded.dtype == torch.uint8 and coded.ndim == 1
    assert decode_positions(coding, coded, n, len(chosen)).tolist() == chosen
    assert coded_bytes(coding, n, len(chosen)) in (None, len(coded))


@pytest.mark.parametrize(
    ("coding", "positions", "expected"),
    [
        # gaps 0, 2; b = 1 (log .618 / log .75 = 1.67, 1 + floor(.74)): unary of 0 and 1, then two low bits 0: 1 01 0 0
        ("golomb", [0, 3], 0b00101),
        # 1 and 3 = 2^1 + 1: unary of 0 and 1, then the bit 1: 1 01 1
        ("elias_gamma", [0, 3], 0b1101),
        # l = 1: low bits 1, 0; upper parts 0, 3: 1, then 000 and 1:  1 0  1 0001
        ("elias_fano", [1, 6], 0b1000101),
        ("packed", [1, 6], 0b110001),  # 1 | 6 << 3
    ],
)
def test_two_of_eight_by_hand(coding, positions, expected):
    assert code_positions(coding, torch.tensor(positions), 8).tolist() == [expected]


def test_golomb_takes_the_bits_of_the_paper():
    """Sattler et al., eq. 17: b* + 1 / (1 - (1-p)^(2^b*)) bits per position; 8.108 for p = .01, where b* = 6."""
    n, k = 1_000_000, 10_000
    assert golomb_bits(n, k) == 6 and golomb_bits(400, 1) == 8
    chosen = np.sort(np.random.default_rng(0).choice(n, k, replace=False))
    bits = 8 * len(code_positions("golomb", torch.from_numpy(chosen), n)) / k
    assert bits == pytest.approx(6 + 1 / (1 - 0.99**64), rel=0.005) == pytest.approx(8.108, rel=0.005)


def test_sizes_on_paper():
    # 10,000 of a million: 20 bits each; with l = 6: 7 bits each, and the upper part of the last, 999,999 >> 6 = 15,624
    assert coded_bytes("packed", 1_000_000, 10_000) == 25_000
    assert coded_bytes("elias_fano", 1_000_000, 10_000) == math.ceil((70_000 + 15_624) / 8) == 10_703
    assert coded_bytes("auto", 1_000_000, 10_000) == 10_703
    assert coded_bytes("auto", 1000, 1000) == 125  # a bitmap
    assert coded_bytes("golomb", 1000, 10) is None is coded_bytes("elias_gamma", 1000, 10)


def test_elias_gamma_is_as_long_as_its_codes():
    chosen = [2, 3, 40, 1000]  # gaps + 1 = 3, 1, 37, 960; 2 floor(log2) + 1 bits each: 3 + 1 + 11 + 19
    assert len(code_positions("elias_gamma", torch.tensor(chosen), 2000)) == math.ceil(34 / 8)
