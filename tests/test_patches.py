"""Static groups that are sent as patches: bytes by hand, equal bits for all clients, resume, wrong patches.

The toy `Pages` sends a book of t + 1 pages of three float32, 12 bytes each, in round t. A patch is one page, and the
newest three are kept.
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import fl
from fl.check import bench, ledger, runs
from fl.method.client import ClientAlgorithm
from fl.method.messages import Static
from tests.test_seams import BASE, column, rows, simulate, toy  # noqa: F401

PAGE = 3 * 4
RANDOM = {"quantise": {"bits": 2, "norm": "l2"}}  # each number becomes 0, or the norm with its sign
BOOK = {"strategy": toy("Pages"), "client": toy("Reader"), "rounds": 5, "cohort": {"name": "cyclic", "size": 4}}


def test_a_client_pays_for_the_patches_that_it_lacks(simulate):  # noqa: F811
    """The cohorts are 0123, 0145, 2345, 0123, 0145. A new client gets patches, which are as large as the book."""
    book = simulate(**BOOK)
    assert rows(book, "down", "pages") == {
        **{(0, 0, c): PAGE for c in (0, 1, 2, 3)},
        **{(1, 0, c): PAGE for c in (0, 1)},
        **{(1, 0, c): 2 * PAGE for c in (4, 5)},  # new
        **{(2, 0, c): 2 * PAGE for c in (2, 3)},  # last in round 0
        **{(2, 0, c): PAGE for c in (4, 5)},
        **{(3, 0, c): 2 * PAGE for c in (0, 1)},  # last in round 1
        **{(3, 0, c): PAGE for c in (2, 3)},
        **{(4, 0, c): PAGE for c in (0, 1)},
        **{(4, 0, c): 2 * PAGE for c in (4, 5)},  # last in round 2
    }
    # with multicast each page counts once
    pages = [1, 2, 2, 2, 2]
    assert column(book, "downlink_multicast_bytes") == [PAGE * count for count in pages]
    check_books(book, lambda number: np.float32(0.1 * (number + 1)))


def test_a_client_that_was_away_long_pays_for_the_whole_value_once(simulate):  # noqa: F811
    """One client in each round, in turn. When client 0 returns after six rounds, three of its six pages are patches."""
    book = simulate(**BOOK | {"cohort": {"name": "cyclic", "size": 1}, "rounds": 7})
    assert rows(book, "down", "pages") == {(r, 0, r % 6): (r + 1) * PAGE for r in range(7)}


def test_a_codec_that_loses_something_leaves_all_clients_with_the_same_bits(simulate):  # noqa: F811
    """Patches are 3 x 2 bytes. Round 0 is a key version, because its patch is as large as the book, which all pay for.

    In round 1 new clients get round 0's book and its patch. In round 4 the oldest page is no longer a patch, so all
    clients get the whole book.
    """
    book = simulate(**BOOK, **{"codec.down": "fp16"})
    found = rows(book, "down", "pages")
    assert {found[0, 0, c] for c in range(4)} == {6}
    assert [found[1, 0, c] for c in (0, 1, 4, 5)] == [6, 6, 6 + 6, 6 + 6]
    assert [found[4, 0, c] for c in (0, 1, 4, 5)] == [5 * 6] * 4
    check_books(book, lambda number: np.float32(np.float16(np.float32(0.1 * (number + 1)))))


def test_a_new_client_receives_the_key_version_in_the_codec_and_the_patches_since_then(simulate):  # noqa: F811
    """Client r first takes part in round r. A book of t pages has 4 bytes for the norm and 3 t numbers of 2 bits.

    Rounds 0 and 2 are key versions: in round 2, two patches of 5 bytes are more than a book of 7. The codec rounds at
    random, but the second client of a key version gets the bits of the first one.
    """
    settings = BOOK | {"cohort": {"name": "cyclic", "size": 1}, "rounds": 4}
    book = simulate(**settings, **{"codec.down": RANDOM})
    assert list(rows(book, "down", "pages").values()) == [5, 5 + 5, 7, 7 + 5]
    first, second, third, fourth = [row[f"seen/{client}"] for client, row in enumerate(book.result.metrics)]
    assert second[:1] == first and fourth[:3] == third
    assert {0.0} < {*first, *second, *third, *fourth}  # 0 or the norm, by chance


def check_books(simulation, first_number):
    for round_, row in enumerate(simulation.result.metrics):
        books = [seen for name, seen in row.items() if name.startswith("seen/")]
        assert books
        for seen in books:
            assert_array_equal(np.float32(seen), [first_number(number) for number in range(round_ + 1)])


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("codec", ["identity", RANDOM], ids=["identity", "random"])
def test_a_resumed_run_sends_the_same(codec, size, tmp_path):
    """With one client per round and "random", client 3 receives the key version of round 2 after the resume."""
    config = {**BASE, **BOOK, "codec": {"down": codec}, "cohort": {"name": "cyclic", "size": size}}
    whole = fl.run(config, out=tmp_path / "whole")
    fl.run(config | {"rounds": 3}, out=tmp_path / "parts")
    resumed = fl.resume(tmp_path / "parts", rounds="+2")
    assert resumed.ledger.equals(whole.ledger)
    seen = [[{k: v for k, v in row.items() if k.startswith("seen")} for row in r.metrics] for r in (whole, resumed)]
    assert seen[0] == seen[1] and seen[0][4]


def test_patches_that_lead_elsewhere_are_refused(simulate):  # noqa: F811
    message = (
        r"Pages: the patches of the static group 'pages' do not lead from version 0 to the value of version 1, bit for "
        r"bit. Compute the value as Reader.patched\('pages', last value, patch\)"
    )
    with pytest.raises(ValueError, match=message):
        simulate(**BOOK | {"strategy": toy("Pages", wrong=True)})


def test_a_client_that_starts_twice_pays_once(simulate):  # noqa: F811
    """An asynchronous server may send one version twice to a quick client."""
    groups = simulate(**BOOK).exchanges.downlink.static
    (due, sizes), *others = groups.send("other", Static(0, torch.zeros(2)), np.array([2, 1, 2])).due
    assert due.tolist() == [True, True, False] and [s.encoded_bytes for s in sizes] == [8] and not others


def test_patches_are_added_by_default():
    first, second = {"a": torch.tensor([1.0]), "b": (torch.ones(2),)}, {"a": torch.tensor([2.0]), "b": (torch.ones(2),)}
    client = ClientAlgorithm()
    assert client.patched("x", None, first) is first
    total = client.patched("x", first, second)
    assert total["a"].tolist() == [3.0] and total["b"][0].tolist() == [2.0, 2.0]


LAWS = [
    (runs.an_empty_round_changes_nothing, "identity"),
    (runs.worker_and_order_of_tasks_do_not_matter, "identity"),
    (ledger.the_ledger_counts_every_byte, "identity"),
    (runs.a_resumed_run_gives_the_same_bits, "identity"),
    (runs.a_resumed_run_gives_the_same_bits, "quantise"),
]


@pytest.mark.parametrize(("law", "down"), LAWS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize(("name", "rank"), [("fedex_lora", 2), ("flora", 3)])
def test_laws_hold_where_increments_are_sent_as_patches(name, rank, law, down, tmp_path):
    """With a layer 40 -> 30, the increments of five clients have at most 700 floats, and their dense sum has 1,200."""

    class Bench(bench.Bench):
        def config(self, **overrides):
            data = bench.FEDERATION["data"] | {"shape": [40], "classes": 30}
            model = {"name": "softmax", "adapter": {"name": "lora", "rank": rank}}
            return super().config(**{"data": data, "model": model, "codec.down": down, **overrides})

    law(Bench.of("strategy", name, {}, tmp_path))
