"""The commands of docs/flower.md run as they are written there: real processes of Flower, TLS and `flwr run`."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", minversion="1.41")  # the commands are those of this version and later ones

import fl  # noqa: E402

ROOT = Path(__file__).parents[2]
PORTS = (8000, 9094, 9095)  # of the page
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
    return [re.sub(r"\b(8000|9094|9095)\b", lambda found: others[found[0]], line) for line in lines]


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
            os.killpg(process.pid, signal.SIGTERM)
        for process, _ in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def type(self, line, fails=False):
        """Run a command; returns its output, or for one that goes on the process, once it is ready."""
        if line.endswith("&"):
            return self._start(line.removesuffix("&"))
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=500
        )
        assert (done.returncode != 0) == fails, f"{line}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done.stdout + done.stderr

    def _start(self, line):
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
        self.wait_for(log, READY)
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


@pytest.mark.slow
def test_the_commands_for_authenticated_supernodes(tmp_path):
    """A SuperNode whose key is not registered does not come in."""
    stranger = (
        "flower-supernode --superlink 127.0.0.1:8000 --root-certificates tls/ca.crt --port 9095 --max-retries 1 "
        '--node-config "partition-id=0"'
    )
    *lines, stranger = free_ports([*commands("Authenticated SuperNodes"), stranger])
    with Terminals(tmp_path) as terminals:
        (tmp_path / ".flwr").mkdir()
        terminals.type(
            "fl flower export experiments/quickstart.yaml app/ partition.clients=2 cohort.size=2 splits={val: 0} "
            "model=softmax".replace("{val: 0}", '"{val: 0}"')
        )
        for line in lines:
            if "partition-id=1" in line:
                assert "Exit Code: 305" in terminals.type(stranger, fails=True)
            output = terminals.type(line)
    assert "all rounds done; model" in output
