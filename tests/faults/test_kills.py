"""The short form of the fault suite: killed drivers and workers, failing calls, full disks, many rounds."""

import pytest

import tests.process  # noqa: F401  # its server of processes has the heavy imports
from experiments.faults import drivers, long_run, surroundings, work, workers
from experiments.faults.facts import difference, facts
from experiments.faults.methods import METHODS, configuration
from experiments.faults.processes import KILLED, end_of, start
from fl.storage.run import committed

SEED = 1
QUICK = "scaffold"


@pytest.mark.parametrize("method", [m if m == QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_a_driver_killed_while_it_changes_files(method, tmp_path):
    outcome = drivers.at_calls(method, tmp_path, SEED, kills=2)
    assert outcome.equal and outcome.faults == 2, outcome


@pytest.mark.slow
def test_a_driver_killed_in_time(tmp_path):
    outcome = drivers.in_time("error feedback, delta", tmp_path, SEED, kills=2)
    assert outcome.equal, outcome


@pytest.mark.slow
@pytest.mark.parametrize("case", [drivers.sweep, drivers.prolonged])
def test_killed_sweeps_and_prolonged_runs(case, tmp_path):
    outcome = case(tmp_path, SEED, 2)
    assert outcome.equal and outcome.faults == 2, outcome


def test_a_kill_within_the_first_commit_leaves_a_run_that_can_begin_again(tmp_path):
    """Each call of the first commit in turn; a torn commit has no name, so `fl run` does not take it for a run."""
    raw, log, count = configuration(QUICK, rounds=2), tmp_path / "log", tmp_path / "calls"
    end_of(start(work.until_call, raw, tmp_path / "whole", 0, None, count, log=log), log)
    expected, begun, torn = facts(tmp_path / "whole"), 0, 0
    for call in range(int(count.read_text()) // 2, 0, -2):  # backwards, to the last call before the first commit
        run = tmp_path / f"run-{call}"
        assert end_of(start(work.until_call, raw, run, SEED, call, log=log), log) == KILLED
        torn += (run / "checkpoints" / "last-0.safetensors.part").exists()
        begun += not committed(run)
        if not committed(run):
            assert end_of(start(work.until_call, raw, run, SEED, None, log=log), log) == 0
            assert not difference(facts(run), expected)
        if begun == 6:
            break
    assert begun and torn


@pytest.mark.ray
def test_workers_killed_while_they_change_files(tmp_path):
    outcome = workers.at_calls(QUICK, tmp_path, SEED, kills=2)
    assert outcome.equal and outcome.faults, outcome


@pytest.mark.ray
def test_workers_killed_in_time(tmp_path):
    outcome = workers.in_time("three exchanges", tmp_path, SEED, kills=2)
    assert outcome.equal, outcome


@pytest.mark.slow
@pytest.mark.parametrize("method", ["error feedback, delta", "fedavg, baselines"])
def test_failing_calls(method, tmp_path):
    outcome = surroundings.failing_calls(method, tmp_path, SEED, errors=2)
    assert outcome.equal, outcome


def test_a_run_continues_once_the_disk_has_room(tmp_path):
    if not surroundings.may_mount(tmp_path):
        pytest.skip("needs the right to mount a file system")
    outcome = surroundings.full_disk(QUICK, tmp_path, SEED, disks=2)
    assert outcome.equal and outcome.faults, outcome


@pytest.mark.slow
def test_a_read_only_folder(tmp_path):
    if not surroundings.may_mount(tmp_path):
        pytest.skip("needs the right to mount a file system")
    assert surroundings.read_only(tmp_path, SEED).equal


@pytest.mark.slow
def test_rounds_of_a_stateful_method_need_no_more_handles(tmp_path):
    outcome = long_run.flat(tmp_path, 100)
    assert outcome.equal, outcome
