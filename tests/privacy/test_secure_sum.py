"""Secure sums: every drop-out pattern, overflow, what the server sees, and the cryptography below."""

import itertools
import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fl.method.reduction import Meta, Product, Sum, WeightedMean
from fl.privacy.secure import shamir
from fl.privacy.secure.keys import KeyPair, opened, sealed
from fl.privacy.secure.masks import expand, signed
from fl.privacy.secure.messages import message_bytes
from fl.privacy.secure.quantiser import Quantiser, smallest_width
from fl.privacy.secure.secagg import SecAgg
from fl.privacy.secure.secagg_plus import SecAggPlus, ring_graph, smallest_graph
from fl.privacy.secure.section import SecureAggregation
from fl.privacy.secure.secure_sum import SecureSum
from fl.privacy.secure.session import Session, root_of
from fl.tensors.params import Params

CLIENTS, IDS = 5, np.array([2, 3, 7, 11, 40])
WEIGHTS = [4, 1, 10, 7, 3]
UPDATES = np.random.default_rng(0).uniform(-0.5, 0.5, (CLIENTS, 23)).astype(np.float32)


def session(protocol, joined=(True,) * CLIENTS, masks=True, width=28, seed=1):
    root = root_of(seed, 4, "reproducible") if masks else None
    return Session(protocol, IDS[np.array(joined)], CLIENTS, width, root, 9)


def secure_sum(of, bits=16, rounding="nearest"):
    quantiser = SecureAggregation(bits=bits, rounding=rounding).quantiser(CLIENTS, 10)
    assert quantiser.width <= of.width
    quantiser = Quantiser(1.0, bits, rounding == "stochastic", of.width, 10)
    return SecureSum(Product({"model": WeightedMean()}), quantiser, 1, 4, 1, masking=of.masking)


def words_of(rule, client):
    update = Params.of(
        {"w": torch.from_numpy(UPDATES[client, :20]).reshape(4, 5), "b": torch.from_numpy(UPDATES[client, 20:])}
    )
    return rule.lift({"model": update}, Meta(int(IDS[client]), WEIGHTS[client]))


def total_of(rule, clients):
    acc = None
    for client in clients:
        own = words_of(rule, client)
        acc = own if acc is None else rule.merge(acc, own)
    return acc


@pytest.mark.parametrize("protocol", [SecAgg(threshold=0.6), SecAggPlus(degree=2, threshold=0.5)])
def test_every_drop_out_pattern_of_five_clients(protocol):
    """Each client leaves after the key exchange, or sends its vector only, or answers the unmasking, too."""
    of = session(protocol)
    rule, step = secure_sum(of), 1 / (2**15 - 1)
    words = [words_of(rule, client) for client in range(CLIENTS)]
    states = itertools.product((0, 1, 2), repeat=CLIENTS)
    opened_sums = 0
    for state in states:
        included, answering = np.array(state) > 0, np.array(state) == 2
        if not included.any():
            continue
        enough = all(
            answering[of.holders(place)].sum() >= of.threshold
            for place in range(CLIENTS)
            if included[place] or included[of.neighbours[place]].any()
        )
        assert bool(of.too_few(included, answering)) == (not enough)
        if isinstance(protocol, SecAgg):
            assert enough == (answering.sum() >= 3)
        if not enough:
            continue
        total = sum(words[c].words.numpy().astype(np.uint64) for c in np.flatnonzero(included)).astype(np.uint32)
        value, clipped = rule.opened(of.unmask(total, included, answering), words[0].form, int(included.sum()))
        weights = np.array(WEIGHTS) * included
        expected = (UPDATES.astype(np.float64) * weights[:, None]).sum(0) / weights.sum()
        found = torch.cat([value["model"]["w"].reshape(-1), value["model"]["b"]]).double().numpy()
        bound = included.sum() * step / (2 * weights.sum())
        assert np.abs(found - expected).max() <= bound + 1e-7  # 1e-7: the result is float32
        assert clipped == 0
        opened_sums += 1
    # at least three of five answer: 10 x 2^2 + 5 x 2 + 1 patterns
    assert opened_sums == 51 if isinstance(protocol, SecAgg) else opened_sums > 20


def test_clients_that_leave_during_the_key_exchange_are_no_neighbours():
    for joined in itertools.product((False, True), repeat=CLIENTS):
        if sum(joined) < 3:
            continue
        of = session(SecAgg(threshold=0.6), joined)
        rule, clients = secure_sum(of), np.flatnonzero(joined)
        everybody = np.ones(len(clients), bool)
        acc = total_of(rule, clients)
        unmasked = of.unmask(acc.words.numpy().view(np.uint32), everybody, everybody)
        plain = total_of(secure_sum(session(SecAgg(), joined, masks=False)), clients)
        np.testing.assert_array_equal(unmasked, plain.words.numpy().view(np.uint32) & np.uint32(2**28 - 1))


def test_a_sum_of_groups_without_weights():
    of = session(SecAgg())
    quantiser = Quantiser({"control": 2.0}, 12, True, of.width, 1)
    rule = SecureSum(Product({"control": Sum()}), quantiser, 1, 4, 0, masking=of.masking)
    values = [torch.full((3,), float(k)) / 4 for k in range(CLIENTS)]
    accs = [rule.lift({"control": value}, Meta(int(IDS[k]), 5)) for k, value in enumerate(values)]
    acc = accs[0]
    for other in accs[1:]:
        acc = rule.merge(acc, other)
    everybody = np.ones(CLIENTS, bool)
    value, _ = rule.opened(of.unmask(acc.words.numpy().view(np.uint32), everybody, everybody), acc.form, CLIENTS)
    assert float((value["control"] - 2.5).abs().max()) < CLIENTS * 2.0 / 2047  # stochastic: a step per client


def test_stacked_clients_have_the_words_of_single_ones():
    of = session(SecAgg())
    rule = secure_sum(of, rounding="stochastic")
    single = [words_of(rule, client) for client in range(CLIENTS)]
    tensors = {"w": torch.from_numpy(UPDATES[:, :20]).reshape(5, 4, 5), "b": torch.from_numpy(UPDATES[:, 20:])}
    layout = Params.of({name: tensor[0] for name, tensor in tensors.items()}).layout
    stacked = layout.zeros(CLIENTS).copy_(tensors)
    together = rule.lift({"model": stacked}, Meta(torch.from_numpy(IDS), torch.tensor(WEIGHTS)))
    assert together.form == single[0].form
    assert torch.equal(together.words, torch.stack([own.words for own in single]))


# -- what the server sees ---------------------------------------------------------------------------------------------
def p_uniform(words, width):
    """Return the p-value of words being uniform below 2^width: chi-square over 64 bins."""
    counts = np.bincount((words >> (width - 6)).astype(int), minlength=64)
    return stats.chisquare(counts).pvalue


def test_the_server_sees_nothing_but_the_sum():
    """Vectors of single clients, and sums of all but one, are uniform whatever was sent. The whole sum is not."""
    of = Session(SecAgg(), IDS, CLIENTS, 20, root_of(1, 4, "reproducible"), 9)
    quantiser = Quantiser(1.0, 8, False, 20, 10)
    rule = SecureSum(Product({"model": WeightedMean()}), quantiser, 1, 4, 1, masking=of.masking)
    bare = SecureSum(Product({"model": WeightedMean()}), quantiser, 1, 4, 1)
    same = torch.full((8000,), 0.25)  # all clients send the same number 8,000 times
    masked = [rule.lift({"model": same}, Meta(int(c), w)).words.numpy().view(np.uint32) for c, w in zip(IDS, WEIGHTS)]
    plain = [bare.lift({"model": same}, Meta(int(c), w)).words.numpy().view(np.uint32) for c, w in zip(IDS, WEIGHTS)]
    cut = np.uint32(2**20 - 1)
    for own, before in zip(masked, plain):
        assert p_uniform(own, 20) > 1e-4
        assert p_uniform(before & cut, 20) < 1e-100
        assert abs(np.corrcoef(own[:8000], np.arange(8000))[0, 1]) < 0.05
    for left_out in range(CLIENTS):
        assert p_uniform(sum(masked[c] for c in range(CLIENTS) if c != left_out) & cut, 20) > 1e-4
    assert p_uniform(sum(masked) & cut, 20) > 1e-4  # the self masks are still there
    everybody = np.ones(CLIENTS, bool)
    np.testing.assert_array_equal(of.unmask(sum(masked), everybody, everybody), sum(plain) & cut)


def test_other_exchanges_have_other_masks():
    one, two = (secure_sum(session(SecAgg(), seed=seed)) for seed in (1, 2))
    assert (words_of(one, 0).words != words_of(two, 0).words).float().mean() > 0.99
    assert len({root_of(1, 4, "cryptographic") for _ in range(3)}) == 3


# -- quantisation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cohort, weight, bits", [(1, 1, 2), (3, 1, 2), (5, 10, 8), (100, 400, 16), (1000, 7, 20)])
def test_the_largest_sums_do_not_overflow_and_a_bit_less_would(cohort, weight, bits):
    width, levels = smallest_width(bits, cohort, weight), 2 ** (bits - 1) - 1
    largest = cohort * weight * levels
    assert -(2 ** (width - 1)) <= -largest and largest < 2 ** (width - 1)
    assert cohort * (weight * levels + 1) >= 2 ** (width - 2)
    quantiser = Quantiser(1.0, bits, True, width, weight)
    out = np.empty(4, np.uint32 if width <= 32 else np.uint64)
    clipped = quantiser.quantised(np.array([9.0, -9.0, weight, -weight], np.float32), "model", weight, 3, out)
    assert clipped == (2 if 9.0 > weight else 0)
    total = signed((out.astype(object) * cohort % 2**width).astype(out.dtype), width)
    expected = [largest, -largest] if 9.0 > weight else list(total[:2])
    assert total.tolist() == [*expected, largest, -largest]


def test_random_rounding_is_unbiased():
    quantiser = Quantiser(1.0, 4, True, 20, 1)
    values, out = np.full(200_000, 0.3, np.float32), np.empty(200_000, np.uint32)
    quantiser.quantised(values, "model", 1.0, 5, out)
    found = signed(out, 20) * quantiser.step("model")
    assert set(np.unique(signed(out, 20))) == {2, 3}  # 0.3 x 7 = 2.1
    assert abs(found.mean() - 0.3) < 4 * quantiser.step("model") * math.sqrt(0.09 / 200_000)


# -- cryptography -----------------------------------------------------------------------------------------------------
def test_masks_are_aes_in_counter_mode():
    """The stream is the encryption of 0, 1, 2, ... as blocks, big-endian."""
    key = bytes(range(16))
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(3))
    np.testing.assert_array_equal(expand(key, 10, 32), np.frombuffer(blocks, np.uint32)[:10])
    np.testing.assert_array_equal(expand(key, 5, 33), np.frombuffer(blocks, np.uint64)[:5])


def test_both_ends_agree_and_sealed_messages_cannot_be_altered():
    one, two = KeyPair(123, "channel"), KeyPair(456, "channel")
    key = one.agree(two.public)
    assert key == two.agree(one.public) and key != one.agree(one.public)
    message = sealed(key, True, b"share")
    assert opened(key, True, message) == b"share" and len(message) == len(b"share") + 16
    with pytest.raises(Exception):
        opened(key, True, bytes([message[0] ^ 1]) + message[1:])


def test_shamir():
    """Any t shares give the secret; t - 1 shares fit every secret: there is a polynomial for each."""
    secret, coefficients = 2**126 + 12345, [7**40, 3**70 % shamir.PRIME]
    shares = {x: shamir.share(secret, coefficients, x) for x in range(1, 7)}
    for points in itertools.combinations(shares, 3):
        assert shamir.combine({x: shares[x] for x in points}) == secret
    for other in (0, 1, shamir.PRIME - 1):  # a third share that makes the secret another one
        third = {0: other, 1: shares[1], 2: shares[2]}
        at_three = sum(
            value * math.prod((3 - y) * pow(x - y, -1, shamir.PRIME) for y in third if y != x)
            for x, value in third.items()
        )
        assert shamir.combine({1: shares[1], 2: shares[2], 3: at_three % shamir.PRIME}) == other
    assert pow(3, shamir.PRIME - 1, shamir.PRIME) == 1  # a Mersenne prime


# -- graphs and bytes -------------------------------------------------------------------------------------------------
def test_the_ring_is_regular_symmetric_and_connected():
    graph = ring_graph(40, 6, seed=3)
    assert all(len(row) == 6 and place not in row for place, row in enumerate(graph))
    assert all(place in graph[other] for place, row in enumerate(graph) for other in row)
    seen, stack = {0}, [0]
    while stack:
        new = set(graph[stack.pop()].tolist()) - seen
        seen |= new
        stack += new
    assert len(seen) == 40
    assert [row.tolist() for row in ring_graph(4, 6, 1)] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert not np.array_equal(ring_graph(40, 6, 3)[0], ring_graph(40, 6, 4)[0])


def test_the_degree_grows_with_the_logarithm_and_meets_its_conditions():
    degrees = [smallest_graph(n, 0.2, 0.05)[0] for n in (1000, 10_000, 100_000)]
    assert np.diff(degrees).max() <= 14 and degrees[0] < 100  # log2(10) = 3.3 more factors of about 1/4 per ten times
    n, (k, t) = 1000, smallest_graph(1000, 0.2, 0.05)
    draws = stats.hypergeom(n - 1, 200, k)
    assert n * sum(draws.pmf(x) for x in range(t, k + 1)) < 2.0**-40
    answering = stats.hypergeom(n - 1, n - 1 - 50, k)
    assert n * sum(answering.pmf(x) for x in range(t)) <= 2.0**-30


def test_bytes_of_messages_in_closed_form():
    n, k = 100, 58
    full, sparse = message_bytes(np.array([n - 1]), True), message_bytes(np.array([k]), False)
    assert (full.keys_up[0], full.keys_down[0], full.shares_up[0], full.unmasking_up[0], full.unmasking_down[0]) == (
        64,
        99 * 68,
        99 * 60,
        100 * 16,
        13,
    )
    assert (sparse.keys_down[0], sparse.shares_down[0], sparse.unmasking_up[0]) == (58 * 68, 58 * 60, 58 * 16)
