"""Workers that start while a run is set up, and stay for the next run: real Ray, real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fl
from fl.errors import ConfigError
from fl.execution.workers import ray_pool
from tests.watching import AtReady

pytestmark = pytest.mark.ray
WORKERS_STAY = False
PATIENCE = 300  # seconds to wait for an event that takes one second on an idle machine

CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3, "min_size": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"size": 6},
    "strategy": "fedavg",
    "client": {"lr": 0.1, "batch": 8},
    "execution": {"executor": "ray", "workers": 2},
}
SERIAL = {"execution.executor": "serial"}
RULE = """
from dataclasses import dataclass
from clients.sgd import LocalSGD

@dataclass(frozen=True, kw_only=True)
class Scaled(LocalSGD):
    def gradient(self, grad, params, at):
        return grad * {factor}
"""


def members(seen):
    """Return a callback that records the processes of a run's workers."""
    return AtReady(lambda run: seen.append({m.pid for m in run.executor.members}))


def by(rule):
    return {**CONFIG, "client": {"name": f"{rule}:Scaled", "lr": 0.1, "batch": 8}}


def alive(pid):
    return Path(f"/proc/{pid}").exists()


def test_runs_share_workers_and_nothing_else(tmp_path, monkeypatch):
    """The same processes run several methods one after another; each result equals that of a separate run."""
    monkeypatch.setattr(ray_pool, "RETIRE_SECONDS", PATIENCE)  # a slow worker on a busy machine is not declared dead
    rule, pids, runs = tmp_path / "rule.py", [], {}
    scaffold = {**CONFIG, "strategy": "scaffold"}
    with ray_pool.keep_workers():
        for name, config in (("scaffold", scaffold), ("fedavg", CONFIG), ("seed", {**CONFIG, "seed": 1})):
            runs[name] = fl.run(config, out=tmp_path / name, callbacks=[members(pids)]).digest
        for factor in (2, 3):  # a file that changes between two runs
            rule.write_text(RULE.format(factor=factor))
            runs[factor] = fl.run(by(rule), out=tmp_path / f"{factor}", callbacks=[members(pids)]).digest
        assert all(map(alive, pids[0]))
    assert len(pids) == 5 and all(one == pids[0] for one in pids)
    assert runs["scaffold"] == fl.run(scaffold, out=tmp_path / "a", **SERIAL).digest
    assert runs["fedavg"] == fl.run(CONFIG, out=tmp_path / "b", **SERIAL).digest
    for factor in (2, 3):
        (own := tmp_path / f"rule{factor}.py").write_text(RULE.format(factor=factor))
        assert runs[factor] == fl.run(by(own), out=tmp_path / f"s{factor}", **SERIAL).digest
    assert len(set(runs.values())) == 5
    deadline = time.monotonic() + PATIENCE
    while any(map(alive, pids[0])) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids[0]))


def test_a_mistake_found_while_ray_comes_up(tmp_path):
    """The partition is checked after reading the data: exit code 2, and no processes or files are left."""
    config = tmp_path / "config.yaml"
    partition = {"name": "dirichlet", "clients": 100, "alpha": 0.01, "min_size": 0}
    config.write_text(yaml.safe_dump({**CONFIG, "partition": partition}))
    mark = {"FL_TEST_MARK": str(tmp_path)}  # child processes inherit it
    command = [sys.executable, "-m", "fl", "run", str(config), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | mark)
    assert done.returncode == 2 and "have no data" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    deadline = time.monotonic() + PATIENCE
    while (left := marked(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def marked(mark):
    """Return the living processes with the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FL_TEST_MARK={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:  # ended, or another user's process
            pass
    return found


def test_a_mistake_in_the_command_starts_nothing(tmp_path, monkeypatch):
    """Errors that `resolve` finds are reported before any worker starts."""
    monkeypatch.setattr(ray_pool, "RayPool", None)
    with pytest.raises(ConfigError, match="client.epoch"):
        fl.run({**CONFIG, "client": {"epoch": 3}}, out=tmp_path / "out")
    assert not Path(tmp_path / "out").exists()
