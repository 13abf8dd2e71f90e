"""Run directories and configurations of strangers, and several writers: the attacks of docs/trust.md, "Files"."""

import fcntl
import json
import os
import shutil
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
import yaml

import fl
from fl.config.reading import read
from fl.config.references import references_to_code
from fl.errors import ConfigError
from fl.storage import files
from fl.storage.lock import LOCK, locked
from fl.storage.run import committed_model, last_commit
from fl.tensors import serialise
from tests import process

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": "scaffold",
    "execution": {"executor": "serial"},
}
CONFIG["strategy"] = "scaffold"  # its clients have states


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trust") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(config) -> Path:
    """A run of two rounds."""
    return fl.run(config, out=config.parent / "finished").directory


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the finished run, to be attacked."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# -- one writer -------------------------------------------------------------------------------------------------------
def test_a_second_writer_learns_who_writes_and_changes_nothing(config, copy):
    with locked(copy):
        before = contents(copy)
        attempts = [process.fl("resume", copy, "rounds=+2"), process.fl("run", config, "--out", copy)]
        attempts.append(process.fl("resume", copy))
        assert contents(copy) == before
        for done in attempts:
            assert done.returncode == 2
            assert f"is in use by process {os.getpid()} on {socket.gethostname()} since 2" in done.stderr


def test_two_runs_into_one_directory_at_once(config, tmp_path, finished):
    """One of them runs, as if it were alone; the other one stops before it has written anything."""
    results = []
    command = ("run", config, "rounds=40", "--out", tmp_path / "out")
    threads = [threading.Thread(target=lambda: results.append(process.fl(*command))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.returncode for done in results) == [0, 2]
    alone = fl.run(config, out=tmp_path / "alone", rounds=40)
    assert process.fl("digest", tmp_path / "out").stdout.strip() == alone.digest
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 40


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = f"""
import time
from pathlib import Path
from fl.storage.lock import locked
with locked(Path({str(tmp_path)!r})):
    Path({str(tmp_path / "held")!r}).touch()
    time.sleep(600)
"""
    holder = process.start(code)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid} "), locked(tmp_path):
        pass
    holder.kill()
    holder.join()
    with locked(tmp_path):
        pass


def test_another_thread_is_another_writer(tmp_path):
    caught = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except ConfigError as error:
            caught.append(str(error))

    with locked(tmp_path), locked(tmp_path):  # the same thread may
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "is in use by process" in caught[0]


def test_readers_need_no_lock(finished):
    with locked(finished):
        for command in ("compare", "ledger", "participation", "digest"):
            assert process.fl(command, finished).returncode == 0


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert "has no locks (No locks available); make sure that no other process writes" in caplog.text


def test_a_run_does_not_move_into_a_folder_with_files_of_others(config, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.tex").write_text("all")
    with pytest.raises(ConfigError, match="holds scratch, which no run of fl has written"):
        fl.run(config, out=tmp_path)
    assert (tmp_path / "scratch" / "thesis.tex").read_text() == "all"


# -- a stranger's configuration and run directory ---------------------------------------------------------------------
def hostile(path: Path, marker: Path) -> None:
    """Have the configuration at `path` name a function of Python's, with the arguments that an attacker wants."""
    changed = yaml.safe_load(path.read_text())
    changed["strategy"] = {"name": "os:system", "command": f"touch {marker}"}
    path.write_text(yaml.safe_dump(changed))


@pytest.mark.parametrize(
    "command", ["digest", "compare", "ledger", "participation", "matrix", "resume", "run", "partition"]
)
def test_no_command_calls_what_a_strangers_configuration_names(command, copy, tmp_path):
    marker = tmp_path / "called"
    hostile(copy / "config.yaml", marker)
    (copy / "model.safetensors").unlink()  # so that digest reads the checkpoint
    target = copy / "config.yaml" if command in ("run", "partition") else copy
    done = process.fl(command, target, folder=tmp_path)
    assert not marker.exists()
    reads = command in ("digest", "compare", "ledger", "participation")
    assert done.returncode == (0 if reads else 2), done.stderr


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("model", "os:system"),
        ("model", "shutil:rmtree"),
        ("data", f"{shutil.__file__}:rmtree"),
        ("data", "numpy:load"),
        ("data", "fl.storage.files:remove_folder"),
        ("model", "torch:load"),
        ("strategy", "clients.sgd:LocalSGD"),
        ("codec.up", "subprocess:Popen"),
        ("cohort", "builtins:exec"),
    ],
)
def test_only_parts_are_called(key, part, config, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    arguments = {"name": part, "path": str(victim), "command": f"rmdir {victim}", "args": ["rmdir", str(victim)]}
    with pytest.raises(ConfigError, match="standard library|must be a registered part|derives from"):
        fl.run(config, out=tmp_path / "out", **{key: arguments})
    assert victim.exists() and not (tmp_path / "out" / "metrics.jsonl").exists()


def test_the_digest_imports_no_code_of_the_run(copy, tmp_path):
    """The code of the run is on no path and would stop the process."""
    (tmp_path / "rule.py").write_text("raise SystemExit(9)")
    changed = yaml.safe_load((copy / "config.yaml").read_text())
    changed["strategy"] = {"name": f"{tmp_path}/rule.py:Rule"}
    (copy / "config.yaml").write_text(yaml.safe_dump(changed))
    known = process.fl("digest", copy).stdout
    (copy / "model.safetensors").unlink()
    done = process.fl("digest", copy)
    assert done.returncode == 0 and done.stdout == known


AVERAGED = {"strategy": {"name": "fedexp", "average": True}, "client": "sgd"}


@pytest.mark.parametrize("method", [{}, AVERAGED, {"strategy": "fedavg", "client": "sgd"}])
def test_the_committed_model_is_the_strategys(method, config, tmp_path):
    result = fl.run(config, out=tmp_path / "out", **method)
    assert serialise.digest(committed_model(last_commit(result.directory))) == result.digest


def test_a_checkpoint_imports_no_module(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit(9)")
    skeleton = json.dumps({"tree": {"class": "evil:State", "fields": []}, "tensors": []})
    os.sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValueError, match="evil:State, which is not a dataclass of this run"):
            serialise.unflatten(skeleton, [])
    finally:
        os.sys.path.remove(str(tmp_path))
    assert serialise.unflatten(skeleton, [], plain=True) == {}


RULE = """
from dataclasses import dataclass
from strategies.fedavg import FedAvg
import helper

@dataclass(frozen=True, kw_only=True)
class Rule(FedAvg):
    def step(self, state, mean, ctx):
        return super().step(state, helper.FACTOR * mean, ctx)
"""


@pytest.fixture
def own(tmp_path, config) -> Path:
    """The directory of a run with a rule of the user's own, and a helper beside it."""
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "helper.py").write_text("FACTOR = 1.0\n")
    strategy = {"strategy": f"{tmp_path}/rule.py:Rule", "client": "sgd"}
    return fl.run(config, out=tmp_path / "own", **strategy).directory


def test_resume_says_which_code_it_runs(own):
    done = process.fl("resume", own, "rounds=+1")
    assert done.returncode == 0
    said = "".join(done.stderr.split())  # lines are wrapped, also within a path
    assert f"resumerunsthecodeoftherun:{own.parent}/rule.py" in said


def test_the_code_of_a_configuration_is_found_in_every_form():
    raw = {
        "strategy": "/s/rule.py:Rule",
        "client": {"/s/client.py:Client": {"lr": 0.1}},
        "codec": {"up": ["sign", "mine.codecs:Codec"], "down": {"name": "/s/down.py:Codec"}},
        "data": {"name": "file", "path": "C:data"},
        "transforms": [{"name": "clip", "bound": 1.0}, "mine:Transform"],
        "task": "object:Task",
        "model": {"name": "mlp", "init": "runs/a:b"},
    }
    code = ["/s/rule.py", "/s/client.py", "mine.codecs", "/s/down.py", "mine"]
    assert references_to_code(raw) == code


def test_a_configuration_is_read_without_its_code(tmp_path):
    (tmp_path / "rule.py").write_text("raise SystemExit(9)")
    assert read({**CONFIG, "strategy": {f"{tmp_path}/rule.py:Rule": {"lr": 1.0}}})["strategy"]["lr"] == 1.0


PICKLE = ("pickle.load", "Unpickler", "import dill", "import joblib", "import shelve", "import marshal")
WORKERS = ("fl/execution/workers/", "fl/flower/worker.py", "fl/flower/grid.py", "fl/tensors/pickling.py")


def test_no_pickle_is_read_from_a_file():
    """Only messages between a run's own processes are pickled."""
    root = Path(fl.__file__).parent.parent
    for package in ("fl", "strategies", "clients", "partitions"):
        for file in (root / package).rglob("*.py"):
            text, name = file.read_text(), str(file.relative_to(root))
            if not name.startswith(WORKERS):
                code = [line for line in text.splitlines() if "json.dump(pickle.load(" not in line]  # a docstring
                assert not any(word in line for word in PICKLE for line in code), name
            assert "torch.load(" not in text and "allow_pickle=True" not in text, name


# -- links ------------------------------------------------------------------------------------------------------------
FOLDERS = ["scratch", "checkpoints", "clients", "streams", "baselines"]
SINGLE = [
    *("metrics.jsonl", "config.yaml", "environment.json", "ledger.parquet", "clients.parquet", "model.safetensors"),
    *("streams/ledger.arrow", "streams/clients-0.arrow", "clients/index-0.bin", "clients/000000000000.seg"),
    *("clients/000000000001.seg", "config.yaml.part", "checkpoints/last-0.safetensors", LOCK),
    *("scratch/000000000000.seg", "checkpoints/best.safetensors", "clients/best.npy"),
    *("ledger.parquet.part", "checkpoints/best.safetensors.part", "model.safetensors.part"),
]


def resumed(directory: Path) -> str:
    """Resume with two more rounds; return the refusal, "" without one."""
    try:
        fl.resume(directory, rounds="+2")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FOLDERS)
def test_a_linked_folder_is_not_entered(name, copy, tmp_path):
    victim = tmp_path / "photos"
    (victim / "last").mkdir(parents=True)
    for file in ("one.jpg", "000000000000.seg", "best.json", "ledger.arrow"):
        (victim / file).write_text("a memory")
    before = contents(victim)
    shutil.rmtree(copy / name, ignore_errors=True)
    (copy / name).symlink_to(victim)
    try:
        answer = resumed(copy)
    except FileNotFoundError as error:  # there is no checkpoint in the linked folder
        answer = str(error)
    assert contents(victim) == before
    if name in ("scratch", "clients", "streams"):
        assert f"{copy / name} is a link to {victim}; fl writes only to files and folders of its own" in answer


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_linked_file_is_not_written(name, kind, copy, tmp_path):
    victim, path = tmp_path / "thesis.tex", copy / name
    if path.is_file():
        path.rename(victim)  # a victim that can be read as the file of a run
    else:
        victim.write_text("chapter one")
    before = victim.read_bytes()
    if kind == "symbolic":
        path.symlink_to(victim)
    else:
        path.hardlink_to(victim)
    answer = resumed(copy)
    assert victim.read_bytes() == before
    assert not answer or "is a link to" in answer or "with several names" in answer


def test_a_pipe_does_not_block(copy):
    (copy / LOCK).unlink()
    os.mkfifo(copy / LOCK)
    with pytest.raises(ConfigError, match="is a pipe, a socket or a device"), locked(copy):
        pass


def test_the_run_directory_itself_may_be_a_link(copy, tmp_path):
    (tmp_path / "latest").symlink_to(copy)
    assert len(fl.resume(tmp_path / "latest", rounds="+1").metrics) == 3


def test_an_error_while_a_file_is_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    files.write_file(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"model": b"old"}


@pytest.mark.parametrize("mask", [0o002, 0o027])
def test_files_have_the_users_umask(mask, config, tmp_path):
    before = os.umask(mask)
    try:
        out = fl.run(config, out=tmp_path / "out").directory
    finally:
        os.umask(before)
    for path in out.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, path
