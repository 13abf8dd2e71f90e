"""Write a configuration as a Flower project, ready for `flwr run`.

    DIR/pyproject.toml   [tool.flwr.app]: the two apps, and the keys that `flwr run -c` may change
    DIR/server_app.py    DIR/client_app.py    DIR/config.yaml, resolved
    DIR/code/            the user's files that the configuration names, with the files beside them that they import

The whole run is set up before anything is written. fl itself must be installed where the project runs, like torch.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl import registry
from fl.config.config import Config
from fl.config.references import references_to_code
from fl.errors import ConfigError
from fl.execution.workers.executor import Serial
from fl.flower.configuration import Source, resolved
from fl.flower.deployable import assembled
from fl.registry import name_of
from fl.storage.place import check_folder
from fl.storage.yaml_text import dump

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
wait = 600 # seconds to wait for all SuperNodes before round 0
timeout = 0 # seconds to wait for a client's reply; 0 means no limit
{parts}"""
MODULE = '''\
"""{title} of {strategy}; its settings are in config.yaml."""

from pathlib import Path

from fl.flower.deploy import {factory}

app = {factory}(Path(__file__).with_name("config.yaml"))
'''


@dataclass(frozen=True)
class Project:
    """An exported project.

    Args:
        directory: its folder.
        clients: number of clients; each needs a SuperNode.
    """

    directory: Path
    clients: int

    @property
    def next_steps(self) -> str:
        """The commands that run the project on this machine, with authenticated SuperNodes; docs/flower.md has more."""
        last = self.clients - 1
        each = "" if not last else f"   # and of each of 1 to {last}"
        ports = "" if not last else f", with --port {9094 + 1} to {9094 + last}"
        return "\n".join(
            (
                f"fl flower certificates tls --nodes {self.clients} >> ~/.flwr/config.toml",
                "flower-superlink --disable-runtime-dependency-installation --enable-supernode-auth --ssl-ca-certfile "
                "tls/ca.crt --ssl-certfile tls/server.crt --ssl-keyfile tls/server.key",
                f"flwr supernode register tls/node-0.pub my-superlink{each}",
                "flower-supernode --superlink 127.0.0.1:8000 --root-certificates tls/ca.crt --port 9094 "
                f'--auth-supernode-private-key tls/node-0 --node-config "partition-id=0"{each}{ports}',
                f"flwr run {self.directory} my-superlink --stream   # my-superlink: see docs/flower.md",
            )
        )


def export(config: Source, directory: str | Path) -> Project:
    """Write a configuration as a Flower project to a new directory.

    Raises:
        ConfigError: a deployment cannot run the configuration, its parts do not fit together, or the directory is
            not a new one. Nothing is written then.
    """
    directory = Path(directory)
    _check_directory(directory)
    chosen = resolved(config)
    # every check that `fl run` makes before round 0, and those of a deployment
    with tempfile.TemporaryDirectory() as scratch, assembled(chosen, Path(scratch) / "run", False, Serial()) as run:
        clients = run.run_setup.population
    strategy = name_of(chosen.strategy)
    text = dump(chosen.to_dict())
    directory.mkdir(parents=True, exist_ok=True)
    for file, copy, source in _user_files(chosen):
        (directory / copy).parent.mkdir(parents=True, exist_ok=True)
        (directory / copy).write_text(source)
        text = text.replace(file, copy)
    (directory / "config.yaml").write_text(text)
    name = "fl-" + re.sub(r"[^a-z0-9]+", "-", strategy.lower())
    parts = "".join(_table(part, chosen.to_dict()[part]) for part in ("strategy", "client"))
    project = PROJECT.format(name=name, strategy=strategy, rounds=chosen.rounds, seed=chosen.seed, parts=parts)
    (directory / "pyproject.toml").write_text(project)
    for factory, title in (("server_app", "The ServerApp"), ("client_app", "The ClientApp")):
        (directory / f"{factory}.py").write_text(MODULE.format(title=title, strategy=strategy, factory=factory))
    return Project(directory, clients)


def _check_directory(directory: Path) -> None:
    """Raise a `ConfigError` unless the directory is empty or can be made."""
    check_folder("DIR", directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError("DIR", f"{directory} is not empty; export to a new directory")


def _user_files(config: Config) -> list[tuple[str, str, str]]:
    """Return the user's files that an export copies: (path, path in the project, text).

    Files of one folder stay together, because they import each other by name.
    """
    named = [Path(name) for name in references_to_code(config.to_dict()) if name.endswith(".py")]
    folders = list(dict.fromkeys(path.parent for path in named))
    homes = {folder: f"code/{i}" if len(folders) > 1 else "code" for i, folder in enumerate(folders)}
    return [
        (file, f"{homes[Path(file).parent]}/{Path(file).name}", source)
        for file, source in registry.sources().values()
        if Path(file).parent in homes
    ]


def _table(part: str, arguments: Any) -> str:
    """Write the plain arguments of a part as TOML. `flwr run -c` can only change keys that the project names."""
    plain = {k: v for k, v in arguments.items() if k != "name" and isinstance(v, (bool, int, float, str))}
    rows = [
        f"{key} = {json.dumps(value)}"
        for key, value in plain.items()
        if not isinstance(value, float) or math.isfinite(value)
    ]
    return f"\n[tool.flwr.app.config.{part}]\n" + "".join(f"{row}\n" for row in rows) if rows else ""
