"""Write a configuration as a Flower project, ready for `flwr run`.

    DIR/pyproject.toml   [tool.flwr.app]: the two apps, and the keys that `flwr run -c` may change
    DIR/server_app.py    DIR/client_app.py    DIR/config.yaml, resolved    DIR/code/: the user's files that it names

fl itself must be installed where the project runs, like torch.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from fl import registry
from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.flower.configuration import Source

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "{strategy} of fl as a Flower app"
license = "Apache-2.0"
# fl itself is installed by hand: start the SuperLink with --disable-runtime-dependency-installation
dependencies = ["flwr>=1.22,<2"]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
rounds = {rounds}
seed = {seed}
out = "" # the run directory; empty means a new one under runs/
timeout = 0 # seconds to wait for a client's reply; 0 means no limit
{parts}"""
MODULE = '''\
"""{title} of {strategy}; its settings are in config.yaml."""

from pathlib import Path

from fl.flower.deploy import {factory}

app = {factory}(Path(__file__).with_name("config.yaml"))
'''


def export(config: Source, directory: str | Path) -> Path:
    """Write a configuration as a Flower project to a new directory; returns the directory."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; export to a new directory")
    resolved = config if isinstance(config, Config) else resolve(read(config))
    strategy = getattr(type(resolved.strategy), "registered_as", type(resolved.strategy).__name__)
    text = yaml.safe_dump(resolved.to_dict(), sort_keys=False)
    directory.mkdir(parents=True, exist_ok=True)
    for file, source in registry.sources().values():
        if file in text:
            (directory / "code").mkdir(exist_ok=True)
            (directory / "code" / Path(file).name).write_text(source)
            text = text.replace(file, f"code/{Path(file).name}")
    (directory / "config.yaml").write_text(text)
    name = "fl-" + re.sub(r"[^a-z0-9]+", "-", strategy.lower())
    parts = "".join(_table(part, resolved.to_dict()[part]) for part in ("strategy", "client"))
    project = PROJECT.format(name=name, strategy=strategy, rounds=resolved.rounds, seed=resolved.seed, parts=parts)
    (directory / "pyproject.toml").write_text(project)
    for factory, title in (("server_app", "The ServerApp"), ("client_app", "The ClientApp")):
        (directory / f"{factory}.py").write_text(MODULE.format(title=title, strategy=strategy, factory=factory))
    return directory


def _table(part: str, arguments: Any) -> str:
    """Write the plain arguments of a part as TOML. `flwr run -c` can only change keys that the project names."""
    plain = {k: v for k, v in arguments.items() if k != "name" and isinstance(v, (bool, int, float, str))}
    rows = [
        f"{key} = {json.dumps(value)}"
        for key, value in plain.items()
        if not isinstance(value, float) or math.isfinite(value)
    ]
    return f"\n[tool.flwr.app.config.{part}]\n" + "".join(f"{row}\n" for row in rows) if rows else ""
