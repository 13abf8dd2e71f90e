"""Processes of one program: started, asked, closed. The protocol is in experiments/benchmarks/peers/protocol.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from fl.tools.bench.workload import TREE

PEERS = Path("experiments/benchmarks/peers")
ANSWER_SECONDS = 900  # longest wait for an answer
CLOSE_SECONDS = 20  # longest wait for the end of a process
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def environment(*folders: Path) -> dict[str, str]:
    """Environment variables of a process that imports from these folders first."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONSAFEPATH": "1"}


class ContestantFailed(Exception):
    """A contestant gave no answer, or a wrong one."""


class Processes:
    """`copies` processes of one program, each with one thread.

    Args:
        python: interpreter.
        script: name of a file in `PEERS`, without suffix.
        copies: number of processes; each gets a share of the work.
        folder: the workload, see fl/tools/bench/workload.py.
        tree: checkout of fl that the script and its imports come from.
    """

    def __init__(self, python: Path, script: str, copies: int, folder: Path, tree: Path = TREE):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.name, self.stderr = script, tempfile.TemporaryFile("w+")
        self.processes: list[subprocess.Popen[bytes]] = []
        peers = tree / PEERS
        try:
            for share in range(copies):
                process = subprocess.Popen(
                    [str(python), str(peers / f"{script}.py"), str(folder), str(share), str(copies), str(port)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.stderr,
                    env=environment(peers, tree) | ONE_THREAD,
                    cwd=None if tree == TREE else tree,  # Ray's workers import from the working directory first
                    start_new_session=True,
                    bufsize=0,
                )
                self.processes.append(process)
        except BaseException:
            self.kill()
            raise

    def ask(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Send a message to all processes at once, and return their answers."""
        try:
            for process in self.processes:
                _pipe(process.stdin).write((json.dumps(message) + "\n").encode())
        except BrokenPipeError:
            raise ContestantFailed(self._last_output()) from None
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """The next line of JSON from each process; `ContestantFailed` if one does not come."""
        deadline = time.monotonic() + ANSWER_SECONDS
        return [self._read_line(_pipe(process.stdout), deadline) for process in self.processes]

    def _read_line(self, stdout: IO[bytes], deadline: float) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ContestantFailed(f"no answer in {ANSWER_SECONDS} s")
            more = stdout.read(1 << 16)
            if not more:
                raise ContestantFailed(self._last_output())
            text += more
        return json.loads(text)

    def _last_output(self) -> str:
        """The end of what the processes wrote to stderr."""
        self.stderr.seek(0)
        return (self.stderr.read().strip() or "ended without a message")[-1000:]

    def kill(self) -> None:
        """Kill the processes at once, with the processes that they have started in their groups."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the processes; kill those that do not end in time."""
        for process in self.processes:
            _pipe(process.stdin).close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                process.wait()
            _pipe(process.stdout).close()
        self.stderr.close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "stdin and stdout are pipes"
    return stream
