"""How a driver talks to a worker: one request at a time, one answer.

LocalChannel    a socket of this machine: 0.1 ms per request. One call of Ray, `Actor.serve`, lasts as long as the job.
                It carries a key, and both ends prove with a challenge that they know it before they unpickle anything.
RemoteChannel   one call of Ray per request: milliseconds. Stored records come over a socket (byte_stream.py).
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import socket
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

from fl.execution.workers.byte_stream import Receiver
from fl.execution.workers.handshake import LIVENESS_SECONDS, WorkerDied, accept, prove


@dataclass
class Member:
    """A worker, and the channel to it once it has a job; `actor` is `None` once it is dead."""

    actor: Any
    writer: int
    node: str
    pid: int
    channel: Channel = field(init=False)
    clock_shift: float = 0.0  # our clock minus its clock, in seconds, where spans are recorded


class Channel(Protocol):
    """A channel to one worker."""

    def send(self, method: str, *args: Any) -> None:
        """Have the worker call one of its methods."""

    def receive(self) -> Any:
        """Return the method's value, or raise its error; `WorkerDied` if the worker is gone."""

    def close(self) -> None:
        """Close the channel."""


class RemoteChannel:
    """Calls of Ray to an actor on any node, and a connection for its stored records."""

    def __init__(self, actor: Any):
        self.actor, self.receiver = actor, Receiver(actor)
        self.call: Any = None  # the reference of the last call

    def send(self, method: str, *args: Any) -> None:
        """Have the actor call one of its methods."""
        self.call = getattr(self.actor, method).remote(*args)

    def receive(self) -> Any:
        """Return the method's value, or raise its error."""
        import ray

        try:
            return ray.get(self.call)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError):
            raise WorkerDied from None  # of a lost node, the answer may be lost and not the call

    def close(self) -> None:
        """Close the connection; no call is open between dispatches."""
        self.receiver.close()


class LocalChannel:
    """A socket to an actor on this machine; `path` is a socket that does not exist yet."""

    def __init__(self, actor: Any, path: Path):
        import ray

        key = secrets.token_bytes(32)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(LIVENESS_SECONDS)
            serving = actor.serve.remote(str(path), key)
            while (found := accept(listener, key)) is None:
                if ray.wait([serving], timeout=0)[0]:
                    ray.get(serving)  # raises the worker's error
        path.unlink()
        self.connection = Connection(found.detach())

    def send(self, method: str, *args: Any) -> None:
        """Have the worker call one of its methods."""
        with contextlib.suppress(OSError):  # `receive` reports it
            self.connection.send_bytes(pickle.dumps((method, args)))

    def receive(self) -> Any:
        """Return the method's value, or raise its error."""
        try:
            good, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise WorkerDied from None
        if not good:
            raise value
        return value

    def close(self) -> None:
        """Hang up; the worker's `serve` then returns."""
        self.connection.close()


def serve(worker: Any, path: str, key: bytes) -> None:
    """Answer requests at a worker's end of `LocalChannel` until the driver hangs up."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(path)
        prove(caller, key)
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
    """Pickle an answer. Values of user code travel in handles; its errors travel by value, or else as their text."""
    if answer[0]:
        return pickle.dumps(answer)
    try:
        text = cloudpickle.dumps(answer)
        pickle.loads(text)  # some errors can be pickled and not unpickled
        return text
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
