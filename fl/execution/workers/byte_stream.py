"""A connection between driver and worker: messages both ways, and bytes that follow a message.

    | size of the message | number of bytes that follow | message | bytes: of memory, or from files |

Memory is sent from where it lies, and files from the kernel's pages; the other end receives into memory or a file.
With RAY_USE_TLS=1, connections between machines are encrypted and use the certificates that Ray uses.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fl.execution.workers.handshake import LIVENESS_SECONDS
from fl.storage import files
from fl.storage.growing import Damaged

BUFFER = 1 << 20  # bytes that are received at once
TOGETHER = 1 << 16  # bytes of a piece; smaller ones are copied, and sent together
_HEAD = struct.Struct(">QQ")
_LOST = {errno.EPIPE, errno.EBADF, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED}
_LOST |= {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET}
_NO_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems without it, such as some of FUSE
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a connection that is lost ends in a minute


class HungUp(Exception):
    """The other end has closed the connection, or its process has ended."""


class FilePart(NamedTuple):
    """Bytes [start, end) of a file."""

    path: Path
    start: int
    end: int


Piece = memoryview | FilePart


class ByteStream:
    """One end of a connection. All its methods raise `HungUp` when the other end is gone.

    Args:
        end: a connected socket.
        gone: tells whether the other end has ended; asked each second in which nothing moves. Default: the system
            notices it.
    """

    def __init__(self, end: socket.socket, gone: Callable[[], bool] | None = None):
        self.end, self.gone = end, gone
        self.following = 0  # bytes after the last message that nobody has taken yet
        self.buffer = memoryview(bytearray(BUFFER))
        end.settimeout(None if gone is None else LIVENESS_SECONDS)
        if end.family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    # -- sending --------------------------------------------------------------------------------------------------
    def send(self, message: bytes, pieces: Sequence[Piece] = ()) -> None:
        """Send a message, and the bytes of some pieces after it; see `check_files`.

        Bytes that follow the last message from the other end, and that nobody has taken, are dropped first: the other
        end may wait until they are gone. After an error the connection is closed, so that neither end waits for the
        rest of a message.

        Raises:
            Damaged: a file has become too short.
            OSError: a file cannot be read.
        """
        try:
            self._drop()
            self._send(message, pieces)
        except BaseException:
            self.close()
            raise

    def _send(self, message: bytes, pieces: Sequence[Piece]) -> None:
        sizes = [p.end - p.start if isinstance(p, FilePart) else p.nbytes for p in pieces]
        waiting = bytearray(_HEAD.pack(len(message), sum(sizes)) + message)
        opened: dict[Path, int] = {}  # the last file
        try:
            for piece, size in zip(pieces, sizes):
                if isinstance(piece, FilePart) and piece.path not in opened:
                    _close(opened)
                    opened[piece.path] = os.open(piece.path, os.O_RDONLY | os.O_NOFOLLOW)
                if size < TOGETHER:
                    waiting += self._copied(piece, opened)
                    size = 0
                if size or len(waiting) > TOGETHER:
                    self._push(memoryview(waiting))
                    waiting = bytearray()
                if size:
                    self._push_piece(piece, opened)
        finally:
            _close(opened)
        self._push(memoryview(waiting))

    def _copied(self, piece: Piece, opened: dict[Path, int]) -> memoryview:
        """Return the bytes of a small piece; valid until the next one."""
        if not isinstance(piece, FilePart):
            return piece
        part = self.buffer[: piece.end - piece.start]
        if files.read_at(opened[piece.path], part, piece.start) < len(part):
            raise _too_short(piece)
        return part

    def _push(self, data: memoryview) -> None:
        while len(data):
            try:
                data = data[self.end.send(data) :]
            except TimeoutError:
                self._look()
            except OSError:  # no file takes part, so it is the connection's
                raise HungUp from None

    def _push_piece(self, piece: Piece, opened: dict[Path, int]) -> None:
        if not isinstance(piece, FilePart):
            self._push(piece)
            return
        path, at, end = piece
        copies = isinstance(self.end, ssl.SSLSocket)
        while at < end:
            if copies:
                part = self._copied(FilePart(path, at, min(at + BUFFER, end)), opened)
                self._push(part)
                at += len(part)
                continue
            try:
                sent = os.sendfile(self.end.fileno(), opened[path], at, end - at)
            except BlockingIOError:
                self._wait_until_writable()
                continue
            except OSError as error:
                if error.errno in _LOST:
                    raise HungUp from None
                if error.errno not in _NO_SENDFILE:
                    raise
                copies = True
                continue
            if not sent:
                raise _too_short(piece)
            at += sent

    def _wait_until_writable(self) -> None:
        poll = select.poll()
        poll.register(self.end, select.POLLOUT)
        if not poll.poll(LIVENESS_SECONDS * 1e3):
            self._look()

    # -- receiving ------------------------------------------------------------------------------------------------
    def receive(self) -> bytes:
        """Return the next message. Bytes that follow the message before, and that nobody has taken, are dropped."""
        self._drop()
        head, message = bytearray(_HEAD.size), bytearray()
        self._fill(memoryview(head))
        size, following = _HEAD.unpack(head)
        message = bytearray(size)
        self._fill(memoryview(message))
        self.following = following
        return bytes(message)

    def receive_into(self, memory: memoryview) -> None:
        """Take the next bytes that follow a message, as many as `memory` has."""
        self._take(len(memory))
        self._fill(memory)

    def receive_to_file(self, file: int, start: int, end: int) -> None:
        """Write the next bytes that follow a message to [start, end) of an open file."""
        while start < end:
            part = self.buffer[: min(end - start, BUFFER)]
            part = part[: self._some(part)]
            self._take(len(part))
            start = files.write_at(file, part, start)

    def _take(self, count: int) -> None:
        assert count <= self.following
        self.following -= count

    def _drop(self) -> None:
        while self.following:
            self.following -= self._some(self.buffer[: min(self.following, BUFFER)])

    def _fill(self, memory: memoryview) -> None:
        while len(memory):
            memory = memory[self._some(memory) :]

    def _some(self, into: memoryview) -> int:
        """Receive at least one byte; return how many."""
        while True:
            try:
                count = self.end.recv_into(into)
            except TimeoutError:
                self._look()
                continue
            except OSError:
                raise HungUp from None
            if not count:
                raise HungUp
            return count

    def _look(self) -> None:
        if self.gone is not None and self.gone():
            raise HungUp

    @property
    def closed(self) -> bool:
        """Whether this end has hung up: by `close`, or because it could not send a whole message."""
        return self.end.fileno() < 0

    def close(self) -> None:
        """Hang up."""
        self.end.close()


def check_files(parts: Sequence[FilePart]) -> None:
    """Check that files hold the parts that are about to be sent.

    Raises:
        Damaged: a file is missing or too short.
    """
    last = {part.path: part for part in sorted(parts, key=lambda part: part.end)}
    for path, part in last.items():
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{path} is missing") from None
        if size < part.end:
            raise _too_short(part)


def _too_short(part: FilePart) -> Damaged:
    return Damaged(f"{part.path} ends before byte {part.end}")


def _close(opened: dict[Path, int]) -> None:
    while opened:
        os.close(opened.popitem()[1])


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
