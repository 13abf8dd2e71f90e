"""A resumed run compares itself with its beginning; faults of the machine are not faults of clients."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import fl
from clients.sgd import LocalSGD
from fl.errors import ClientError, ConfigError, MachineError
from fl.execution.machine_faults import is_machine_fault
from fl.storage.run import read_metrics
from fl.tensors.params import Params
from tests import process
from tests.trust.test_files import CONFIG, RULE
from tests.watching import AfterRound

DIFFER = "has changed since the run began: "


@pytest.fixture
def run(tmp_path) -> Path:
    """The directory of a run of two rounds: data from a file, a rule of the user's own with a helper beside it."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 3)).astype(np.float32), y=np.arange(40) % 2)
    np.savez(tmp_path / "parts.npz", client=np.arange(40) % 4)
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "helper.py").write_text("FACTOR = 1.0\n")
    changes = {
        "data": str(tmp_path / "data.npz"),
        "partition": {"name": "file", "path": str(tmp_path / "parts.npz")},
        "strategy": f"{tmp_path}/rule.py:Rule",
        "client": "sgd",
    }
    return fl.run({**CONFIG, **changes}, out=tmp_path / "run").directory


def edit_config(run: Path, monkeypatch) -> str:
    path = run / "config.yaml"
    changed = yaml.safe_load(path.read_text())
    changed["client"]["lr"] = 0.5
    path.write_text(yaml.safe_dump(changed))
    return "client.lr: 0.5, was "


def edit_data(run: Path, monkeypatch) -> str:
    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    np.savez(run.parent / "data.npz", x=x, y=np.arange(40) % 2)
    return r"the data \(SHA-256 [0-9a-f]{12}, now [0-9a-f]{12}\)"


def edit_partition(run: Path, monkeypatch) -> str:
    np.savez(run.parent / "parts.npz", client=np.arange(40) // 10)
    return r"the partition \(SHA-256 "


def edit_rule(run: Path, monkeypatch) -> str:
    (run.parent / "rule.py").write_text(RULE.replace("helper.FACTOR", "2 * helper.FACTOR"))
    return r"rule.py \(the old text is in code/\)"


def edit_helper(run: Path, monkeypatch) -> str:
    (run.parent / "helper.py").write_text("FACTOR = 2.0\n")
    return r"helper.py \(the old text is in code/\)"


def another_version(run: Path, monkeypatch) -> str:
    path = run / "environment.json"
    before = json.loads(path.read_text())
    before["packages"]["torch"] = "1.0.0"
    path.write_text(json.dumps(before))
    return rf"torch {torch.__version__.split('+')[0]}.*, was 1.0.0"


def no_record(run: Path, monkeypatch) -> str:
    (run / "environment.json").unlink()
    return "environment.json cannot be read"


@pytest.mark.parametrize(
    "edit", [edit_config, edit_data, edit_partition, edit_rule, edit_helper, another_version, no_record]
)
def test_a_changed_run_is_resumed_only_if_asked_for(edit, run, monkeypatch):
    before = [row["round"] for row in fl.resume(run).metrics]
    words = edit(run, monkeypatch)
    with pytest.raises(ConfigError, match=DIFFER + ".*" + words):
        fl.resume(run, rounds="+1")
    assert before == [0, 1]
    result = fl.resume(run, changed=True, rounds="+1")
    assert len(result.metrics) == 3
    history = json.loads((run / "environment.json").read_text())["changes"]
    assert [change["round"] for change in history] == [2]
    assert len(fl.resume(run, rounds="+1").metrics) == 4  # the changed state is the one to compare with now


def test_what_does_not_change_results_may_change(run):
    result = fl.resume(run, rounds="+1", **{"execution.workers": 1, "checkpoint.every": 2})
    assert len(result.metrics) == 3


def test_the_command_has_the_option(run):
    edit_helper(run, None)
    refused = process.fl("resume", run, "rounds=+1")
    assert refused.returncode == 2 and "--changed" in refused.stderr
    assert process.fl("resume", run, "rounds=+1", "--changed").returncode == 0


def test_the_run_directory_has_the_users_files(run):
    assert {path.name for path in (run / "code").iterdir()} == {"rule.py", "helper.py"}
    assert (run / "code" / "helper.py").read_text() == "FACTOR = 1.0\n"


# -- faults of the machine --------------------------------------------------------------------------------------------
DROP = {**CONFIG, "cohort": {"size": 4}, "execution": {"executor": "serial", "on_client_error": "drop"}}


@pytest.mark.parametrize("plan", ["loop", "stacked"])
def test_a_full_disk_stops_the_run_in_drop_mode(plan, tmp_path):
    """The kernel refuses to make a file larger than the limit, as a full disk would; states of clients are larger."""
    execution = {**DROP["execution"], "plan": plan}
    code = f"""
import resource, sys
import fl
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
try:
    fl.run({ {**DROP, "execution": execution}!r}, out={str(tmp_path / "out")!r})
except fl.errors.MachineError as error:
    print(error)
"""
    done = process.python(code)
    assert done.stdout.startswith("round 0, stage 'state': OSError: [Errno 27] File too large"), done.stderr[-500:]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 200 kB; skips without the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_run_continues_once_the_disk_has_room(small_disk, tmp_path):
    config = {**DROP, "rounds": 30}
    with pytest.raises(Exception, match="No space left on device"):
        fl.run(config, out=small_disk / "out")
    assert not any(row["dropped"] for row in read_metrics(small_disk / "out"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert fl.resume(small_disk / "out").digest == fl.run(config, out=tmp_path / "whole").digest


RAY = pytest.param("ray", "loop", marks=pytest.mark.ray)


@pytest.mark.parametrize(("executor", "plan"), [("serial", "loop"), ("serial", "stacked"), RAY])
def test_a_lost_segment_stops_the_run_in_drop_mode(executor, plan, tmp_path):
    config = {**DROP, "execution": {**DROP["execution"], "executor": executor, "plan": plan}}

    def lose(row: object) -> None:
        for file in (tmp_path / "out" / "clients").glob("*.seg"):
            file.unlink()

    with pytest.raises(MachineError, match=r"round 1, stage .*/clients/\d{12}.seg is missing"):
        fl.run(config, out=tmp_path / "out", callbacks=[AfterRound(lose)])


@dataclass(frozen=True, kw_only=True)
class Sends(LocalSGD):
    """A client algorithm of which one client sends other tensors or metrics."""

    whose: int = 2
    what: str = ""

    def work(self, name, ctx, carry):
        reply = super().work(name, ctx, carry)
        update = reply.update
        if ctx.client != self.whose:
            return reply
        model = update.groups["model"]
        if self.what == "metric":
            return replace(reply, update=replace(update, metrics={"mood": "good"}))
        if self.what == "name":
            tensors = {f"{key}x" if key == min(model) else key: value for key, value in model.items()}
        elif self.what == "shape":
            tensors = {key: value.reshape(-1) for key, value in model.items()}
        elif self.what == "group":
            return replace(reply, update=replace(update, groups={"model": model, "more": model}))
        elif self.what == "missing":
            tensors = {max(model): model[max(model)]}
        return replace(reply, update=replace(update, groups={"model": Params.of(tensors)}))


FEDAVG = {**DROP, "strategy": "fedavg", "client": "sgd"}


@pytest.mark.parametrize("whose", range(4))
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("name", "client Sends: work returned the tensor"),
        ("shape", "with the shape"),
        ("metric", "metric 'mood' is 'good', not a number"),
        ("group", "client Sends: work returned the group 'more'"),
    ],
)
def test_a_misnamed_tensor_is_the_fault_of_its_client(what, message, whose, tmp_path):
    def run(name, clients, **more):
        cohort = {"name": "fixed", "clients": clients}
        return fl.run({**FEDAVG, "rounds": 1, "cohort": cohort, **more}, out=tmp_path / name)

    four = run("four", [0, 1, 2, 3], client=Sends(whose=whose, what=what))
    three = run("three", [client for client in range(4) if client != whose])
    (row,) = four.metrics
    assert row["dropped"] == 1 and f"client {whose}" in row["errors"][0] and message in row["errors"][0]
    assert (four.model.compact() - three.model.compact()).abs().max() < 1e-6


def test_a_misnamed_tensor_ends_a_run_that_raises(tmp_path):
    config = {**FEDAVG, "client": Sends(what="name"), "execution": {"executor": "serial"}}
    with pytest.raises(ClientError, match="client 2, round 0.*returned the tensor"):
        fl.run(config, out=tmp_path)


def test_different_tensors_of_unknown_fault_end_the_run(tmp_path):
    with pytest.raises(ClientError, match="sent different tensors in the group 'model'"):
        fl.run({**FEDAVG, "client": Sends(what="missing")}, out=tmp_path)


@pytest.mark.parametrize(
    ("error", "is_machines"),
    [
        (OSError(28, "No space left on device"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MachineError("a lost segment"), True),
        (FileNotFoundError(2, "No such file", "/run/clients/0.seg"), True),
        (FileNotFoundError(2, "No such file", "/home/me/words.txt"), False),
        (ValueError("loss is NaN"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_faults_of_the_machine(error, is_machines):
    assert is_machine_fault(error, [Path("/run/clients"), Path("/run/scratch")]) == is_machines


def test_memory_that_torch_cannot_get_is_a_fault_of_the_machine():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_machine_fault(caught.value, [])


def test_a_dead_store_of_ray_is_a_fault_of_the_machine():
    from ray.exceptions import RaySystemError

    assert is_machine_fault(RaySystemError("the store is gone"), [])
