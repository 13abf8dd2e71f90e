"""Storage: records in segments, client states, checkpoints, streams, and recovery after a crash."""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fl.storage import checkpoint
from fl.storage import clients as client_states
from fl.storage.clients import ClientStates
from fl.storage.growing import Damaged
from fl.storage.records import NO_RECORD
from fl.storage.segments import Segments
from fl.storage.stream import ArrowStream
from fl.tensors.params import Params
from fl.tensors.trees import stack


@dataclass(frozen=True)
class Kept:
    control: Params
    visits: int


def state(number: float, visits: int = 0) -> Kept:
    return Kept(Params.of({"w": torch.full((2, 3), float(number)), "b": torch.tensor([float(-number)])}), visits)


def number(kept: Kept | None) -> float | None:
    if kept is None:
        return None
    assert (kept.control["w"] == kept.control["w"][0, 0]).all() and kept.control["b"] == -kept.control["w"][0, 0]
    return kept.control["w"][0, 0].item()


# -- segments ---------------------------------------------------------------------------------------------------------
TREES = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.builds(state, st.integers(-9, 9), st.integers(0, 9)),
    st.lists(st.builds(torch.arange, st.integers(0, 40)), max_size=3).map(
        lambda ts: {"ts": ts, "empty": torch.empty(0, 3)}
    ),
)


def equal(a, b) -> bool:
    if isinstance(a, Kept):
        return a.visits == b.visits and number(a) == number(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(equal, a.values(), b.values()))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b


@given(st.lists(TREES, min_size=1, max_size=6))
def test_what_was_appended_is_read(tmp_path_factory, trees):
    folder = tmp_path_factory.mktemp("segments")
    with closing(Segments(folder)) as writer, closing(Segments(folder)) as reader:
        writer.write_to(3)
        places = []
        for tree in trees:  # read while the file grows
            places.append(writer.append(tree))
            assert equal(reader.read(places[-1]), tree)
        assert all(equal(writer.read(place), tree) for place, tree in zip(places, trees))
        assert [p[0] for p in places] == [3] * len(trees)
        assert all(offset % 64 == 0 and length % 64 == 0 for _, offset, length in places)
        assert sum(p[2] for p in places) == (folder / f"{3:012d}.seg").stat().st_size


def test_large_states_may_hold_empty_tensors(tmp_path):
    """Large records are read tensor by tensor."""
    segments = Segments(tmp_path)
    segments.write_to(0)
    tree = {"w": torch.arange(2.0 * 90_000).view(2, -1), "none": torch.empty(2, 0, 3), "n": torch.arange(2)}
    where = segments.append_rows(tree, 2)
    for _ in range(2):  # the second time it knows the form
        again = segments.read_rows(where)
        assert all(torch.equal(again[name], tree[name]) for name in tree)
    segments.close()


def test_rows_of_a_stack_are_records_of_their_own(tmp_path):
    states = [state(i, visits=7) for i in range(4)]
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        singly = [segments.append(s) for s in states]
        together = segments.append_rows(stack(states), 4)
        assert [number(segments.read(place)) for place in together] == [0, 1, 2, 3]
        for one, other in zip(singly, together):  # the same bytes after the checksum, which depends on the location
            assert bytes(segments.window(*one))[8:] == bytes(segments.window(*map(int, other)))[8:]


def test_a_record_read_is_memory_of_its_own(tmp_path):
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        place = segments.append(state(1))
        read = segments.read(place)
        assert all(buffer.data_ptr() % 64 == 0 for buffer in read.control.buffers)
        read.control.add_(read.control)
        assert number(segments.read(place)) == 1
    assert Segments(tmp_path).read(NO_RECORD) is None


def test_a_writer_continues_at_the_end(tmp_path):
    """For example after a restart, or after a switch to another segment and back."""
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        first = segments.append(state(1))
        segments.write_to(1)
        other = segments.append(state(2))
        segments.write_to(0)
        second = segments.append(state(3))
        assert other[:2] == (1, 0) and second[:2] == (0, first[2])
        assert [number(segments.read(place)) for place in (first, other, second)] == [1, 2, 3]


@pytest.mark.parametrize("tensors", [400, 600, 1200])
def test_large_records_may_have_more_tensors_than_one_call_takes(tmp_path, tensors):
    """A call of the system takes 1,024 pieces; each tensor of 201 numbers needs a pad."""
    trees = [{str(i): torch.full((201,), float(i + c)) for i in range(tensors)} for c in range(2)]
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        where = segments.append_rows(stack(trees), 2)
        alone = segments.append(trees[1])
        for _ in range(2):  # the second time the form is known
            rows = segments.read_rows(where)
            assert all(torch.equal(rows[name], torch.stack([tree[name] for tree in trees])) for name in trees[0])
        assert torch.equal(segments.read(alone)["399"], trees[1]["399"])


def test_a_torn_pin_costs_its_checkpoint_and_not_the_run(tmp_path):
    with closing(ClientStates(tmp_path, 3)) as states, closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        states.stage(np.array([1]), np.array([segments.append(state(5.0))]))
        record = states.commit()
        pinned = states.pin("best")
        (tmp_path / "best.npy").write_bytes((tmp_path / "best.npy").read_bytes()[:-1])
        states.restore(record)
        assert number(segments.read(states.locations(np.array([1]))[0])) == 5.0
        states.sweep(1, 1)
        with pytest.raises(Damaged, match="best.npy is damaged"):
            states.restore_pinned("best", pinned)


def test_pinned_states_are_those_of_their_checkpoint(tmp_path):
    with closing(ClientStates(tmp_path, 3)) as states, closing(Segments(tmp_path)) as segments:
        assert states.pin("best") == ""
        pins = []
        for value in (1.0, 2.0):
            segments.write_to(0)
            states.stage(np.array([1]), np.array([segments.append(state(value))]))
            states.commit()
            pins.append(states.pin("best"))
        with pytest.raises(Damaged, match="best.npy holds the states of another checkpoint"):
            states.restore_pinned("best", pins[0])
        states.restore_pinned("best", pins[1])
        assert number(segments.read(states.locations(np.array([1]))[0])) == 2.0
        states.restore_pinned("best", "")
        assert states.index is None


def test_the_space_of_an_older_pin_is_free_when_the_newer_one_is_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(client_states, "REUSE_FROM", 0)
    with closing(ClientStates(tmp_path, 1)) as states, closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        client, placed = np.array([0]), []
        for commit in range(1, 5):
            placed.append(segments.append(state(float(commit))))
            states.stage(client, np.array([placed[-1]]))
            states.commit()
            if commit in (1, 3):
                states.pin("best")
            states.sweep(commit, 2)  # commit 2 is the newest one on the disk, and it counts on the first pin
        offsets = {int(place[1]) for places in states.free.values() for place in places}
        assert placed[0][1] not in offsets
        states.sweep(5, 5)
        offsets = {int(place[1]) for places in states.free.values() for place in places}
        assert placed[0][1] in offsets and placed[2][1] not in offsets


def test_vectors(tmp_path):
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(5)
        vectors = [torch.arange(7.0), torch.arange(3, dtype=torch.int64), torch.ones(1, dtype=torch.bfloat16)]
        spilled = [segments.append_vector(v) for v in vectors]
        assert all(equal(s.open(), v) for s, v in zip(spilled, vectors))
        assert [s.offset for s in spilled] == [0, 64, 128]


# -- client states ----------------------------------------------------------------------------------------------------
class Store:
    """A driver and its worker: `put` states in a round, `commit` the round, `get` the states."""

    def __init__(self, folder, record=None, population=20):
        self.folder, self.states, self.number = folder, ClientStates(folder, population), 0
        if record:
            self.states.restore(record)
        self.writer, self.segments = self.states.new_writer(), Segments(folder)

    def put(self, numbers: dict[int, float]) -> None:
        self.segments.write_to(self.states.segment(self.writer))
        places = np.array([self.segments.append(state(x)) for x in numbers.values()]).reshape(-1, 3)
        self.states.stage(np.array(list(numbers), np.int64), places)

    def get(self) -> dict[int, float]:
        where = self.states.locations(np.arange(self.states.population))
        return {c: number(self.segments.read(place)) for c, place in enumerate(where) if place[0] >= 0}

    def commit(self) -> dict:
        record = self.states.commit()
        self.number += 1
        self.states.sweep(self.number, self.number)  # no older commit is needed
        return record

    def close(self) -> None:
        self.segments.close()
        self.states.close()


@pytest.fixture
def store(tmp_path):
    opened = []

    def make(folder=tmp_path / "clients", record=None):
        opened.append(Store(folder, record))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_old_segments_go_although_no_commit_with_the_newest_ones_reaches_the_disk(store, monkeypatch):
    """States are compacted in each round, and commits reach the disk four rounds later."""
    monkeypatch.setattr(client_states, "COMPACT_ABOVE", 0)
    one, files = store(), []
    for round_ in range(40):
        one.put({client: float(round_) for client in range(4)})
        one.put({client: float(round_) for client in range(4)})
        one.states.commit()
        one.number += 1
        one.states.sweep(one.number, one.number - 4)
        files.append(len(list(one.folder.iterdir())))
    assert max(files[20:]) == max(files[10:20]) < 40 and one.get() == dict.fromkeys(range(4), 39.0)


def test_states_are_seen_at_once_and_last_from_the_commit(store):
    one = store()
    assert one.get() == {}
    one.put({3: 1.0, 5: 2.0})
    assert one.get() == {3: 1.0, 5: 2.0}
    record = one.commit()
    one.put({5: 9.0, 7: 9.0})  # a round that never commits
    assert one.get() == {3: 1.0, 5: 9.0, 7: 9.0}
    again = store(record=record)
    assert again.get() == {3: 1.0, 5: 2.0}
    again.put({5: 3.0})
    assert again.commit() and again.get() == {3: 1.0, 5: 3.0}
    assert again.writer != one.writer  # no process writes to the segment of another, even of a dead one


def test_who_wrote_nothing_keeps_what_it_has(store):
    one = store()
    one.put({1: 1.0, 2: 2.0})
    one.states.stage(np.array([1, 2]), np.array([NO_RECORD, one.segments.append(state(5))]))
    assert one.get() == {1: 1.0, 2: 5.0}


def test_idle_clients_cost_nothing(tmp_path):
    states = ClientStates(tmp_path / "clients", 10**9)
    assert states.locations(np.array([0, 10**9 - 1])).tolist() == [list(NO_RECORD)] * 2
    nothing = {"generation": 0, "log": None, "total": 0, "use": 0, "durable": 0}
    assert states.commit() == nothing and not (tmp_path / "clients").exists()


def test_compaction_keeps_the_living_and_the_pinned(store, monkeypatch):
    monkeypatch.setattr(client_states, "COMPACT_ABOVE", 0)
    one = store()
    size = None
    for round_ in range(8):
        one.put({0: 10.0 * round_, 1: 10.0 * round_ + 1, **({2: -1.0} if round_ == 0 else {})})
        record = one.commit()
        if round_ == 3:
            one.states.pin("best")
        expected = {0: 10.0 * round_, 1: 10.0 * round_ + 1, 2: -1.0}
        assert one.get() == expected
        again = store(record=record)  # read from disk in each round
        assert again.get() == expected
        again.close()
        size = size or one.states.total // 3  # bytes per state
        assert one.states.total <= (2 * 3 + 2 + (2 if round_ > 3 else 0)) * size  # and two pinned ones
    assert one.states.generation > 1
    pinned = np.load(one.folder / "best.npy")
    assert {int(c): number(one.segments.read(place)) for c, *place in pinned} == {0: 30.0, 1: 31.0, 2: -1.0}
    on_disk = sum(p.stat().st_size for p in one.folder.glob("*.seg"))
    assert on_disk < 8 * 2 * size  # the size of eight rounds' states
    assert len(list(one.folder.glob("index-*.bin"))) == 1


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 5), st.integers(0, 99), max_size=4), st.sampled_from(["go", "die", "crash"])
        ),
        min_size=1,
        max_size=12,
    )
)
def test_committed_states_survive_every_crash(tmp_path_factory, rounds):
    """Events: go, the round commits; die, the process ends before the commit; crash, it ends between the commit of
    the states and the record of that commit.
    """
    folder = tmp_path_factory.mktemp("clients")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_states, "COMPACT_ABOVE", 0)
        one, record, expected = Store(folder), None, {}
        for numbers, fate in rounds:
            one.put({c: float(x) for c, x in numbers.items()})
            if fate == "go":
                record = one.commit()
                expected |= {c: float(x) for c, x in numbers.items()}
            else:
                if fate == "crash":
                    one.states.commit()  # the process loses the record, but has not deleted a segment
                one.close()
                one = Store(folder, record)
            assert one.get() == expected
        one.close()


# -- checkpoints ------------------------------------------------------------------------------------------------------
def test_checkpoints_give_back_what_they_were_given(tmp_path):
    tree = {"round": 3, "state": state(2.5, 4), "seen": {"base": np.array([1, -1])}, "loss": float("inf"), "none": None}
    checkpoint.save(tmp_path / "best.safetensors", tree)
    found = checkpoint.load(tmp_path / "best.safetensors")
    assert list(found) == list(tree) and equal(found["state"], tree["state"])
    assert found["seen"]["base"].tolist() == [1, -1] and found["loss"] == float("inf") and found["none"] is None
    assert all(buffer.data_ptr() % 64 == 0 for buffer in found["state"].control.buffers)


def test_tensors_of_all_types_and_sizes(tmp_path):
    kinds = [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.float64,
        torch.int64,
    ]
    tree = [torch.arange(n).to(kind) for kind in kinds for n in (0, 1, 3)] + [torch.tensor(2.0), torch.ones(2, 3).T]
    checkpoint.save(tmp_path / "c.safetensors", tree)
    assert all(map(equal, checkpoint.load(tmp_path / "c.safetensors"), tree))
    assert len(load_file(tmp_path / "c.safetensors")) == len(tree)  # any reader of safetensors reads it
    with pytest.raises(TypeError, match="complex64"):
        checkpoint.save(tmp_path / "d.safetensors", torch.ones(2, dtype=torch.complex64))
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_views_of_one_memory_are_kept_apart(tmp_path):
    whole = torch.arange(6.0)
    checkpoint.save(tmp_path / "c.safetensors", {"whole": whole, "part": whole[2:4]})
    found = checkpoint.load(tmp_path / "c.safetensors")
    assert found["part"].tolist() == [2, 3] and found["whole"].tolist() == [0, 1, 2, 3, 4, 5]


def test_each_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    file = tmp_path / "c.safetensors"
    tree = {"a": torch.arange(3.0), "b": torch.arange(5, dtype=torch.int64), "round": 7}
    checkpoint.save(file, tree)
    whole, harmless = bytearray(file.read_bytes()), []
    for place in range(len(whole)):
        whole[place] ^= 1 << place % 8
        file.write_bytes(whole)
        try:
            found = checkpoint.load(file)
        except Damaged as damage:
            assert "c.safetensors is damaged" in str(damage)
        else:
            assert list(found) == list(tree) and all(map(equal, found.values(), tree.values()))
            harmless.append(place)
        whole[place] ^= 1 << place % 8
    assert len(harmless) < 10  # digits in the names of tensors that do not change their order


# -- commits ----------------------------------------------------------------------------------------------------------
def rounds_of(folder: Path) -> list[int]:
    """Rounds of the intact commits, the newest first."""
    return [tree for _, tree in checkpoint.intact(folder) if not isinstance(tree, Damaged)]


def test_commits_are_read_from_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 1e9)
    assert not checkpoint.committed(tmp_path) and rounds_of(tmp_path) == []
    with closing(checkpoint.Commits(tmp_path)) as commits:
        for round_ in range(7):
            commits.save(round_, list)
            assert rounds_of(tmp_path)[: 2 if round_ else 1] == [round_, round_ - 1][: 2 if round_ else 1]
            assert commits.number == round_ + 1 and commits.needed == 0  # nothing has reached the disk
    assert checkpoint.committed(tmp_path)


@pytest.mark.parametrize("cut", [0, 9, 60, -1])
def test_a_commit_that_was_cut_short_leaves_the_one_before(tmp_path, cut):
    with closing(checkpoint.Commits(tmp_path)) as commits:
        for round_ in range(5):
            commits.save({"round": round_, "model": torch.full((9,), 1.0 * round_)}, list)
    newest = checkpoint.newest_first(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:cut])
    found = [(file, tree) for file, tree in checkpoint.intact(tmp_path) if not isinstance(tree, Damaged)]
    assert found[0][1]["round"] == 3
    with closing(checkpoint.Commits(tmp_path, found[0][0])) as commits:  # the run goes on
        commits.save({"round": 44, "model": torch.zeros(9)}, list)
        assert found[0][0].is_file()
    assert [tree["round"] for tree in rounds_of(tmp_path)[:2]] == [44, 3]


def test_a_commit_on_the_disk_stays_until_another_one_is(tmp_path, monkeypatch):
    """With a power cut, files written since then may hold anything."""
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 0)
    with closing(checkpoint.Commits(tmp_path)) as commits:
        commits.save(0, lambda: [tmp_path / "missing.seg"])  # a growing file that is gone by then
        commits._syncing[1].result()
        monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 1e9)
        for round_ in range(1, 9):
            commits.save(round_, list)
            assert 0 in rounds_of(tmp_path) and commits.needed == 1
        monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 0)
        commits.save(9, list)
        commits._syncing[1].result()
        commits.save(10, list)
        assert commits.needed == 10  # the commit with number 10 is on the disk, and it is the one before the last
        commits.save(11, list)
        commits.save(12, list)
        assert 0 not in rounds_of(tmp_path)


def test_segments_stay_while_a_commit_needs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(client_states, "COMPACT_ABOVE", 0)
    one = Store(tmp_path)
    records = []
    for number_ in range(1, 20):  # without free space, states are appended
        one.put({0: 10.0 * number_, 1: 20.0 + number_})
        records.append(one.states.commit())
        one.states.sweep(number_, number_ - 2)  # the commit before the last may still be resumed, and one more
        again = Store(tmp_path, records[max(0, number_ - 3)])
        at = max(1, number_ - 2)
        assert again.get() == {0: 10.0 * at, 1: 20.0 + at}
        again.close()
    assert one.states.generation > 1
    with pytest.raises(Damaged, match=r"index-0.bin is missing"):
        Store(tmp_path, records[0])
    one.close()


@pytest.fixture(autouse=True, scope="module")
def small_states_use_space_again():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_states, "REUSE_FROM", 0)
        yield


# -- free space -------------------------------------------------------------------------------------------------------
class Rounds:
    """Rounds that write states of `population` clients into free space, as the engine does.

    The state of client c in round r is number(r, c). Commits reach the disk `lag` rounds later.
    """

    def __init__(self, folder: Path, population: int, lag: int = 1):
        self.states, self.segments = ClientStates(folder, population), Segments(folder)
        self.folder, self.lag, self.expected, self.records = folder, lag, {}, []
        self.segments.write_to(self.states.segment(self.states.new_writer()))

    @staticmethod
    def number(round_: int, client: int) -> float:
        return 1000.0 * round_ + client

    def write(self, clients: list[int]) -> np.ndarray:
        """Write states of a round; return their locations."""
        cohort, round_ = np.array(clients), len(self.records)
        states = stack([state(self.number(round_, client)) for client in clients])
        return self.segments.append_rows(states, len(clients), self.states.room(cohort))

    def round(self, clients: list[int]) -> None:
        locations = self.write(clients)
        self.states.stage(np.array(clients), locations)
        self.records.append(self.states.commit())
        before = self.expected[len(self.records) - 1] if len(self.records) > 1 else {}
        now = {client: self.number(len(self.records) - 1, client) for client in clients}
        self.expected[len(self.records)] = before | now
        self.states.sweep(len(self.records), len(self.records) - self.lag)

    def found(self, record: dict) -> dict[int, float]:
        """Return what another process finds that returns to a commit."""
        other = ClientStates(self.folder, self.states.population)
        other.restore(record)
        where = other.locations(np.arange(self.states.population))
        other.close()
        return {c: number(self.segments.read(place)) for c, place in enumerate(where) if place[0] >= 0}

    def close(self) -> None:
        self.segments.close()
        self.states.close()


def test_the_folder_holds_at_most_twice_the_states(tmp_path):
    """40 clients have a state, and each round writes 12. Beside the states, the space of two rounds is needed: that of
    the round at hand, and of what the commit before the last still needs.
    """
    with closing(Rounds(tmp_path, 40)) as run:
        for round_ in range(40):
            run.round([(round_ * 7 + i * 3) % 40 for i in range(12)])
            assert run.found(run.records[-1]) == run.expected[len(run.records)]
        size = run.states.length
        assert run.states.live == 40 * size and run.states.generation == 0  # nothing was copied
        on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
        assert on_disk == run.states.total == (40 + 2 * 12) * size <= 2 * run.states.live


@settings(max_examples=25)
@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=3, max_size=12), st.integers(1, 3))
def test_free_space_is_never_a_committed_record(tmp_path_factory, cohorts, lag):
    """All commits that may be resumed keep their states, while a round that never commits writes to free space."""
    with closing(Rounds(tmp_path_factory.mktemp("clients"), 10, lag)) as run:
        for cohort in cohorts:
            run.round(sorted(cohort))
            run.write(sorted(cohort))  # the process is killed between the write and the commit
            for number_ in range(max(1, len(run.records) - lag), len(run.records) + 1):
                assert run.found(run.records[number_ - 1]) == run.expected[number_]


def test_pinned_states_stay_while_space_is_used_again(tmp_path):
    with closing(Rounds(tmp_path, 6)) as run:
        pinned = {}
        for round_ in range(16):
            run.round([round_ % 6, (round_ + 2) % 6, (round_ + 3) % 6])
            if round_ in (4, 9):
                run.states.pin("best")
                pinned = run.expected[len(run.records)]
            if pinned:
                rows = np.load(tmp_path / "best.npy")
                assert {int(c): number(run.segments.read(place)) for c, *place in rows} == pinned
        assert run.states.total <= (6 + 6 + 2 * 3) * run.states.length  # the states, the pinned ones, and two rounds


def test_a_location_whose_space_was_used_again_is_not_taken_for_the_old_record(tmp_path):
    with closing(Rounds(tmp_path, 2)) as run:
        run.round([0])
        old = run.states.locations(np.array([0]))[0]
        while run.states.total == (len(run.records)) * run.states.length:
            run.round([0])
        new = run.states.locations(np.array([0]))[0]
        assert new[1] == old[1] and new[0] != old[0] and run.segments.path(new[0]) == run.segments.path(old[0])
        assert number(run.segments.read(new)) == run.expected[len(run.records)][0]
        with pytest.raises(Damaged, match="checksum"):
            run.segments.read(old)


def test_space_that_a_round_did_not_use_is_free_again(tmp_path):
    with closing(Rounds(tmp_path, 4)) as run:
        for _ in range(4):
            run.round([0, 1])
        totals = []
        for _ in range(12):
            run.states.room(np.arange(4))  # a dispatch whose clients all fail
            run.round([0, 1])
            totals.append(run.states.total // run.states.length)
        assert totals[-1] == totals[4] <= 2 + 2 * 2 + 4  # the states, those of two rounds, and the dispatch's space


def test_small_states_are_appended_and_compacted(tmp_path, monkeypatch):
    monkeypatch.setattr(client_states, "REUSE_FROM", 1 << 16)
    monkeypatch.setattr(client_states, "COMPACT_ABOVE", 0)
    with closing(Rounds(tmp_path, 6)) as run:
        for round_ in range(20):
            run.segments.write_to(run.states.segment(run.segments.own % (1 << 20)))  # a compaction starts new segments
            run.round([round_ % 6, (round_ + 1) % 6])
            assert run.found(run.records[-1]) == run.expected[len(run.records)]
            # twice the states, and those that the present round and the last commits need
            assert run.states.total <= 2 * run.states.live + 3 * 2 * 384
        assert run.states.generation > 1


def test_states_of_other_lengths_are_appended(tmp_path):
    with closing(Rounds(tmp_path, 2)) as run:
        for _ in range(4):
            run.round([0])
        room = run.states.room(np.array([1]))
        assert room[0, 0] >= 0
        place = run.segments.append({"longer": torch.arange(100.0)}, room[0])
        assert place[0] == run.segments.own and run.segments.read(place)["longer"].tolist() == list(range(100))


def test_states_that_did_not_reach_the_disk_are_noticed(tmp_path):
    """A power cut may leave the record of a commit without the states in space that was used again."""
    with closing(Rounds(tmp_path, 4)) as run:
        for _ in range(3):
            run.round([0, 1])
        file = run.segments.path(run.segments.own)
        before = file.read_bytes()
        run.round([0, 1])
        assert len(file.read_bytes()) == len(before)  # in free space
        file.write_bytes(before)
        with pytest.raises(Damaged, match="checksum"):
            run.found(run.records[-1])
        assert run.found(run.records[-2]) == run.expected[3]


def test_a_crowded_folder_waits_for_the_disk(tmp_path, monkeypatch):
    """All clients take part, and commits would reach the disk ten rounds later."""
    monkeypatch.setattr(client_states, "COMPACT_ABOVE", 0)
    monkeypatch.setattr(checkpoint, "SYNC_SECONDS", 1e9)
    states = ClientStates(tmp_path / "clients", 4)
    commits, segments, totals = checkpoint.Commits(tmp_path), Segments(tmp_path / "clients"), []
    with closing(commits), closing(segments), closing(states):
        segments.write_to(states.segment(states.new_writer()))
        for round_ in range(10):
            new = stack([state(10 * round_ + client) for client in range(4)])
            where = segments.append_rows(new, 4, states.room(np.arange(4)))
            states.stage(np.arange(4), where)
            record = states.commit()
            commits.save({"clients": record}, states.growing, wait=states.crowded)
            states.sweep(commits.number, commits.needed)
            totals.append(states.total // states.length)
        assert max(totals) == 3 * 4 and states.generation == 0  # the states, and those of two rounds


# -- damage -----------------------------------------------------------------------------------------------------------
def test_each_flipped_bit_of_a_record_is_noticed(tmp_path):
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        first, second = (segments.append(state(x)) for x in (1, 2))
        rows = segments.append_rows(stack([state(3), state(4)]), 2)
    file = tmp_path / f"{0:012d}.seg"
    whole = bytearray(file.read_bytes())
    for place in range(second[1], second[1] + second[2]):
        whole[place] ^= 1
        file.write_bytes(whole)
        with closing(Segments(tmp_path)) as segments:
            assert number(segments.read(first)) == 1
            with pytest.raises(Damaged, match=f"checksum of the record at byte {second[1]}|{second[1]}"):
                segments.read(second)
        whole[place] ^= 1
    whole[int(rows[1, 1]) + 40] ^= 1
    file.write_bytes(whole)
    with closing(Segments(tmp_path)) as segments, pytest.raises(Damaged, match=f"at byte {rows[1, 1]} differs"):
        segments.read_rows(rows)


def test_records_of_several_blocks_are_read_in_any_order_and_a_damaged_one_is_named(tmp_path):
    """2,000 records of 1.3 kB are read in three blocks of 1 MB."""
    numbers, order = torch.arange(2000.0), np.random.default_rng(0).permutation(2000)
    with closing(Segments(tmp_path)) as segments:
        segments.write_to(0)
        where = segments.append_rows({"w": numbers[:, None].expand(2000, 300)}, 2000)
        assert torch.equal(segments.read_rows(where[order])["w"][:, 299], numbers[order])
        bad = where[order[1700]]
        with open(segments.path(0), "r+b") as file:
            file.seek(int(bad[1] + bad[2]) - 200)
            file.write(b"x")
        with pytest.raises(Damaged, match=f"at byte {bad[1]} differs"):
            segments.read_rows(where[order])
        assert torch.equal(segments.read_rows(where[order[:1700]])["w"][:, 0], numbers[order[:1700]])


def test_lost_segments_and_indices_are_named(tmp_path):
    one = Store(tmp_path)
    one.put({0: 1.0, 1: 2.0})
    record = one.commit()
    one.close()
    log, segment = tmp_path / "index-0.bin", next(tmp_path.glob("*.seg"))
    for file, what in ((log, "is missing"), (segment, "is missing")):
        file.rename(tmp_path / "away")
        whose = "states of 2 clients, such as 0: " if file == segment else ""
        with pytest.raises(Damaged, match=f"^{whose}{tmp_path}/{file.name} {what}"):
            Store(tmp_path, record)
        (tmp_path / "away").rename(file)
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(Damaged, match=f"^state of client 1: .*{segment.name} has .* bytes, but .* were committed"):
        Store(tmp_path, record)
    log.write_bytes(bytes([log.read_bytes()[0] ^ 4]) + log.read_bytes()[1:])
    with pytest.raises(Damaged, match="index-0.bin is damaged: the checksum of its first .* bytes differs"):
        Store(tmp_path, record)


def test_the_client_of_a_damaged_state_is_named(tmp_path):
    """Of a record whose bytes have changed: on resuming, and when states are copied to a new segment."""
    one = Store(tmp_path)
    one.put({4: 1.0, 7: 2.0, 9: 3.0})
    record, (file, begin, length) = one.commit(), one.states.locations(np.array([7]))[0].tolist()
    path = one.segments.path(file)
    whole = path.read_bytes()
    path.write_bytes(whole[: begin + length - 1] + bytes([whole[begin + length - 1] ^ 1]) + whole[begin + length :])
    with pytest.raises(Damaged, match=f"^state of client 7: {path} is damaged: the .* at byte {begin} differs"):
        Store(tmp_path, record)
    with pytest.raises(Damaged, match="^state of client 7: "):
        one.states.detach()
    one.close()


# -- streams ----------------------------------------------------------------------------------------------------------
SCHEMA = pa.schema({"round": pa.int32(), "value": pa.float64()})


def batch(round_: int, n: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array([round_] * n, pa.int32()), pa.array(np.arange(n) / 2)], schema=SCHEMA)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), kept=st.integers(0, 5), torn=st.binary(max_size=80))
def test_a_stream_is_cut_to_its_commit_and_goes_on(tmp_path_factory, sizes, kept, torn):
    path = tmp_path_factory.mktemp("stream") / "rows.arrow"
    kept = min(kept, len(sizes))
    with closing(ArrowStream(path, SCHEMA)) as stream:
        marks = [stream.mark] + [stream.append(batch(r, n)) for r, n in enumerate(sizes)]
    with open(path, "ab") as file:  # rows of an uncommitted round
        file.write(torn)
    with closing(ArrowStream(path, SCHEMA, marks[kept])) as stream:
        stream.cut()
        for round_, n in enumerate(sizes[kept:], kept):
            stream.append(batch(round_, n))
    assert path.stat().st_size == marks[-1].length
    table = ArrowStream.read(path, SCHEMA)
    assert table["round"].to_pylist() == [r for r, n in enumerate(sizes) for _ in range(n)]
    assert table["value"].to_pylist() == [i / 2 for n in sizes for i in range(n)]


def test_a_stream_shorter_than_its_commit_is_refused(tmp_path):
    with closing(ArrowStream(tmp_path / "rows.arrow", SCHEMA)) as stream:
        mark = stream.append(batch(0, 2))
    with pytest.raises(Damaged, match=f"has {mark.length} bytes, but {mark.length + 1} were committed"):
        ArrowStream(tmp_path / "rows.arrow", SCHEMA, replace(mark, length=mark.length + 1))


def test_a_stream_with_a_flipped_bit_is_refused(tmp_path):
    file = tmp_path / "rows.arrow"
    with closing(ArrowStream(file, SCHEMA)) as stream:
        mark = stream.append(batch(0, 2))
    file.write_bytes(file.read_bytes()[:-3] + b"\1" + file.read_bytes()[-2:] + b"more")
    with pytest.raises(Damaged, match=f"the checksum of its first {mark.length} bytes differs"):
        ArrowStream(file, SCHEMA, mark)
    assert file.stat().st_size == mark.length + 4  # as it was


def test_states_read_together_are_those_read_alone(tmp_path):
    """States of one structure are stacked, also from two segments. States of different structures are not."""
    trees = [
        {"c": Params.of({"w": torch.full((3, 2), 1.0 * i), "b": torch.arange(5.0) + i}), "n": torch.tensor(i)}
        for i in range(6)
    ]
    places, store = [], Segments(tmp_path)
    for segment, part in ((1, trees[:2]), (2, trees[2:])):
        store.write_to(segment)
        places += [store.append(tree) for tree in part]
    other = store.append({"c": trees[0]["c"]})
    order = [4, 0, 3, 1]
    rows = store.read_rows(np.array(places)[order])
    assert rows["n"].tolist() == order and store.read(places[4])["n"].item() == 4
    assert rows["c"]["w"][:, 0, 0].tolist() == [4.0, 0.0, 3.0, 1.0] and rows["c"]["b"][2].tolist() == [3, 4, 5, 6, 7]
    assert store.read_rows(np.array([places[0], other])) is None
    store.close()
