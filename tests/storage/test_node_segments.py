"""Segments on a node that shares no file with the driver: parcels, own files, and copies for the driver."""

import logging
import os
import socket
import subprocess
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fl.execution.workers.byte_stream import ByteStream, FilePart, HungUp, check_files, tls
from fl.execution.workers.channel import Answer, Channel, Member, connected, serve
from fl.execution.workers.deaths import Deaths
from fl.execution.workers.handshake import accept
from fl.execution.workers.node_records import NewRecords, NodeRecords
from fl.execution.workers.ray import Ray
from fl.execution.workers.shared import Handle, Region, SharedFiles, in_a_row, packed
from fl.execution.workers.transfer import Transfer
from fl.storage.clients import ClientStates
from fl.storage.growing import Damaged
from fl.storage.node_segments import NodeSegments
from fl.storage.records import FILES, segment_path
from fl.storage.segments import Segments

DRIVER, OTHER = "a", "b"
NAME = "fl-" + 16 * "0"


def tree(value: float) -> dict:
    return {"c": torch.full((5,), value)}


class Dispatch:
    """Work of some tasks of equal cost; a part is (attempt, tensor)."""

    def __init__(self, tasks=2, pin=False):
        self.tasks, self.pin = tasks, pin

    def costs(self):
        return np.ones(self.tasks)

    def missing(self, parts):
        return np.arange(0)

    def gather(self, parts, retried):
        return [attempt for attempt, _ in parts]

    def error(self, task, detail):
        return RuntimeError(f"task {task}: {detail}")


class Job:
    def __init__(self, *stores):
        self.stores = stores


@pytest.fixture
def driver(tmp_path):
    """Transfers of a run without Ray."""
    states = ClientStates(tmp_path / "driver" / "clients", 10)
    for folder in (states.folder, tmp_path / "driver" / "scratch"):
        folder.mkdir(parents=True)
    return Transfer(Job(states.folder, tmp_path / "driver" / "scratch"), states, DRIVER)


@contextmanager
def served(worker, member):
    """Have a worker answer a member's channel."""
    ends = socket.socketpair()
    member.channel, worker.stream = Channel(None, ByteStream(ends[0])), ByteStream(ends[1])
    thread = threading.Thread(target=serve, args=(worker, worker.stream))
    thread.start()
    try:
        yield
    finally:
        member.channel.close()
        thread.join()
        worker.stream.close()


class Node:
    """What the actor of another node does with values and records."""

    def __init__(self, stores):
        self.files = SharedFiles(NAME)
        self.region, self.records = Region(self.files), NodeRecords(NAME, stores)

    def hold(self, handle, places):
        held = self.region.fill(handle, self.stream.receive_into)
        self.records.arrive(places, self.stream)
        return held

    def bring(self, value):
        handle, memories = packed(value)
        records, parts = self.records.new()
        return Answer((handle, records), [*in_a_row(handle, memories), *parts])

    def run(self, handle, attempt, *_):
        (handle, records), pieces = self.bring((attempt, torch.zeros(5 << 20)))
        return Answer((handle, None, records), pieces)


class LocalWorker:
    """What the actor of the driver's node does with a dispatch."""

    def __init__(self, files):
        self.region = Region(files)

    def run(self, handle, attempt, *_):
        return Answer((self.region.write((attempt, torch.zeros(1))), None, []), [])


@pytest.fixture
def node(driver, tmp_path, monkeypatch):
    """A node, and a member that is connected to it; the node's folders are its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    monkeypatch.setattr("fl.execution.workers.folders.MEMORY", tmp_path / "node")
    (tmp_path / "node").mkdir()
    node, node.member = Node(driver.job.stores), member(OTHER, 7)
    with served(node, node.member):
        yield node
    node.records.leave()
    node.files.remove()


def member(node: str, writer: int) -> Member:
    """Return a member without a process; its actor stands for one that is alive."""
    return Member(f"actor {writer}", writer, node, 0)


def brought(driver, node) -> float:
    """Have the driver take what a node has written; return the value that came before it."""
    handle, records = node.member.channel.ask("bring", {"sum": torch.tensor([2.5])})
    return float(driver.take(node.member, records, handle).open()["sum"])


def sent(driver, node, *locations) -> None:
    """Send records of the driver to a node, with a value."""
    region = Region(node.files)
    found = records(*((0, store, *where) for store, where in locations))
    held = driver.deliver(node.member, region, region.write({"model": torch.arange(3.0)}), found)
    assert held.open()["model"].tolist() == [0.0, 1.0, 2.0] and str(held.path) == str(node.region.path)


def records(*rows) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 5)


def share_of(node, driver, members, found, tasks=2, pin=False):
    """Return the share of a node in a dispatch of `tasks` tasks that read the records `found`."""
    driver.job.records = lambda dispatch, asked: found
    return {share.members[0].node: share for share in driver.shares(Dispatch(tasks, pin), members, np.arange(tasks))}[
        node
    ]


def test_records_that_a_node_wrote_stay_there_and_reach_the_driver(driver, node):
    home, store = driver.job.stores[0], node.records.stores[0]
    store.write_to(7)
    first, second = store.append(tree(1.0)), store.append(tree(2.0))
    assert not list(home.iterdir()) and first[0] == second[0] == 7
    assert brought(driver, node) == 2.5
    third = store.append(tree(3.0))
    assert brought(driver, node) == 2.5
    assert store.unsent() == (7, third[1] + third[2], third[1] + third[2])
    assert driver.traffic["states_up"] == third[1] + third[2]
    for where, value in ((first, 1.0), (second, 2.0), (third, 3.0)):
        assert torch.equal(Segments(home).read(where)["c"], tree(value)["c"])
        assert torch.equal(store.read(where)["c"], tree(value)["c"])


def test_a_file_of_a_node_that_was_cut_is_damaged(driver, node):
    store = node.records.stores[0]
    store.write_to(7)
    store.append(tree(1.0))
    os.truncate(store.path(7), 1)
    with pytest.raises(Damaged, match="000000000007.seg ends before byte"):
        node.member.channel.ask("bring", {})
    assert brought(driver, node) == 2.5  # the connection goes on


def test_only_records_that_are_not_on_the_node_are_sent(driver, node):
    home, members = driver.job.stores[0], [member(DRIVER, 0), member(OTHER, 1)]
    with closing(Segments(home)) as writer:
        writer.write_to(0)
        own = [writer.append(tree(float(i))) for i in range(2)]
    here = 1, 0, own[0][2]  # written by the worker of the other node
    found = records((0, 0, *own[0]), (1, 0, *own[1]), (1, 0, *here))
    share = share_of(OTHER, driver, members, found)
    assert share.own == [[(1, 2)]] and share.records.tolist() == [[1, 0, *own[1]]]
    assert not len(share_of(DRIVER, driver, members, found).records)
    sent(driver, node, (0, own[1]))
    store = node.records.stores[0]
    assert torch.equal(store.read(own[1])["c"], tree(1.0)["c"])
    assert torch.equal(store.read_rows(np.array([own[1]]))["c"], tree(1.0)["c"][None])
    with pytest.raises(Damaged):
        store.read(own[0])
    sent(driver, node)
    with pytest.raises(Damaged, match="is missing"):  # what has come is dropped with the next dispatch
        store.read(own[1])


def test_rows_of_the_node_and_of_the_driver_are_read_in_one_block(driver, node):
    home, store = driver.job.stores[0], node.records.stores[0]
    with closing(Segments(home)) as writer:
        writer.write_to(0)
        other, far = writer.append(tree(4.0)), writer.append(tree(6.0))
    store.write_to(7)
    own = store.append(tree(5.0))
    sent(driver, node, (0, far), (0, other))
    rows = store.read_rows(np.array([own, other, own, far]))
    assert rows["c"][:, 0].tolist() == [5.0, 4.0, 5.0, 6.0]


def test_a_record_in_space_that_was_free_is_sent_although_the_node_has_the_file(driver, node):
    """The driver's worker writes to free space in the file of the node's worker."""
    home, store = driver.job.stores[0], node.records.stores[0]
    store.write_to(7)
    old, kept = store.append(tree(1.0)), store.append(tree(2.0))
    brought(driver, node)
    with closing(Segments(home)) as worker:
        worker.write_to(0)
        new = worker.append(tree(3.0), room=np.array([FILES + 7, *old[1:]]))
    assert new == (FILES + 7, *old[1:])
    share = share_of(OTHER, driver, [member(DRIVER, 0), member(OTHER, 7)], records((1, 0, *new), (1, 0, *kept)))
    assert share.records.tolist() == [[1, 0, *new]]
    sent(driver, node, (0, new))
    sent(driver, node)  # the file stays, because the node has written it
    assert [float(store.read(where)["c"][0]) for where in (new, kept)] == [3.0, 2.0]
    assert store.append(tree(4.0)) == (7, kept[1] + kept[2], kept[2])


def test_a_missing_file_of_the_driver_is_named_before_anything_is_sent(driver, node):
    with pytest.raises(Damaged, match="000000000003.seg is missing"):
        sent(driver, node, (0, (3, 0, 64)))
    assert brought(driver, node) == 2.5


def test_a_share_goes_to_the_node_that_has_its_records(driver):
    """By name, node b would get task 1 and node c task 2; the records say the opposite."""
    members = [member(DRIVER, 0), member("b", 1), member("c", 2)]
    found = records((1, 0, 2, 0, 64), (2, 0, 1, 0, 64))
    assert share_of("c", driver, members, found, tasks=3).own == [[(1, 2)]]
    assert share_of("b", driver, members, found, tasks=3).own == [[(2, 3)]]
    assert share_of(DRIVER, driver, members, found, tasks=3).own == [[(0, 1)]]
    assert not any(len(share_of(name, driver, members, found, tasks=3).records) for name in "bc")
    share = share_of("b", driver, members, found, tasks=3, pin=True)  # by name, and the record has to be sent
    assert share.own == [[(1, 2)]] and share.records.tolist() == [[1, 0, 2, 0, 64]]


def test_a_node_keeps_what_it_has_written_when_the_driver_compacts(driver, node):
    """States of 64 bytes and a header. Clients 0, 2 were written on the node, 1 by the driver's worker; 0 twice."""
    states, home, store = driver.states, driver.job.stores[0], node.records.stores[0]
    states.kept = frozenset({7})
    worker = Segments(home)
    with closing(worker), closing(states):
        worker.write_to(3)
        store.write_to(7)
        written = [(0, store.append(tree(1.0))), (1, worker.append(tree(2.0)))]
        written += [(2, store.append(tree(3.0))), (0, store.append(tree(4.0)))]
        brought(driver, node)
        for client, where in written:
            states.stage(np.array([client]), np.array([where]))
        states._compact()
        moved, size = states.moved.pop(7), written[0][1][2]
        assert moved.tolist() == [[7, 2 * size, size], [7, size, size]] and not states.moved
        store.compact(states.segment(7), moved)
        assert store.unsent() == (states.segment(7), 2 * size, 2 * size) and not store.path(7).exists()
        found = states.locations(np.arange(3))
        assert found[[0, 2]].tolist() == [[states.segment(7), 0, size], [states.segment(7), size, size]]
        with closing(Segments(home)) as at_home:
            assert [float(at_home.read(where)["c"][0]) for where in found] == [4.0, 2.0, 3.0]
        assert [float(store.read(where)["c"][0]) for where in found[[0, 2]]] == [4.0, 3.0]
        assert store.append(tree(5.0)) == (states.segment(7), 2 * size, size)  # and goes on behind them
        share = share_of(OTHER, driver, [member(DRIVER, 3), member(OTHER, 7)], records((1, 0, *found[2])))
        assert not len(share.records)  # it need not be sent


@pytest.mark.parametrize("encrypted", [False, True])
def test_messages_memory_and_files_come_over_a_connection(tmp_path, monkeypatch, encrypted):
    if encrypted:
        certify(tmp_path, monkeypatch)
    path, copy, key, errors = tmp_path / "segment", tmp_path / "copy", b"k" * 32, []
    path.write_bytes(np.arange(300_000, dtype=np.uint16).tobytes())
    memory = np.random.default_rng(0).bytes(700_000)
    pieces = [memoryview(memory), FilePart(path, 2, 600_000), FilePart(path, 4, 9), memoryview(b"end")]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def work(key):
            try:
                with closing(connected(listener.getsockname(), key)) as stream:
                    stream.send(b"one", pieces)
                    stream.send(b"two", pieces)
                    stream.send(b"three")
            except Exception as error:
                errors.append(error)

        for known in (b"x" * 32, key):
            worker = threading.Thread(target=work, args=(known,))
            worker.start()
            found = accept(listener, key, tls(server=True))
            assert (found is None) == (known != key)
        with closing(ByteStream(found, gone=lambda: False)) as stream, open(copy, "wb") as file:
            assert stream.receive() == b"one"
            got = np.zeros(len(memory), np.uint8)
            stream.receive_into(got.data)
            stream.receive_to_file(file.fileno(), 0, 599_998 + 5 + 3)
            assert stream.receive() == b"two" and stream.receive() == b"three"  # what follows may be left
            with pytest.raises(HungUp):
                stream.receive()
        worker.join()
    whole = path.read_bytes()
    assert got.tobytes() == memory and copy.read_bytes() == whole[2:] + whole[4:9] + b"end"
    assert len(errors) == 1  # of the one without the key


def test_a_connection_on_which_nothing_comes_ends_with_its_worker():
    ends, asked = socket.socketpair(), []
    with closing(ByteStream(ends[0], gone=lambda: asked.append(1) or True)) as stream, ends[1]:
        with pytest.raises(HungUp):
            stream.receive()
        with pytest.raises(HungUp):
            stream.send(b"", [memoryview(bytes(64 << 20))])  # nobody reads
    assert len(asked) == 2


def test_a_worker_that_ends_in_the_middle_of_a_state_is_noticed(driver, tmp_path):
    ends, one = socket.socketpair(), member(OTHER, 7)
    path = tmp_path / "segment"
    path.write_bytes(bytes(1000))
    with closing(ByteStream(ends[1])) as worker, closing(ByteStream(ends[0], gone=lambda: True)) as stream:
        one.channel = Channel(None, stream)
        worker.send(b"answer", [FilePart(path, 0, 1000)])
        worker.end.shutdown(socket.SHUT_WR)
        assert stream.receive() == b"answer"
        stream.following += 500
        with pytest.raises(HungUp):
            driver.take(one, [NewRecords(0, 7, 0, 1500)], Handle(b"", (), (), None))


def test_a_file_that_is_too_short_is_damaged(tmp_path):
    path = tmp_path / "segment"
    path.write_bytes(b"12")
    check_files([FilePart(path, 0, 2)])
    with pytest.raises(Damaged, match="ends before byte 3"):
        check_files([FilePart(path, 0, 1), FilePart(path, 1, 3)])
    ends = socket.socketpair()
    with closing(ByteStream(ends[0])) as stream, ends[1], pytest.raises(Damaged, match="ends before byte 3"):
        stream.send(b"", [FilePart(path, 0, 3)])  # it was cut after the check


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
    with closing(NodeSegments(tmp_path / "node", home)) as node:
        node.write_to(3)
        vector = node.append_vector(torch.arange(6.0))
        assert vector.path == str(home / "000000000003.seg") and vector.location == (3, 0, 24)
        assert torch.equal(node.read_vector(vector), torch.arange(6.0))
        node.empty()
        assert node.unsent() == (3, 0, 0)


def test_a_record_that_arrives_damaged_is_noticed(driver, node):
    home = driver.job.stores[0]
    with closing(Segments(home)) as writer:
        writer.write_to(0)
        where = writer.append(tree(1.0))
    with open(home / "000000000000.seg", "r+b") as file:
        file.seek(where[2] - 1)
        file.write(b"x")
    sent(driver, node, (0, where))
    with pytest.raises(Damaged, match="checksum"):
        node.records.stores[0].read(where)


# -- errors -----------------------------------------------------------------------------------------------------------
def test_a_file_that_sendfile_refuses_is_read_and_sent():
    """Linux reads /proc/self/pagemap only for `read`; the pages at address 0 are in no map, so their entries are 0."""
    path, ends = Path("/proc/self/pagemap"), socket.socketpair()
    if not path.exists():
        pytest.skip("no such file on this system")
    got = np.ones(1 << 17, np.uint8)
    with closing(ByteStream(ends[0])) as driver, closing(ByteStream(ends[1])) as worker:
        send = threading.Thread(target=driver.send, args=(b"states", [FilePart(path, 0, len(got)), memoryview(b"end")]))
        send.start()
        assert worker.receive() == b"states"
        worker.receive_into(got.data)
        send.join()
        assert not got.any() and worker.following == 3


def test_a_file_that_cannot_be_read_is_the_error_and_neither_end_waits(driver, node, tmp_path):
    """The system opens a folder, and does not read it. Its error comes in the middle of the message."""
    memory, places = memoryview(bytes(1 << 20)), np.array([[0, 3, 0, 1 << 20]])
    handle = Handle(b"", (0,), (len(memory),), None)
    with pytest.raises(IsADirectoryError):
        node.member.channel.ask("hold", handle, places, pieces=[memory, FilePart(tmp_path, 0, 1 << 20)])
    assert node.member.channel.stream.closed
    with pytest.raises(HungUp):
        node.member.channel.ask("bring", {})


def test_a_worker_whose_answer_the_driver_could_not_write_takes_the_next_request(driver, node):
    """The rest of the answer, 8 MB, and the next dispatch, 4 MB, are more than the system keeps for a connection."""
    store, path = node.records.stores[0], segment_path(driver.job.stores[0], 7)
    store.write_to(7)
    store.append({"c": torch.ones(2 << 20)})
    path.mkdir()
    with pytest.raises(OSError):
        brought(driver, node)
    path.rmdir()
    region = Region(node.files)
    held = driver.deliver(node.member, region, region.write(torch.ones(1 << 20)), records())
    assert held.open().sum() == 1 << 20


@pytest.fixture
def executor(driver, node):
    """The driver's executor, with a worker on its node and one on another."""
    local = member(DRIVER, 0)
    executor = Ray(2)
    executor.files, executor.states, executor.transfer, executor.local = node.files, driver.states, driver, DRIVER
    executor.region, executor.attempts, executor.deaths = Region(node.files), 0, Deaths(None)
    executor.members = [local, node.member]
    with served(LocalWorker(node.files), local):
        yield executor


def test_an_answer_to_a_failed_dispatch_is_not_taken_for_the_next_one(driver, executor):
    driver.job.records = lambda dispatch, asked: records((1, 0, 3, 0, 64))
    with pytest.raises(Damaged, match="000000000003.seg is missing"):
        executor.run(Dispatch())  # by then the worker on the driver's node computes
    driver.job.records = lambda dispatch, asked: records()
    assert executor.run(Dispatch()) == [2, 2]


def test_memory_of_a_large_answer_is_given_back(driver, executor):
    driver.job.records = lambda dispatch, asked: records()
    remote = executor.members[1]
    assert executor.run(Dispatch()) == [1, 1] and driver.traffic["result"] > 20 << 20
    assert not len(remote.memory)
    remote.room(1000)
    remote.trim()
    assert len(remote.memory) == 1000  # little is kept


def test_what_came_for_a_worker_that_died_is_deleted_by_the_next_one(driver, node):
    home, store = driver.job.stores[0], node.records.stores[0]
    with closing(Segments(home)) as writer:
        writer.write_to(0)
        far = writer.append(tree(6.0))
    store.write_to(7)
    own = store.append(tree(5.0))
    sent(driver, node, (0, far))
    assert store.path(0).exists()
    node.records = NodeRecords(NAME, driver.job.stores)  # of another worker on the node
    sent(driver, node)
    assert [path.name for path in store.folder.iterdir()] == ["000000000007.seg"]
    assert float(node.records.stores[0].read(own)["c"][0]) == 5.0


def test_the_error_that_ended_a_workers_connection_is_told(caplog):
    deaths = Deaths(None)
    deaths.begin(Dispatch())
    with caplog.at_level(logging.WARNING):
        deaths.add(12, 3, "", "OSError: [Errno 24] Too many open files")
    assert caplog.messages == [
        "worker 12 died; trying again: task 3: it could not go on: OSError: [Errno 24] Too many open files"
    ]
