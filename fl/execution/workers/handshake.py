"""Sockets between driver and worker: both ends prove that they know a key before they read anything else."""

from __future__ import annotations

import socket
import ssl
from multiprocessing import AuthenticationError
from multiprocessing.connection import answer_challenge, deliver_challenge
from typing import Any

LIVENESS_SECONDS = 1.0  # between looks whether a worker that has to connect or to send is still alive
CHALLENGE_SECONDS = 10.0  # for a process that has connected to prove that it knows the key
CHALLENGE_BYTES = 1024  # more than a message of a challenge has


def accept(listener: socket.socket, key: bytes, tls: ssl.SSLContext | None = None) -> socket.socket | None:
    """Return the connection of a process that knows the key; None if none came in time, or one without it.

    Args:
        listener: a listening socket with a timeout.
        key: what both ends know.
        tls: encrypts the connection. Default: it is not encrypted.
    """
    try:
        accepted, _ = listener.accept()
    except TimeoutError:
        return None
    accepted.settimeout(CHALLENGE_SECONDS)
    try:
        if tls is not None:
            accepted = tls.wrap_socket(accepted, server_side=True)
        deliver_challenge(_messages(accepted), key)
        answer_challenge(_messages(accepted), key)
    except (AuthenticationError, AssertionError, EOFError, OSError):  # Python 3.11 asserts the form of a challenge
        accepted.close()
        return None
    accepted.settimeout(None)
    return accepted


def prove(caller: socket.socket, key: bytes) -> None:
    """Prove to the process that listens that this one knows the key, and have it prove the same."""
    answer_challenge(_messages(caller), key)
    deliver_challenge(_messages(caller), key)


class _Messages:
    """Messages of a few bytes over a socket, as the challenge sends them. An encrypted socket has no `Connection`."""

    def __init__(self, end: socket.socket):
        self.end = end

    def send_bytes(self, message: bytes) -> None:
        self.end.sendall(len(message).to_bytes(4, "big") + message)

    def recv_bytes(self, maximum: int = CHALLENGE_BYTES) -> bytes:
        size = int.from_bytes(self._exactly(4), "big")
        if size > min(maximum, CHALLENGE_BYTES):
            raise OSError("the message is too long for a challenge")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += (part := self.end.recv(size - len(found)))
            if not part:
                raise EOFError
        return found


def _messages(end: socket.socket) -> Any:
    return _Messages(end)  # multiprocessing asks for a Connection, and uses these two methods
