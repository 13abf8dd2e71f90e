"""New records of a worker on another node, as bytes over TCP: the worker's file -> the driver's file.

Ray's object store would copy each byte about ten times: into the store, through two of its processes, out of the store.
Here the kernel sends the bytes from the file's pages, and the driver receives them into one buffer.

The worker connects to a free port of the driver's node; Ray's own processes need free ports between all nodes, too.
Both ends prove with a challenge that they know a key, which a call of Ray has carried. With RAY_USE_TLS=1 the
connection is encrypted and uses the certificates that Ray uses.
"""

from __future__ import annotations

import os
import secrets
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from fl.errors import MachineError
from fl.execution.workers.handshake import LIVENESS_SECONDS, WorkerDied, accept, prove
from fl.storage.growing import Damaged

BUFFER = 1 << 20  # bytes received at once
SILENCE_SECONDS = 30.0  # without a byte, once the worker has sent all: its node is gone


class Receiver:
    """The driver's end of the connection to one worker.

    Args:
        actor: the worker, which is asked to connect.

    Raises:
        MachineError: the worker's node cannot connect to the driver's.
    """

    def __init__(self, actor: Any):
        import ray

        self.actor, self.buffer = actor, memoryview(bytearray(BUFFER))
        key, host = secrets.token_bytes(32), ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listener:
            listener.settimeout(LIVENESS_SECONDS)
            connecting = actor.connect.remote(host, listener.getsockname()[1], key)
            try:
                while (found := accept(listener, key, tls(server=True))) is None:
                    if ray.wait([connecting], timeout=0)[0]:
                        ray.get(connecting)  # raises the worker's error
                        raise TimeoutError("the connection came, and no answer on it")
                ray.get(connecting)
            except OSError as error:
                raise MachineError(
                    f"a worker cannot connect to the driver's node, {host}: {error}. Open the ports between the nodes "
                    "of the cluster; Ray needs them, too"
                ) from None
        self.socket = found
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket.settimeout(LIVENESS_SECONDS)

    def ask(self, places: list[tuple[int, int, int, int]]) -> Any:
        """Have the worker send bytes of its segments, (store, segment, start, end) each; return the call."""
        return self.actor.send_records.remote(places)

    def receive(self, size: int, call: Any) -> Iterator[memoryview]:
        """Yield the next `size` bytes in pieces; each is valid until the next one.

        Args:
            size: number of bytes.
            call: what `ask` returned.

        Raises:
            WorkerDied: the worker or the connection has ended.
            Damaged: the worker's file is too short.
        """
        silence = 0.0
        while size:
            try:
                count = self.socket.recv_into(self.buffer[: min(size, BUFFER)])
            except TimeoutError:
                silence += LIVENESS_SECONDS
                if self._ended(call, timeout=0) and silence >= SILENCE_SECONDS:
                    self._end_worker()
                continue
            except OSError:
                count = 0
            if not count:
                self._ended(call, timeout=LIVENESS_SECONDS)
                self._end_worker()
            size, silence = size - count, 0.0
            yield self.buffer[:count]

    def _ended(self, call: Any, timeout: float) -> bool:
        """Return whether a call has ended; raise its error, if it has one."""
        import ray

        try:
            ended = bool(ray.wait([call], timeout=timeout)[0])
            if ended:
                ray.get(call)
            return ended
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OSError):  # of the connection, which the worker has noticed first
                self._end_worker()
            raise error.cause from None
        except ray.exceptions.RayError:
            raise WorkerDied from None

    def _end_worker(self) -> NoReturn:
        """End a worker whose connection is gone; its clients run again on others."""
        import ray

        self.close()
        ray.kill(self.actor)
        raise WorkerDied from None

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class Sender:
    """The worker's end.

    Args:
        host: address of the driver's node.
        port: where the driver listens.
        key: what both ends know.
    """

    def __init__(self, host: str, port: int, key: bytes):
        context, plain = tls(server=False), socket.create_connection((host, port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.socket = plain if context is None else context.wrap_socket(plain)
        try:
            prove(self.socket, key)
        except BaseException:
            self.close()
            raise

    def send(self, path: Path, start: int, end: int) -> None:
        """Send the bytes [start, end) of a file."""
        with open(path, "rb") as file:
            if self.socket.sendfile(file, start, end - start) < end - start:
                raise Damaged(f"{path} ends before byte {end}")

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


def tls(server: bool) -> ssl.SSLContext | None:
    """Return a context with Ray's certificates, if Ray encrypts its own connections; each end checks the other."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # nodes have addresses, and certificates of a cluster need not name them
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(os.environ["RAY_TLS_CA_CERT"])
    context.load_cert_chain(os.environ["RAY_TLS_SERVER_CERT"], os.environ["RAY_TLS_SERVER_KEY"])
    return context
