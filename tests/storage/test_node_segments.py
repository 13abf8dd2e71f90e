"""Segments on a node that shares no file with the driver: parcels, own files, and copies for the driver."""

from contextlib import closing

import numpy as np
import pytest
import torch

from fl.execution.workers.channel import Member
from fl.execution.workers.node_records import NewRecords
from fl.execution.workers.shared import Handle
from fl.execution.workers.transfer import Transfer
from fl.storage.clients import ClientStates
from fl.storage.growing import Damaged
from fl.storage.node_segments import Arrived, NodeSegments, Parcel
from fl.storage.segments import Segments

DRIVER, OTHER = "a", "b"


def tree(value: float) -> dict:
    return {"c": torch.full((5,), value)}


class Job:
    def __init__(self, *stores):
        self.stores = stores


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Transfers of a run without Ray: the object store is a list, and references are its indices."""
    stored = []

    def store(array):
        stored.append(array.copy())
        return len(stored) - 1

    monkeypatch.setattr(
        "fl.execution.workers.transfer._put", lambda array: stored.append(array.copy()) or len(stored) - 1
    )
    states = ClientStates(tmp_path / "driver" / "clients", 10)
    (tmp_path / "driver" / "scratch").mkdir(parents=True)
    transfer = Transfer(Job(states.folder, tmp_path / "driver" / "scratch"), states, DRIVER)
    transfer.stored = stored
    return transfer


def member(node: str, writer: int) -> Member:
    return Member(None, writer, node, 0, None)


def records(*rows) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 5)


def share_of(node, driver, members, found, tasks=2, pin=False):
    """Return the shares of a dispatch of `tasks` tasks of equal cost that read the records `found`."""

    class Dispatch:
        def __init__(self):
            self.pin = pin

        def costs(self):
            return np.ones(tasks)

    driver.job.records = lambda dispatch, asked: found
    return {share.members[0].node: share for share in driver.shares(Dispatch(), members, np.arange(tasks))}[node]


def test_records_that_a_node_wrote_stay_there_and_reach_the_driver(driver, tmp_path):
    home = driver.job.stores[0]
    with closing(NodeSegments(0, tmp_path / "node", home)) as node:
        node.write_to(7)
        first, second = node.append(tree(1.0)), node.append(tree(2.0))
        assert not home.exists() and first[0] == second[0] == 7
        segment, start, end = node.unsent()
        assert (segment, start) == (7, 0) and end == second[1] + second[2]
        data = node.piece(segment, start, end)
        home.mkdir(parents=True)
        driver.take(member(OTHER, 7), [NewRecords(0, segment, start, end, data)], Handle(b"", (), (), None))
        third = node.append(tree(3.0))
        segment, start, end = node.unsent()
        assert start == third[1] and node.unsent()[1:] == (end, end)
        new = NewRecords(0, segment, start, end, node.piece(segment, start, end))
        driver.take(member(OTHER, 7), [new], Handle(b"", (), (), None))
        with closing(Segments(home)) as at_home:
            for where, value in ((first, 1.0), (second, 2.0), (third, 3.0)):
                assert torch.equal(at_home.read(where)["c"], tree(value)["c"])
                assert torch.equal(node.read(where)["c"], tree(value)["c"])


def test_only_records_that_are_not_on_the_node_are_sent(driver, tmp_path):
    home, members = driver.job.stores[0], [member(DRIVER, 0), member(OTHER, 1)]
    with closing(Segments(home)) as writer:
        writer.write_to(0)
        own = [writer.append(tree(float(i))) for i in range(2)]
    here = 1, 0, own[0][2]  # written by the worker of the other node
    found = records((0, 0, *own[0]), (1, 0, *own[1]), (1, 0, *here))
    share = share_of(OTHER, driver, members, found)
    assert share.own == [[(1, 2)]] and share.parcel.places.tolist() == [[0, 0, own[1][1], 0, 0]]
    assert share_of(DRIVER, driver, members, found).parcel is None
    with closing(NodeSegments(0, tmp_path / "node", home)) as node:
        node.arrived = Arrived(share.parcel, lambda reference: driver.stored[reference])
        assert torch.equal(node.read(own[1])["c"], tree(1.0)["c"])
        assert torch.equal(node.read_rows(np.array([own[1]]))["c"], tree(1.0)["c"][None])
        with pytest.raises(Damaged, match="is missing"):
            node.read(own[0])


def test_rows_come_from_a_parcel_and_from_the_node_in_one_block(driver, tmp_path):
    home = driver.job.stores[0]
    with closing(Segments(home)) as writer, closing(NodeSegments(0, tmp_path / "node", home)) as node:
        writer.write_to(0)
        node.write_to(1)
        brought, own = writer.append(tree(4.0)), node.append(tree(5.0))
        share = share_of(OTHER, driver, [member(DRIVER, 0), member(OTHER, 1)], records((1, 0, *brought), (1, 0, *own)))
        node.arrived = Arrived(share.parcel, lambda reference: driver.stored[reference])
        rows = node.read_rows(np.array([own, brought, own]))
        assert rows["c"][:, 0].tolist() == [5.0, 4.0, 5.0]


def test_a_share_goes_to_the_node_that_has_its_records(driver):
    """By name, node b would get task 1 and node c task 2; the records say the opposite."""
    members = [member(DRIVER, 0), member("b", 1), member("c", 2)]
    found = records((1, 0, 2, 0, 64), (2, 0, 1, 0, 64))
    assert share_of("c", driver, members, found, tasks=3).own == [[(1, 2)]]
    assert share_of("b", driver, members, found, tasks=3).own == [[(2, 3)]]
    assert share_of(DRIVER, driver, members, found, tasks=3).own == [[(0, 1)]]
    assert driver.stored == []  # nothing had to be sent
    with pytest.raises(Damaged, match="000000000002.seg is missing"):  # by name, and the record has to be sent
        share_of("b", driver, members, found, tasks=3, pin=True)


def test_vectors_name_the_drivers_file_and_are_read_from_the_node(driver, tmp_path):
    home = driver.job.stores[1]
    with closing(NodeSegments(1, tmp_path / "node", home)) as node:
        node.write_to(3)
        vector = node.append_vector(torch.arange(6.0))
        assert vector.path == str(home / "000000000003.seg") and vector.location == (3, 0, 24)
        assert torch.equal(node.read_vector(vector), torch.arange(6.0))
        node.empty()
        assert node.unsent() == (3, 0, 0)


def test_a_damaged_parcel_is_noticed(tmp_path):
    with closing(Segments(tmp_path / "home")) as writer:
        writer.write_to(0)
        where = writer.append(tree(1.0))
        data = np.frombuffer(bytes(writer.window(*where)), np.uint8).copy()
    data[-1] ^= 1
    node = NodeSegments(0, tmp_path / "node", tmp_path / "home")
    node.arrived = Arrived(Parcel(records((0, 0, where[1], 0, 0)), [data]), lambda array: array)
    with pytest.raises(Damaged, match="checksum"):
        node.read(where)
