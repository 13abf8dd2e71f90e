"""Who can reach the Ray that we start: processes of this machine that know its token.

Ray gives no way to listen on 127.0.0.1 only: it replaces this address by the machine's outside address, in the process
that starts it and in those that connect. `on_loopback` undoes that. A fresh token per pool keeps out other users of the
machine. `outside_listeners` looks whether both hold, because a later Ray may do otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any

LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)


def token_environment(token: str) -> dict[str, str]:
    """Return the environment variables with which a process of Ray asks for a token, and shows it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Let `ray.init` keep the address 127.0.0.1."""
    from ray._private import services

    resolve = getattr(services, "resolve_ip_for_localhost", None)
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        if resolve is not None:
            services.resolve_ip_for_localhost = resolve


@contextlib.contextmanager
def with_token(token: str) -> Iterator[None]:
    """Let `ray.init` show a token. Ray keeps it until `forget_token`; child processes do not inherit it."""
    variables = token_environment(token)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    forget_token()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def forget_token() -> None:
    """Let Ray read mode and token of the environment again; it keeps them from its first use on."""
    from ray import _raylet

    native: Any = _raylet
    native.Config.initialize("")  # before the token goes: threads of Ray that are ending may need it in token mode
    native.AuthenticationTokenLoader.instance().reset_cache()


def asks_for_token() -> bool:
    """Whether Ray asks for a token in this process."""
    from ray import _raylet

    native: Any = _raylet
    return bool(native.get_authentication_mode() == native.AuthenticationMode.TOKEN)


def process_tree() -> list[int]:
    """Return the ids of this process and of all processes below it."""
    import psutil

    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def outside_listeners(pids: Iterable[int]) -> list[str]:
    """Return the sockets of processes on which other machines can connect, in words; ended processes have none."""
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(pid)
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN and not _is_loopback(socket.laddr.ip):
                    found.append(f"{process.name()} on {socket.laddr.ip} port {socket.laddr.port}")
    return found


def check_doors(token: bool, outside: Sequence[str]) -> None:
    """Stop if other machines can connect to Ray and need no token; warn if they need one."""
    if not outside:
        return
    sockets = f"Ray listens to other machines ({', '.join(outside)})"
    if not token:
        raise RuntimeError(f"{sockets} and asks for no token; install a later Ray, or use execution.executor=serial")
    log.warning("%s; it asks for a token", sockets)


def _is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [_is_loopback(ip) for ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "::", "0.0.0.0", "192.0.2.2")]
    [True, True, True, False, False, False]
    """
    ip = ip_address(address.partition("%")[0])
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
