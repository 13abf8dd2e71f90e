"""How a driver talks to a worker: one request at a time, one answer, over one connection.

    on the driver's node    a socket of this machine; values lie in shared memory
    on another node         TCP, from the worker to a free port of the driver's node; values follow the messages

One call of Ray, `Actor.serve`, lasts as long as the job. It carries a key, and both ends prove with a challenge that
they know it before they unpickle anything.
"""

from __future__ import annotations

import contextlib
import pickle
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch

from fl.errors import MachineError
from fl.execution.workers.byte_stream import ByteStream, HungUp, Piece, tls
from fl.execution.workers.handshake import LIVENESS_SECONDS, accept, prove

KEPT = 16 << 20  # bytes of memory for answers that a worker on another node keeps between two dispatches
Address = str | tuple[str, int]  # path of a socket on this machine, or host and port


@dataclass
class Member:
    """A worker, and the channel to it once it has a job; `actor` is `None` once it is dead, `trouble` may tell why."""

    actor: Any
    writer: int
    node: str
    pid: int
    channel: Channel = field(init=False)
    trouble: str = ""
    clock_shift: float = 0.0  # our clock minus its clock, in seconds, where spans are recorded
    memory: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def room(self, size: int) -> np.ndarray:
        """Return memory for `size` bytes of an answer, which the next large answer uses again."""
        if size > len(self.memory):
            self.memory = torch.empty(size, dtype=torch.uint8).numpy()  # aligned, like a mapping
        return self.memory[:size]

    def trim(self) -> None:
        """Give back memory of a large answer that nobody reads any more."""
        if len(self.memory) > KEPT:
            self.memory = np.empty(0, np.uint8)


class Answer(NamedTuple):
    """What a method of a worker returns if bytes follow its value."""

    value: Any
    pieces: Sequence[Piece]


class Channel:
    """The driver's end of the connection to an actor.

    Args:
        serving: Ray's reference to the call of `Actor.serve`.
        stream: the connection.
    """

    def __init__(self, serving: Any, stream: ByteStream):
        self.serving, self.stream = serving, stream

    def send(self, method: str, *args: Any, pieces: Sequence[Piece] = ()) -> None:
        """Have the worker call one of its methods; it takes the bytes of `pieces` from its stream."""
        with contextlib.suppress(HungUp):  # `receive` reports it
            self.stream.send(pickle.dumps((method, args)), pieces)

    def receive(self) -> Any:
        """Return the method's value, or raise its error; `HungUp` if the worker is gone."""
        good, value = pickle.loads(self.stream.receive())
        if not good:
            raise value
        return value

    def ask(self, method: str, *args: Any, pieces: Sequence[Piece] = ()) -> Any:
        """Have the worker call one of its methods; return the value."""
        self.send(method, *args, pieces=pieces)
        return self.receive()

    def trouble(self) -> str:
        """Return the error that ended the worker's `serve`, "" if there was none or its process has ended."""
        import ray

        try:
            ray.get(self.serving, timeout=LIVENESS_SECONDS)  # the worker hangs up a moment before its error comes
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            return f"{type(cause).__name__}: {cause}"
        except ray.exceptions.RayError:  # its process has ended, or does not answer
            pass
        return ""

    def close(self) -> None:
        """Hang up; the worker's `serve` then returns."""
        self.stream.close()


def local_channel(actor: Any, path: Path) -> Channel:
    """Connect to an actor on this machine; `path` is a socket that does not exist yet."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        found, serving = _accepted(listener, actor, str(path))
    path.unlink()
    return Channel(serving, ByteStream(found))


def remote_channel(actor: Any) -> Channel:
    """Connect to an actor on another node.

    Raises:
        MachineError: the actor's node cannot connect to the driver's.
    """
    import ray

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        try:
            found, serving = _accepted(listener, actor, (host, listener.getsockname()[1]), encrypted=True)
        except OSError as error:
            raise MachineError(
                f"a worker cannot connect to the driver's node, {host}: {error}. Open the ports between the nodes "
                "of the cluster; Ray needs them, too"
            ) from None
    return Channel(serving, ByteStream(found, lambda: bool(ray.wait([serving], timeout=0)[0])))


def _accepted(
    listener: socket.socket, actor: Any, address: Address, encrypted: bool = False
) -> tuple[socket.socket, Any]:
    """Have an actor connect to a listener; return the connection, and the call that serves it."""
    import ray

    key = secrets.token_bytes(32)
    listener.settimeout(LIVENESS_SECONDS)
    serving = actor.serve.remote(address, key)
    while (found := accept(listener, key, tls(server=True) if encrypted else None)) is None:
        if ray.wait([serving], timeout=0)[0]:
            ray.get(serving)  # raises the worker's error
            raise TimeoutError("the connection came, and no answer on it")
    return found, serving


def connected(address: Address, key: bytes) -> ByteStream:
    """Connect a worker to the driver that listens at an address; both know the key."""
    context = None if isinstance(address, str) else tls(server=False)
    end = socket.socket(socket.AF_UNIX) if isinstance(address, str) else socket.create_connection(address)
    try:
        if isinstance(address, str):
            end.connect(address)
        elif context is not None:
            end = context.wrap_socket(end)
        prove(end, key)
    except BaseException:
        end.close()
        raise
    return ByteStream(end)


def serve(worker: Any, stream: ByteStream) -> None:
    """Answer requests at a worker's end of a channel until the driver hangs up."""
    with contextlib.suppress(HungUp):
        while True:
            method, args = pickle.loads(stream.receive())
            try:
                value = getattr(worker, method)(*args)
                answer = value if isinstance(value, Answer) else Answer(value, ())
            except Exception as error:
                stream.send(_packed(error))
                continue
            stream.send(pickle.dumps((True, answer.value)), answer.pieces)


def _packed(error: Exception) -> bytes:
    """Pickle an error of user code: by value, or else as its text. Values of user code travel in handles."""
    try:
        text = cloudpickle.dumps((False, error))
        pickle.loads(text)  # some errors can be pickled and not unpickled
        return text
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
