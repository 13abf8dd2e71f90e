"""The ledger: sums by hand, whole commits after a cut at any byte, the same file after a resume."""

from contextlib import ExitStack, closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.communication.ledger import SCHEMA, Ledger, read
from fl.storage.growing import Damaged
from fl.storage.stream import ArrowStream


@pytest.fixture
def opened():
    """Register open writers; close them after the test."""
    with ExitStack() as stack:
        yield lambda writer: stack.enter_context(closing(writer))


NONE = {
    "uplink_bytes": 0,
    "downlink_bytes": 0,
    "uplink_wire_bytes": 0,
    "downlink_wire_bytes": 0,
    "downlink_multicast_bytes": 0,
}


def play(ledger, round_, clients=(3, 5)):
    """Record one round and return what is committed."""
    clients = np.array(clients)
    ledger.record(round_, 0, "down", "model", clients, 100, 80, 120)
    ledger.multicast(round_, 80)
    ledger.record(round_, 0, "up", "model", clients, 100, 50 + clients, 90 + clients)
    return ledger.commit()


def test_a_round_by_hand(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    assert ledger.totals(0) == NONE
    play(ledger, 0)
    assert ledger.totals(0) == {
        "uplink_bytes": 53 + 55,
        "downlink_bytes": 2 * 80,
        "uplink_wire_bytes": 93 + 95,
        "downlink_wire_bytes": 2 * 120,
        "downlink_multicast_bytes": 80,
    }
    table = read(tmp_path / "ledger.arrow")
    assert table.schema == SCHEMA
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (0, 0, 3, "down", "model", 100, 80, 120, "client"),
        (0, 0, 5, "down", "model", 100, 80, 120, "client"),
        (0, 0, 3, "up", "model", 100, 53, 93, "client"),
        (0, 0, 5, "up", "model", 100, 55, 95, "client"),
    ]
    play(ledger, 1, clients=[1])
    assert ledger.totals(1)["uplink_bytes"] == 51  # the totals of the round, not of the run
    assert ledger.totals(2) == NONE


def test_servers_among_themselves_are_counted_apart(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    play(ledger, 0)
    clients = ledger.totals(0)
    ledger.record(0, 1, "up", "model", np.array([0, 1]), 100, 70, 110, "edge")
    ledger.record(0, 1, "up", "more", np.array([1]), 10, 7, 11, "edge")
    assert ledger.totals(0) == {**clients, "edge_uplink_bytes": 2 * 70 + 7, "edge_uplink_wire_bytes": 2 * 110 + 11}
    ledger.commit()
    assert read(tmp_path / "ledger.arrow")["tier"].to_pylist() == ["client"] * 4 + ["edge"] * 3


def test_a_round_in_several_exchanges_and_commits_is_one_round(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    play(ledger, 4, clients=[0])
    ledger.record(4, 1, "up", "statistics", np.array([0]), 8, 8, 900)
    ledger.commit()
    assert ledger.totals(4)["uplink_bytes"] == 50 + 8
    assert read(tmp_path / "ledger.arrow")["exchange"].to_pylist() == [0, 0, 1]


rows = st.tuples(
    st.sampled_from(["up", "down"]),
    st.sampled_from(["model", "prototypes", ""]),
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40)), max_size=5),
)


@given(rounds=st.lists(st.lists(rows, max_size=4), min_size=1, max_size=4))
def test_totals_are_the_sums_of_the_rows(rounds, tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "ledger.arrow"
    totals = []
    with closing(Ledger(path)) as ledger:
        for round_, records in enumerate(rounds):
            for direction, group, clients in records:
                ids, encoded, wire = np.array(clients, np.int64).reshape(-1, 3).T
                ledger.record(round_, 0, direction, group, ids, 1, encoded, wire)
            totals.append(ledger.totals(round_))
            ledger.commit()
    found = [dict(NONE) for _ in rounds]
    for row in read(path).to_pylist():
        found[row["round"]][row["direction"] + "link_bytes"] += row["encoded_bytes"]
        found[row["round"]][row["direction"] + "link_wire_bytes"] += row["wire_bytes"]
    assert found == totals


def test_a_file_cut_at_any_byte_holds_its_whole_commits(tmp_path, opened):
    path, cut = tmp_path / "ledger.arrow", tmp_path / "cut.arrow"
    ledger = opened(Ledger(path))
    lengths = [play(ledger, round_).length for round_ in range(3)]
    content = path.read_bytes()
    assert len(content) == lengths[-1]
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        assert read(cut).num_rows == 4 * sum(committed <= length for committed in lengths), length


def test_cut_back_and_gone_on_with_is_the_uninterrupted_file(tmp_path, opened):
    whole, torn = opened(Ledger(tmp_path / "whole.arrow")), Ledger(tmp_path / "torn.arrow")
    for round_ in range(3):
        play(whole, round_)
    mark = play(torn, 0)
    play(torn, 1, clients=range(50))  # the run ends before this round is committed
    torn.close()
    torn = opened(Ledger(tmp_path / "torn.arrow", mark))
    for round_ in (1, 2):
        play(torn, round_)
    assert (tmp_path / "torn.arrow").read_bytes() == (tmp_path / "whole.arrow").read_bytes()


def test_nothing_recorded_is_nothing_written(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    mark = ledger.commit()
    assert mark == ledger.commit() and mark.length == (tmp_path / "ledger.arrow").stat().st_size
    ledger.record(0, 0, "up", "model", np.array([], np.int64), 1, 1, 1)
    ledger.commit()
    assert read(tmp_path / "ledger.arrow").num_rows == 0


def test_a_file_shorter_than_its_commit_is_refused(tmp_path, opened):
    mark = play(opened(Ledger(tmp_path / "ledger.arrow")), 0)
    (tmp_path / "ledger.arrow").write_bytes((tmp_path / "ledger.arrow").read_bytes()[:-1])
    with pytest.raises(Damaged, match=f"has {mark.length - 1} bytes, but {mark.length} were committed"):
        Ledger(tmp_path / "ledger.arrow", mark)


def test_directions_are_up_and_down(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    with pytest.raises(ValueError, match=r"'sideways' is not one of \['down', 'up'\]"):
        ledger.record(0, 0, "sideways", "model", np.array([1]), 1, 1, 1)


def test_parquet_holds_the_same_rows(tmp_path, opened):
    ledger = opened(Ledger(tmp_path / "ledger.arrow"))
    for round_ in range(3):
        play(ledger, round_)
    ledger.to_parquet(tmp_path / "ledger.parquet")
    assert pq.read_table(tmp_path / "ledger.parquet").equals(read(tmp_path / "ledger.arrow"))


def test_the_stream_serves_any_table(tmp_path, opened):
    schema = pa.schema({"client": pa.int64(), "accuracy": pa.float64()})
    stream = opened(ArrowStream(tmp_path / "clients.arrow", schema))
    stream.append(pa.record_batch([pa.array([1, 2]), pa.array([0.5, None])], schema=schema))
    rows = [{"client": 1, "accuracy": 0.5}, {"client": 2, "accuracy": None}]
    assert ArrowStream.read(tmp_path / "clients.arrow", schema).to_pylist() == rows
