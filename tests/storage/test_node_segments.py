"""Segments on a node that shares no file with the driver: parcels, own files, and copies for the driver."""

import socket
import subprocess
import threading
from contextlib import closing

import numpy as np
import pytest
import torch

from fl.execution.workers.byte_stream import Sender, tls
from fl.execution.workers.channel import Member
from fl.execution.workers.handshake import accept
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
    return Member(None, writer, node, 0)


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


def test_a_node_keeps_what_it_has_written_when_the_driver_compacts(driver, tmp_path):
    """States of 64 bytes and a header. Clients 0, 2 were written on the node, 1 by the driver's worker; 0 twice."""
    states, home = driver.states, driver.job.stores[0]
    states.kept = frozenset({7})
    node, worker = NodeSegments(0, tmp_path / "node", home), Segments(home)
    with closing(node), closing(worker), closing(states):
        worker.write_to(3)
        node.write_to(7)
        written = [(0, node.append(tree(1.0))), (1, worker.append(tree(2.0)))]
        written += [(2, node.append(tree(3.0))), (0, node.append(tree(4.0)))]
        segment, start, end = node.unsent()
        new = NewRecords(0, segment, start, end, node.piece(segment, start, end))
        driver.take(member(OTHER, 7), [new], Handle(b"", (), (), None))
        for client, where in written:
            states.stage(np.array([client]), np.array([where]))
        states._compact()
        moved, size = states.moved.pop(7), written[0][1][2]
        assert moved.tolist() == [[7, 2 * size, size], [7, size, size]] and not states.moved
        node.compact(states.segment(7), moved)
        assert node.unsent() == (states.segment(7), 2 * size, 2 * size) and not node.path(7).exists()
        found = states.locations(np.arange(3))
        assert found[[0, 2]].tolist() == [[states.segment(7), 0, size], [states.segment(7), size, size]]
        with closing(Segments(home)) as at_home:
            assert [float(at_home.read(where)["c"][0]) for where in found] == [4.0, 2.0, 3.0]
        assert [float(node.read(where)["c"][0]) for where in found[[0, 2]]] == [4.0, 3.0]
        assert node.append(tree(5.0)) == (states.segment(7), 2 * size, size)  # and goes on behind them
        share = share_of(OTHER, driver, [member(DRIVER, 3), member(OTHER, 7)], records((1, 0, *found[2])))
        assert share.parcel is None  # it need not be sent


@pytest.mark.parametrize("encrypted", [False, True])
def test_bytes_of_a_file_come_over_the_connection(tmp_path, monkeypatch, encrypted):
    if encrypted:
        certify(tmp_path, monkeypatch)
    path, key, got = tmp_path / "segment", b"k" * 32, []
    path.write_bytes(np.arange(300_000, dtype=np.uint16).tobytes())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def work(key):
            try:
                with closing(Sender("127.0.0.1", listener.getsockname()[1], key)) as sender:
                    sender.send(path, 2, 600_000)
            except Exception as error:
                got.append(error)

        for known in (b"x" * 32, key):
            worker = threading.Thread(target=work, args=(known,))
            worker.start()
            found = accept(listener, key, tls(server=True))
            assert (found is None) == (known != key)
            if found is not None:
                with found:
                    received = b"".join(iter(lambda: found.recv(1 << 16), b""))
            worker.join()
    assert received == path.read_bytes()[2:] and len(got) == 1  # the one without the key


def test_a_file_that_is_too_short_is_damaged(tmp_path):
    path, key = tmp_path / "segment", b"k" * 32
    path.write_bytes(b"12")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        found = []
        worker = threading.Thread(target=lambda: found.append(accept(listener, key)))
        worker.start()
        with closing(Sender("127.0.0.1", listener.getsockname()[1], key)) as sender:
            worker.join()
            with found[0], pytest.raises(Damaged, match="ends before byte 3"):
                sender.send(path, 0, 3)


def certify(folder, monkeypatch):
    """Make a certificate that signs itself, and tell Ray to use it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=node"]
        + ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    for name, file in {"SERVER_CERT": "cert", "SERVER_KEY": "key", "CA_CERT": "cert"}.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", str(folder / f"{file}.pem"))
    monkeypatch.setenv("RAY_USE_TLS", "1")


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
