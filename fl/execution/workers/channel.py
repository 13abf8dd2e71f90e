"""How a driver talks to a worker: one question at a time, one answer.

Near   a socket of this machine: a tenth of a millisecond. One call of Ray, `Actor.serve`, lasts as long as the job
Far    a call of Ray for each question: milliseconds
"""

from __future__ import annotations

import contextlib
import pickle
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

PATIENCE = 1.0  # seconds between looks whether a worker that is to call still lives


class WorkerDied(Exception):
    """The worker is."""


class Channel(Protocol):
    def ask(self, method: str, *args: Any) -> None:
        """Have the worker call one of its methods."""

    def answer(self) -> Any:
        """What came of it; raises what it raised, or `WorkerDied`."""

    def close(self) -> None: ...


class RemoteChannel:
    def __init__(self, actor: Any):
        self.actor, self.call = actor, None

    def ask(self, method: str, *args: Any) -> None:
        self.call = getattr(self.actor, method).remote(*args)

    def answer(self) -> Any:
        import ray

        try:
            return ray.get(self.call)
        except ray.exceptions.RayActorError:
            raise WorkerDied from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def close(self) -> None:
        pass


class LocalChannel:
    def __init__(self, actor: Any, path: Path):
        """path: of a socket that does not exist yet."""
        import ray

        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(path))
            door.listen(1)
            door.settimeout(PATIENCE)
            serving = actor.serve.remote(str(path))
            while True:
                with contextlib.suppress(TimeoutError):
                    caller, _ = door.accept()
                    break
                if ray.wait([serving], timeout=0)[0]:
                    ray.get(serving)  # raises why
        path.unlink()
        caller.settimeout(None)
        self.connection = Connection(caller.detach())

    def ask(self, method: str, *args: Any) -> None:
        with contextlib.suppress(OSError):  # the answer tells
            self.connection.send_bytes(pickle.dumps((method, args)))

    def answer(self) -> Any:
        try:
            good, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied from None
        if not good:
            raise value
        return value

    def close(self) -> None:
        self.connection.close()


def serve(worker: Any, path: str) -> None:
    """A worker's end of `LocalChannel`: answers until the driver hangs up."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        connection = Connection(caller.detach())
    with connection, contextlib.suppress(EOFError, OSError):
        while True:
            method, args = pickle.loads(connection.recv_bytes())
            try:
                answer = True, getattr(worker, method)(*args)
            except Exception as error:
                answer = False, error
            connection.send_bytes(_packed(answer))


def _packed(answer: tuple[bool, Any]) -> bytes:
    """What was made of user code went into a handle; errors of it travel by value, and one that cannot says what it was."""
    if answer[0]:
        return pickle.dumps(answer)
    try:
        text = cloudpickle.dumps(answer)
        pickle.loads(text)  # some can be written and not read
        return text
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
