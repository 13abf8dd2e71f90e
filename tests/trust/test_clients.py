"""Client code that writes where it must not, ends the process, crashes or hangs: docs/trust.md, "Clients and signals".

Real Ray, real processes. Workers are shared by all tests of the file.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

import fl
from fl import registry
from fl.check.check import check
from fl.errors import ClientError, ConfigError, MachineError
from fl.execution.isolation import ExitRaised, _settings, isolated
from fl.execution.shared_values import SharedValues, SharedValueWritten
from fl.execution.workers import ray
from tests import process
from tests.test_bench import MICRO
from tests.watching import AtStart

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 6},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "execution": {"executor": "serial", "plan": "loop"},
}
RAY = {"execution.executor": "ray", "execution.workers": 2}
# a client algorithm; one of its clients does something after its training
RULE = """
import contextlib, ctypes, os, sys, time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clients.sgd import LocalSGD

FOLDER = Path({folder!r})

def in_worker():
    return "default_worker" in sys.argv[0]

def first_time(client):
    "Whether no process has been here before."
    try:
        (FOLDER / f"client-{{client}}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

@dataclass(frozen=True, kw_only=True)
class Rule(LocalSGD):
    def work(self, name, ctx, carry):
        reply = super().work(name, ctx, carry)
        if ctx.client == {client}:
            self.attack(ctx)
        return reply

    def attack(self, ctx):
        {attack}

{more}
"""


@pytest.fixture
def attacked(tmp_path):
    """Return a function that runs a configuration whose client does something."""

    def run(attack, client=2, more="", **overrides):
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        folder.mkdir()
        (folder / "rule.py").write_text(RULE.format(folder=str(folder), client=client, attack=attack, more=more))
        everyone = {"cohort": {"name": "fixed", "clients": [0, 1, 2, 3, 4, 5]}}
        config = CONFIG | everyone | {"client": {"name": f"{folder}/rule.py:Rule", "lr": 0.1, "batch": 16}}
        return fl.run(config, out=folder / "out", **overrides)

    return run


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory):
    """The digest of the run without an attack."""
    everyone = {"cohort": {"name": "fixed", "clients": [0, 1, 2, 3, 4, 5]}}
    config = CONFIG | everyone | {"client": {"lr": 0.1, "batch": 16}}
    return fl.run(config, out=tmp_path_factory.mktemp("run") / "out").digest


# -- what a client writes into ----------------------------------------------------------------------------------------
def test_a_batch_is_the_clients_own(attacked, unharmed):
    """Samples that a client has taken may be changed in place; those of others, and its own next time, stay."""
    take = 'for batch in (ctx.train.take(), ctx.train.take(slice(2)), ctx.train.without("y").take()): '
    assert attacked(take + 'batch["x"].zero_()').digest == unharmed


WRITTEN = {
    "ctx.received.model.1.weight": 'ctx.received["model"]["1.weight"].zero_()',
    "ctx.received.model.1.bias": 'ctx.initial.trained["1.bias"].add_(1)',  # in round 0 both are the same memory
    "ctx.train.arrays.x": 'ctx.train.arrays["x"][-1] = 7',
    "ctx.train.arrays.y": 'ctx.train.arrays["y"].numpy()[0] += 1',
    "ctx.config.level": 'ctx.config["level"] = 2',
}
LEVEL = """
from strategies.fedavg import FedAvg
from fl.method.messages import Broadcast

class Level(FedAvg):
    def broadcast(self, state, ctx):
        return Broadcast(shared={"model": state.model}, config={"level": 1})
"""


@pytest.mark.parametrize("name", WRITTEN)
def test_a_client_that_writes_into_shared_values_is_named(name, attacked, tmp_path):
    (tmp_path / "level.py").write_text(LEVEL)
    strategy = {"strategy": f"{tmp_path}/level.py:Level"} if "config" in name else {}
    with pytest.raises(ClientError) as caught:
        attacked(WRITTEN[name], **strategy, **{"execution.on_client_error": "drop"})
    said = str(caught.value).partition("\n")[0]
    assert said.startswith(f"client 2, round 0, stage 'train': SharedValueWritten: it wrote into {name}; change a copy")


STATE = """
    def first_state(self, inputs):
        return {"n": torch.zeros(1)}

    def finish(self, end):
        return super().finish(end)[0], {"n": torch.ones(1)}
"""


def test_a_client_that_writes_into_its_old_state_is_named(attacked):
    """Round 1 is the first round of a resumed run; in round 0 there is no old state."""
    out = attacked('ctx.state and ctx.state["n"].add_(1)', more=STATE, rounds=1).directory
    with pytest.raises(ClientError, match="client 2, round 1, stage 'train': .* it wrote into ctx.state.n; change"):
        fl.resume(out, rounds="+1")


def test_large_data_are_compared_less_often():
    """After clients 1, 2, 4, ... and the last: several are suspects."""
    data = torch.zeros(1 << 21)  # 8 MB
    values = SharedValues({"x": data}, thrifty=True)
    for client in (10, 11):
        values.check([client])
    data[5] = 1
    values.check([12])
    with pytest.raises(SharedValueWritten, match="it wrote into x"):
        values.check([13])
    assert values.suspects == [12, 13]
    data[5] = 0
    values = SharedValues({"x": data}, thrifty=True)
    for client in (1, 2, 3):
        data[6] = client == 3
        values.check([client])
    with pytest.raises(SharedValueWritten):
        values.check([], last=True)
    assert values.suspects == [3]


def test_check_finds_a_client_that_writes_into_the_data(tmp_path):
    (tmp_path / "rule.py").write_text(
        RULE.format(folder="", client=0, attack='ctx.train.arrays["x"].mul_(1.0 + ctx.round / 2)', more="")
    )
    broken = [finding for finding in check(f"{tmp_path}/rule.py:Rule") if not finding.ok]
    assert any("the data" in finding.detail for finding in broken)


# -- settings of torch ------------------------------------------------------------------------------------------------
SETTINGS = """torch.set_default_dtype(torch.float64); torch.set_num_threads(2); torch.manual_seed(1)
        torch.set_default_device("meta"); torch.use_deterministic_algorithms(True); np.random.rand(3)
        torch.set_float32_matmul_precision("medium"); torch.autograd.set_detect_anomaly(True)
        torch.autocast("cpu").__enter__(); torch.set_grad_enabled(False)
        sys.guard = torch.inference_mode(); sys.guard.__enter__()
"""
DRAWS = """
    def finish(self, end):
        groups, state = super().finish(end)
        return {name: value + float(torch.rand(1)) * np.random.rand() for name, value in groups.items()}, state
"""


def test_settings_of_torch_are_reset_after_each_client(attacked):
    """Default type and device, threads, gradients, inference mode, generators, ...: other clients do not see them."""
    before = _settings()
    assert attacked(SETTINGS, more=DRAWS).digest == attacked("pass", more=DRAWS).digest
    assert _settings() == before


def test_settings_are_reset_after_an_error():
    before = _settings()
    with contextlib.suppress(ValueError), isolated():
        torch.set_default_dtype(torch.float64)
        raise ValueError
    assert _settings() == before


# -- the end of the process -------------------------------------------------------------------------------------------
ENDS = {"sys.exit(3)": "SystemExit(3)", "raise KeyboardInterrupt": "KeyboardInterrupt()"}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("executor", [{}, pytest.param(RAY, marks=pytest.mark.ray)], ids=["serial", "ray"])
def test_sys_exit_is_the_error_of_its_client(end, executor, attacked):
    with pytest.raises(ClientError, match="^client 2, round 0, stage 'train': ExitRaised: ") as caught:
        attacked(end, **executor)
    assert ENDS[end] in str(caught.value)
    dropped = attacked(end, **executor, **{"execution.on_client_error": "drop"})
    assert [row["dropped"] for row in dropped.metrics] == [1, 1]


def test_sys_exit_of_a_strategy_is_an_error(tmp_path):
    (tmp_path / "level.py").write_text(LEVEL.replace("return Broadcast", "raise SystemExit(0); return Broadcast"))
    with pytest.raises(ExitRaised, match="SystemExit"):
        fl.run(CONFIG | {"strategy": f"{tmp_path}/level.py:Level"}, out=tmp_path / "out")


def test_sys_exit_while_a_users_file_is_imported(tmp_path):
    (tmp_path / "level.py").write_text("raise SystemExit(0)")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG | {"strategy": f"{tmp_path}/level.py:Level"}))
    done = process.fl("run", tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert done.returncode in (1, 2) and "SystemExit" in done.stderr


@pytest.mark.parametrize("handler", [signal.default_int_handler, lambda number, frame: sys.exit(number)])
@pytest.mark.parametrize("work", [lambda: time.sleep(60), lambda: [None for _ in iter(int, 1)]])
def test_a_signal_is_not_the_error_of_a_client(handler, work):
    before = signal.signal(signal.SIGINT, handler)
    try:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises((KeyboardInterrupt, SystemExit)), isolated():
            work()
    finally:
        signal.signal(signal.SIGINT, before)


# -- crashes, kills and hangs, on Ray ---------------------------------------------------------------------------------
HANG = "ctypes.PyDLL(None).sleep(600)"  # it keeps the interpreter's lock
TIMEOUT = {"execution.client_timeout": 3.0}


@pytest.mark.ray
def test_clients_that_end_their_worker_once_are_tried_again(attacked, unharmed, caplog):
    """A segmentation fault and a hang in one run; tests/execution/test_same_bits.py has kills."""
    attack = f"first_time(ctx.client) and [lambda: ctypes.string_at(0), lambda: {HANG}][ctx.client]()"
    assert attacked(f"ctx.client < 2 and {attack}", client="ctx.client", **RAY, **TIMEOUT).digest == unharmed
    for client in range(2):
        assert f"trying again: client {client}, round 0, stage 'train': it" in caplog.text


@pytest.mark.ray
def test_a_client_that_crashes_twice_is_named(attacked, capfd):
    """Also in drop mode: a time-out or a crash drops no client. Ray keeps our handler, and prints nothing."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ClientError) as caught:
        attacked("os._exit(7)", **RAY, **{"execution.on_client_error": "drop"})
    crash = "its process crashed (a segmentation fault, os._exit) or was killed, for the second time"
    assert signal.getsignal(signal.SIGTERM) is handler and capfd.readouterr().out == ""
    assert str(caught.value) == f"client 2, round 0, stage 'train': {crash}"


@pytest.mark.ray
def test_a_client_that_hangs_twice_is_named(attacked):
    with pytest.raises(ClientError) as caught:
        attacked("time.sleep(600)", **RAY, **TIMEOUT, **{"execution.on_client_error": "drop"})
    late = (
        r"it took longer than execution.client_timeout, 3 s, at File .*rule.py., line 33 in attack, for the second time"
    )
    assert re.fullmatch(f"client 2, round 0, stage 'train': {late}", str(caught.value))


@pytest.mark.ray
def test_workers_that_die_faster_than_they_are_replaced_end_the_run(attacked, monkeypatch):
    """Each worker dies while it imports the client's file. Workers of later runs must not import it."""
    monkeypatch.setattr(ray, "ATTEMPTS", 2)
    monkeypatch.setattr(registry, "_sources", registry.sources())
    monkeypatch.setattr(registry, "_texts", dict(registry._texts))
    with pytest.raises(MachineError) as caught:
        attacked("pass", more="if in_worker(): os._exit(1)", **RAY | {"execution.workers": 1})
    assert str(caught.value).startswith("new workers died before they worked, 2 times, and no other worker is alive. ")
    assert "\n" not in str(caught.value)


def test_a_timeout_needs_ray(tmp_path):
    with pytest.raises(ConfigError, match="execution.client_timeout: the serial executor cannot end .* executor: ray"):
        fl.run(CONFIG, out=tmp_path / "out", **{"execution.client_timeout": 5})
    with pytest.raises(ConfigError, match="execution.client_timeout: 0.0 is not positive"):
        fl.run(CONFIG, out=tmp_path / "out", **RAY, **{"execution.client_timeout": 0})


def test_the_first_line_of_a_serial_run_says_what_ends_it(tmp_path):
    lines = []
    fl.run(CONFIG, out=tmp_path / "out", callbacks=[AtStart(lambda run: lines.append(run.headline))])
    assert lines[0].endswith("a crash or a hang of client code ends a serial run")


# -- signals ----------------------------------------------------------------------------------------------------------
MAIN = """
import sys
from fl.cli.app import main
sys.argv = {words!r}
main()
"""
SLOW = """
import time
from pathlib import Path

class Slow:
    def load(self):
        Path({folder!r}, "loading").touch()
        time.sleep(600)
"""


def until(ready):
    deadline = time.monotonic() + 120
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("when", ["data", "rounds"])
def test_sigterm_ends_a_run_as_ctrl_c_does(when, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.format(folder=str(tmp_path)))
    config, out, output = tmp_path / "c.yaml", tmp_path / "out", tmp_path / "output"
    data = {"data": f"{tmp_path}/slow.py:Slow"} if when == "data" else {}
    config.write_text(yaml.safe_dump(CONFIG | {"rounds": 100000} | data))
    started = process.start(MAIN.format(words=["fl", "run", str(config), "--out", str(out)]), output)
    metrics = out / "metrics.jsonl"
    until(lambda: (tmp_path / "loading").exists() or (metrics.exists() and metrics.stat().st_size))
    os.kill(started.pid, signal.SIGTERM)
    started.join(120)
    said = output.read_text()
    assert started.exitcode == 130 and "Traceback" not in said
    if when == "rounds":
        assert "stopping after this round" in said and f"fl resume {out}" in said
    else:
        assert said.splitlines()[-1] == "stopped before the first round"


def test_sigterm_while_packages_are_imported(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    code = MAIN.format(words=["fl", "run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")])
    started = subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
    until(lambda: "libtorch_cpu" in Path(f"/proc/{started.pid}/maps").read_text())
    started.terminate()
    assert started.communicate(timeout=120)[1] == "stopped before the first round\n"
    assert started.returncode == 130


# a contestant without imports, which works for ten minutes on its first order
BUSY = """
import json, sys, time
from pathlib import Path

print(json.dumps({{"ready": {{"bare": {{}}}}}}), flush=True)
sys.stdin.readline()
Path({folder!r}, f"busy-{{sys.argv[2]}}").touch()
time.sleep(600)
"""
BENCH = """
from dataclasses import replace
from fl.tools.bench import comparison

comparison.PROGRAMS = [replace(p, script={script!r}) for p in comparison.PROGRAMS if p.name == "bare"]
"""


def test_a_benchmark_that_is_stopped_leaves_no_contestant(tmp_path):
    (tmp_path / "busy.py").write_text(BUSY.format(folder=str(tmp_path)))
    (tmp_path / "mini.yaml").write_text(MICRO)

    def contestants():
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{tmp_path}/busy.py".encode() in (place / "cmdline").read_bytes():
                    found.append(place.name)
        return found

    main = MAIN.format(words=["fl", "bench", str(tmp_path / "mini.yaml"), "--only", "bare"])
    started = process.start(BENCH.format(script=str(tmp_path / "busy")) + main, tmp_path / "output")
    until(lambda: list(tmp_path.glob("busy-*")))
    assert contestants()
    os.kill(started.pid, signal.SIGTERM)
    started.join(15)  # it does not wait for them
    assert started.exitcode == 130 and not contestants()
    assert (tmp_path / "output").read_text().splitlines()[-1] == "stopped"
