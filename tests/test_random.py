"""Addressed randomness: the hash compared with plain integers, distinct addresses, and arrays of addresses."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fl.tensors import random

WORD = 2**64
PARTS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5))


def splitmix(state: int) -> int:
    """Return one output of Steele, Lea and Flood's generator, from the state before its increment."""
    z = (state + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def test_the_twin_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    outputs = [splitmix((1234567 + k * golden) % WORD) for k in range(3)]  # the published test vector
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=5))
def test_hash_is_chained_splitmix64(address):
    golden = 0x9E3779B97F4A7C15
    word = splitmix((len(address) * golden - golden) % WORD)  # the finaliser of len * golden
    for part in address:
        word = splitmix(word ^ splitmix((part - golden) % WORD))
    assert int(random.hash64(*address)) == word


def test_addresses_are_unambiguous():
    addresses = [(), (0,), (1,), (0, 0), (1, 0), (0, 1), (1, 2), (12,), (2, 1), ("1",), ("a", "b"), ("ab",), ("b", "a")]
    addresses += [("a", 1), (1, "a"), (1, 0, 0), (0, 1, 0), (-1,), (2**63,), ("",), ("", "")]
    assert len({int(random.hash64(*a)) for a in addresses}) == len(addresses)


@given(st.lists(PARTS, min_size=1, max_size=3), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
def test_arrays_hash_as_their_elements(address, values):
    assert_array_equal(random.hash64(*address, np.array(values)), [int(random.hash64(*address, v)) for v in values])


def test_order_of_use_changes_nothing():
    clients = np.array([3, 0, 9])
    forward = [random.uniform(7, c, "x") for c in clients]
    backward = [random.uniform(7, c, "x") for c in clients[::-1]]
    assert forward == backward[::-1]
    first = random.torch_generator(1, 2, "noise")
    torch.rand(5, generator=random.torch_generator(1, 2, "other"))
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=random.torch_generator(1, 2, "noise")))


def test_uniform_is_uniform():
    draws = random.uniform(0, "test", np.arange(100_000))
    assert 0 <= draws.min() and draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(100_000)


@given(st.integers(0, 50), PARTS)
def test_permutation_is_one(n, part):
    assert sorted(random.permutation(n, part, "shuffle")) == list(range(n))


def test_all_permutations_are_equally_likely():
    seen = [tuple(random.permutation(3, k)) for k in range(6000)]
    counts = np.array([seen.count(p) for p in sorted(set(seen))])
    assert len(counts) == 6 and ((counts - 1000) ** 2 / 1000).sum() < 20.5  # 5 degrees of freedom, p = 0.001


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**31)), max_size=8), st.integers(0, 2**63 - 1))
def test_permutations_row_by_row(rows, seed):
    sizes, clients = (np.array([r[k] for r in rows], np.int64) for k in (0, 1))
    orders = random.permutations(sizes, seed, clients, "shuffle", 3)
    assert orders.shape == (len(rows), sizes.max(initial=0))
    for order, n, client in zip(orders, sizes, clients):
        assert_array_equal(order[:n], random.permutation(int(n), seed, int(client), "shuffle", 3))
        assert_array_equal(order[n:], np.arange(n, orders.shape[1]))


def test_generators_are_apart_by_address():
    assert random.numpy_generator(1).random() == random.numpy_generator(1).random()
    assert len({random.numpy_generator(*a).random() for a in [(1,), (1, 0), (0, 1), ("1",)]}) == 4
    assert len({random.torch_generator(*a).initial_seed() for a in [(1,), (1, 0), (0, 1), ("1",)]}) == 4
