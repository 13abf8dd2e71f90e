"""The configuration of a deployed run, as text that server and clients share.

Both ends resolve it in the same way and compare its digest before round 0. Flower's run config may change it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.config.config import Config, resolve
from fl.config.digest import config_digest
from fl.config.reading import read
from fl.config.yaml import parse
from fl.flower.deployable import deployable
from fl.storage.yaml_text import dump

APP_KEYS = ("out", "wait", "timeout")  # keys of the run config for the ServerApp itself, not for the configuration
Source = str | Path | Mapping[str, Any] | Config  # a file, a mapping or a resolved configuration


def resolved(config: Source) -> Config:
    """Return the resolved configuration of a deployment; a `ConfigError` if a deployment cannot run it."""
    return deployable(config if isinstance(config, Config) else resolve(read(config)))


def config_text(config: Source) -> str:
    """Return the resolved configuration of a deployment as YAML."""
    return dump(resolved(config).to_dict())


def apply_run_config(text: str, run_config: Mapping[str, Any]) -> str:
    """Return a configuration (YAML) with the changes of Flower's run config, by dotted keys."""
    overrides = {key: value for key, value in run_config.items() if key not in APP_KEYS}
    return _changed(text, json.dumps(overrides, sort_keys=True)) if overrides else text


@functools.lru_cache(maxsize=4)
def _changed(text: str, overrides: str) -> str:
    return config_text(read(parse(text), json.loads(overrides)))


@functools.lru_cache(maxsize=4)
def text_digest(text: str) -> str:
    """Return the digest of a resolved configuration (YAML), the one that `fl run` prints."""
    return config_digest(resolve(parse(text)))
