"""The folder of a Flower app: its pyproject.toml, its ServerApp and its ClientApp.

[tool.flwr.app.components]   serverapp = "module:name"   clientapp = "module:name"
[tool.flwr.app.config]       the run config that both find in context.run_config; nested tables have dotted keys
"""

from __future__ import annotations

import importlib
import logging
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl import registry
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.flower.federation import Federation, read_federation
from fl.flower.node_config import flatten

CHANGEABLE = ("execution.executor", "execution.workers")  # keys that may change when a run continues


@dataclass(frozen=True)
class App:
    """A Flower app: its two halves, its config and its federation."""

    name: str
    server: ServerApp
    client: ClientApp
    config: dict[str, Any]
    federation: Federation
    folder: Path

    def arguments(self, nodes: int | None = None) -> dict[str, Any]:
        """Return the arguments for `fl.flower.simulate`; `nodes` replaces the app's own number."""
        parts = {"server_app": self.server, "client_app": self.client, "num_nodes": nodes or self.federation.nodes}
        parts |= {"gpus_per_client": self.federation.gpus_per_client, "gpus": self.federation.gpus}
        return {**parts, "run_config": self.config, "name": self.name, "source": str(self.folder)}


def resumed(directory: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with which `fl.flower.simulate` continues an app's run, with changes by dotted key."""
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError(key, f"cannot change in a resumed run; only {list(CHANGEABLE)} can. Start a new run")
    then = parse((directory / "config.yaml").read_text())
    app = then["flower"]
    if app["source"] is None:
        raise ConfigError(
            "", f"the app of {directory} has no folder; use simulate(..., out={str(directory)!r}, resume=True)"
        )
    logging.getLogger(__name__).warning("resume runs the code of the run: %s", app["source"])
    found = replace(load(Path(app["source"])), config=app["config"])
    settings = {key: app[key] for key in ("node_config", "apply_timeouts") if key in app}
    settings |= then["execution"] | {key.partition(".")[2]: value for key, value in changes.items()}
    return found.arguments(app["nodes"]) | settings | {"seed": then["seed"], "out": directory, "resume": True}


def load(
    folder: Path,
    overrides: Mapping[str, str] | None = None,
    federation: str | None = None,
    federation_config: str | None = None,
) -> App:
    """Load the app in a folder, which goes onto sys.path.

    Args:
        folder: Folder of the app's pyproject.toml.
        overrides: Texts by key of the app's config.
        federation: Name of one of the app's federations; None is its default.
        federation_config: Options that replace those of the federation, as `flwr run --federation-config` takes them.
    """
    folder = folder.resolve()
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise ConfigError("app", f"there is no {file}; give the folder of a Flower app")
    try:
        project = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("app", f"{file}: {error}") from None
    flwr = project.get("tool", {}).get("flwr", {})
    app = flwr.get("app", {})
    parts = app.get("components", {})
    for half in ("serverapp", "clientapp"):
        if half not in parts:
            raise ConfigError("app", f'{file} lacks {half} = "module:name" in [tool.flwr.app.components]')
    config = flatten(app.get("config", {}))
    options = read_federation(flwr.get("federations", {}), federation, federation_config)
    registry.add_user_folder(folder)
    for key, text in (overrides or {}).items():
        config[key] = _value(key, text, config)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    server = _part(folder, parts["serverapp"], ServerApp)
    client = _part(folder, parts["clientapp"], ClientApp)
    name = project.get("project", {}).get("name", folder.name)
    return App(name, server, client, config, options, folder)


def _value(key: str, text: str, config: Mapping[str, Any]) -> Any:
    """Convert a text to the type of the value that it overrides."""
    if key not in config:
        raise ConfigError(key, f"not in [tool.flwr.app.config], which has {sorted(config)}")
    if isinstance(config[key], str):
        return text
    value = parse(text)
    if type(config[key]) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(config[key]):
        raise ConfigError(key, f"{text!r} is not {type(config[key]).__name__}, the type of {config[key]!r}")
    return value


def _part(folder: Path, reference: str, kind: type) -> Any:
    """Import "module:name" from the folder and check its type."""
    where, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise
        raise ConfigError("app", f"{reference}: {folder} has no module {error.name!r}") from None
    if folder not in Path(module.__file__ or "").resolve().parents:
        raise ConfigError(
            "app", f"{where!r} is {module.__file__}, not in {folder}: another module of that name hides it"
        )
    found: Any = module
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, kind):
        raise ConfigError("app", f"{reference} is {found!r}, not a {kind.__name__}")
    return found
