"""A digest of a configuration: what `fl run` prints, and what both ends of a deployment compare before round 0."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.config.config import Config

# keys of the configuration that do not change results
FREE_TO_CHANGE = {
    *(f"execution.{key}" for key in ("executor", "workers", "address", "client_timeout")),
    "checkpoint.every",
}
# keys that the digest leaves out: those, and choices that each machine makes for itself
LEFT_OUT = FREE_TO_CHANGE | {"checkpoint.best", *(f"execution.{key}" for key in ("plan", "chunk", "memory_format"))}


def config_digest(config: Config) -> str:
    """Return the SHA-256 of a resolved configuration: of all keys with their defaults, but those of `LEFT_OUT`.

    Folders of files do not count. So `fl run config.yaml`, `fl run DIR/config.yaml` on another machine and a deployment
    of the configuration have one digest.
    """
    return plain_digest(config.to_dict())


def plain_digest(plain: dict[str, Any]) -> str:
    """Return the digest of a configuration of plain values, see `config_digest`.

    >>> one = {"rounds": 2, "client": "/home/a/mine.py:SGD", "execution": {"workers": 4, "precision": "bf16"}}
    >>> two = {"rounds": 2, "client": "/srv/mine.py:SGD", "execution": {"workers": None, "precision": "bf16"}}
    >>> plain_digest(one) == plain_digest(two), plain_digest(one) == plain_digest(two | {"rounds": 3})
    (True, False)
    """
    kept = {
        key: {k: v for k, v in value.items() if f"{key}.{k}" not in LEFT_OUT} if isinstance(value, dict) else value
        for key, value in plain.items()
    }
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(re.sub(r"/[^\s'\"]*/", "/", text).encode()).hexdigest()
