"""What trackers write: the numbers of a round's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fl.errors import ConfigError


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row by name; lists, texts and the round are left out.

    >>> numbers({"round": 3, "train/loss": 0.5, "errors": ["client 1"], "val/loss": float("nan")})
    {'train/loss': 0.5}
    """
    found = {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k != "round"}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of a configuration by dotted path.

    >>> flat({"client": {"lr": 0.1}, "seed": 3})
    {'client.lr': 0.1, 'seed': 3}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        where = f"{path}{key}"
        found |= flat(value, f"{where}.") if isinstance(value, Mapping) else {where: value}
    return found


def imported(tracker: str, module: str, package: str) -> ModuleType:
    """Import the library of a tracker.

    Raises:
        ConfigError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "tracking", f"{tracker} needs the package {package} ({error}); install it: pip install {package}"
        ) from None
