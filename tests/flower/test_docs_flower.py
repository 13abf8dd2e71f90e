"""The commands of docs/flower.md run literally: real processes of Flower, TLS and `flwr run`."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("flwr", minversion="1.41")  # the commands are those of this version and later ones

import fl  # noqa: E402

ROOT = Path(__file__).parents[2]
PORTS = (8000, 9094, 9095, 9096)  # those of the page, and one more
READY = "Uvicorn running"  # what the page says to wait for


def commands(section):
    """The commands of a section's first block, without comments."""
    page = (ROOT / "docs/flower.md").read_text()
    (_, rest) = page.split(f"\n### {section}\n")
    block = re.search(r"```\n(.*?)```", rest, re.S)[1].replace("\\\n", " ")
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def is_free(port):
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def free_ports(lines):
    """The commands, with other ports if one of the page's is in use on this machine."""
    if all(map(is_free, PORTS)):
        return lines
    sockets = {port: socket.create_server(("127.0.0.1", 0)) for port in PORTS}
    others = {str(port): str(held.getsockname()[1]) for port, held in sockets.items()}
    for held in sockets.values():
        held.close()
    return [re.sub(r"\b(8000|909[456])\b", lambda found: others[found[0]], line) for line in lines]


class Terminals:
    """Runs commands in a folder, with a home of their own; those that end in & go on until the end."""

    def __init__(self, folder):
        self.folder, self.running = folder, []
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        home = {"HOME": str(folder), "XDG_CACHE_HOME": cache, "PATH": programs, "FLWR_TELEMETRY_ENABLED": "0"}
        self.env = {k: v for k, v in os.environ.items() if k != "FLWR_HOME"} | home
        self.env |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        (folder / "experiments").symlink_to(ROOT / "experiments")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process, _ in reversed(self.running):
            self._signal(process, signal.SIGTERM)
        for process, _ in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                pass
            self._signal(process, signal.SIGKILL)  # what it has started, too
            process.wait()

    @staticmethod
    def _signal(process, number):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def type(self, line, ready=READY):
        """Run a command; returns its output, or for one that goes on its process, once it has said `ready`."""
        if line.endswith("&"):
            return self._start(line.removesuffix("&"), ready)
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def _start(self, line, ready):
        log = self.folder / f"{len(self.running)}.log"
        with open(log, "w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append((process, log))
        self.wait_for(log, ready)
        return process

    def wait_for(self, log, text, seconds=240.0):
        """Wait until a file has a text."""
        end = time.monotonic() + seconds
        while text not in log.read_text():
            assert time.monotonic() < end, f"{text!r} is not in {log}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self):
        return "\n".join(f"--- {log}\n{log.read_text()[-3000:]}" for _, log in self.running)


@pytest.mark.slow
def test_the_commands_for_one_machine_give_the_simulators_model(tmp_path):
    with Terminals(tmp_path) as terminals:
        for line in free_ports(commands("On one machine")):
            output = terminals.type(line)
    (there,) = (tmp_path / "runs").iterdir()
    config = ROOT / "experiments/quickstart.yaml"
    changes = {"partition.clients": 2, "cohort.size": 2, "rounds": 1, "client.lr": 0.1}
    changes |= {"execution.plan": "loop", "execution.executor": "serial"}
    expected = fl.run(config, out=tmp_path / "here", **changes)
    assert f"all rounds done; model {expected.digest[:12]}" in output
    assert (there / "model.safetensors").read_bytes() == (tmp_path / "here" / "model.safetensors").read_bytes()


SLOW = """
import time
from dataclasses import dataclass
from fl.method.local_training import LocalTraining

@dataclass(frozen=True, kw_only=True)
class Slow(LocalTraining):
    def work(self, name, ctx, carry):
        if ctx.client == 1:
            time.sleep(600)
        return super().work(name, ctx, carry)
"""
CONFIG = """
rounds: 1
data: digits
partition: {name: iid, clients: 2}
splits: {val: 0, test: 0.2}
model: softmax
cohort: {size: 2}
strategy: fedavg
client: slow.py:Slow
"""


@pytest.mark.slow
def test_the_commands_for_authenticated_supernodes_and_one_that_is_killed(tmp_path):
    """A SuperNode without a registered key does not come in. SuperNode 1 is killed while it trains for two runs.

    One run goes on without its client, and the other one ends with a line that names the client.
    """
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "config.yaml").write_text(CONFIG)
    stranger = (
        "flower-supernode --superlink 127.0.0.1:8000 --root-certificates tls/ca.crt --port 9096 --max-retries 1 "
        '--node-config "partition-id=1" &'
    )
    *lines, run, stranger = free_ports([*commands("Authenticated SuperNodes"), stranger])
    with Terminals(tmp_path) as terminals:
        (tmp_path / ".flwr").mkdir()
        terminals.type("fl flower export config.yaml app/ execution.on_client_error=drop")
        terminals.type("fl flower export config.yaml strict/")
        for line in lines:
            node = terminals.type(line)
            if "partition-id=1" in line:
                terminals.type(stranger, "Exit Code: 305")
        log = next(log for process, log in terminals.running if process is node)
        with ThreadPoolExecutor() as threads:
            outputs = [threads.submit(terminals.type, line) for line in (run, run.replace("app/", "strict/"))]
            terminals.wait_for(log, "Receiving: train message")
            node.kill()
            tolerant, strict = (output.result() for output in outputs)
    lost = "client 1, stage 'train': ConnectionError: Error: Node Unavailable"
    assert f"left out: {lost}" in tolerant and "left out: client 1, stage 'received'" in tolerant
    assert "all rounds done; model" in tolerant
    assert "RuntimeError: client 1, round 0, stage 'train': ConnectionError: Error: Node Unavailable" in strict
    assert "execution.on_client_error=drop would go on without the client" in strict and "all rounds" not in strict
