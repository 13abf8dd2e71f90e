"""Epsilon of a run, and the noise multiplier for a wanted epsilon, by Google's dp-accounting.

Neighbouring data sets differ in one client that is added or removed (in one example, for example-level privacy).
Two accountants: "pld" (privacy loss distributions; tight) and "rdp" (Renyi differential privacy; faster and looser).
Noise multipliers are kept in the user's cache folder, $XDG_CACHE_HOME/fl/privacy (~/.cache without the variable).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fl.errors import ConfigError
from fl.storage.files import write_file

if TYPE_CHECKING:
    from dp_accounting import DpEvent, PrivacyAccountant

Accountant = Literal["pld", "rdp"]
INTERVAL = 1e-3  # of discretised privacy losses; epsilon is an upper bound, about 0.1 % above that of 1e-4
TOLERANCE = 1e-4  # of noise multipliers
LARGE_LOSS = 1e3  # privacy loss from which a distribution may not fit into memory
LARGE_EPSILON = 1e3  # no protection; Renyi's upper bound is good enough


def dp_accounting() -> Any:
    """Return the module `dp_accounting`. It takes two seconds to load, so nothing else imports it.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("dp_accounting") is None:
        raise ConfigError(
            "privacy", "needs the package dp-accounting; install it with `pip install 'dp-accounting>=0.6,<0.7'`"
        )
    import dp_accounting

    return dp_accounting


@functools.lru_cache(maxsize=4096)
def epsilon(event: DpEvent, delta: float, accountant: Accountant = "pld") -> float:
    """Return epsilon of an event at `delta`; infinity if there is no guarantee.

    With very little noise "pld" returns the upper bound of "rdp", because discretised losses would fill the memory.
    """
    with _quiet():
        if accountant == "pld" and _typical_loss(event) > LARGE_LOSS:
            bound = _renyi_bound(event, delta)
            if bound > LARGE_EPSILON:
                return bound
        if type(event).__name__ == "SelfComposedDpEvent" and accountant == "pld":
            return float(_pld(event.event).self_compose(event.count).get_epsilon_for_delta(delta))
        return float(_accountant(accountant).compose(event).get_epsilon(delta))


def _typical_loss(event: DpEvent) -> float:
    """Return the privacy loss of an event in about, without sampling; 0 for an event of another kind."""
    name, inner = type(event).__name__, getattr(event, "event", None)
    if inner is not None:
        return getattr(event, "count", 1) * _typical_loss(inner)
    noise = getattr(event, "noise_multiplier", math.inf)
    size = 2 * noise**2 if name == "GaussianDpEvent" else noise
    return 1 / size if size else math.inf


def _renyi_bound(event: DpEvent, delta: float) -> float:
    """Return an upper bound of epsilon by Renyi divergences, without sampling if they are not known with it."""
    accountant = _accountant("rdp")
    if not accountant.supports(event):
        dp = dp_accounting()
        event = dp.SelfComposedDpEvent(event.event.event, event.count)
    return float(accountant.compose(event).get_epsilon(delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings away that the accountant leaves out some orders of Renyi divergences; others are left."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.lru_cache(maxsize=16)
def _pld(event: DpEvent) -> Any:
    """Return the privacy loss distribution of one release. It is composed with itself in each round."""
    return _accountant("pld").compose(event)._pld


def _accountant(name: Accountant) -> PrivacyAccountant:
    dp = dp_accounting()
    if name == "rdp":
        return dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    from dp_accounting import pld

    return pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, INTERVAL)


def noise_multiplier(
    make_event: Callable[[float], DpEvent], epsilon: float, delta: float, accountant: Accountant = "pld"
) -> float:
    """Return the smallest noise multiplier with which an event has at most `epsilon` at `delta`.

    Args:
        make_event: noise multiplier -> event of all releases.
        epsilon: the wanted epsilon, positive.
        delta: the wanted delta, in [0, 1).
        accountant: "pld" or "rdp".

    Raises:
        ValueError: no noise multiplier up to 1e6 is large enough.
    """
    from importlib.metadata import version

    about = (repr(make_event(1.0)), epsilon, delta, accountant, INTERVAL, TOLERANCE, version("dp-accounting"))
    path = cache_folder() / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(path.read_text())["noise_multiplier"])
    found = search(lambda z: _epsilon_of(make_event(z), delta, accountant), epsilon)
    with contextlib.suppress(OSError):  # a full disk costs the time of another search
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"noise_multiplier": found, "about": list(map(str, about))}))
    return found


def _epsilon_of(event: DpEvent, delta: float, accountant: Accountant) -> float:
    """Return `epsilon` without keeping it."""
    return epsilon.__wrapped__(event, delta, accountant)


def search(epsilon_at: Callable[[float], float], wanted: float) -> float:
    """Return the smallest noise multiplier whose epsilon is at most `wanted`, by bisection; epsilon falls with it."""
    low, high = 0.0, 1.0
    while epsilon_at(high) > wanted:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"epsilon: {wanted} needs a noise multiplier above 1e6; allow a larger one")
    if low == 0.0:  # epsilon of a tiny multiplier takes long to compute
        low = 0.5
        while epsilon_at(low) <= wanted and low > 1e-3:
            low, high = low / 2, low
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_at(middle) > wanted else (low, middle)
    return high


def cache_folder() -> Path:
    """Return the folder of noise multipliers. It need not exist."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "fl" / "privacy"
