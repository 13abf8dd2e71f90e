"""The names of fl that this tool uses besides `fl.run` and `fl.resume`. If fl changes a name, change it here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fl import registry


def names(kind: str) -> list[str]:
    """Return the names of all registered parts of a kind, for example "strategy" or "codec"."""
    return registry.names(kind)


def example_config(strategy: str) -> dict[str, Any]:
    """Return the overrides by dotted path that the strategy needs to run."""
    return dict(registry.lookup("strategy", strategy).example_config)


def client_fields(strategy: str) -> set[str]:
    """Return the names of the arguments of the strategy's client algorithm."""
    part = registry.lookup("client", registry.lookup("strategy", strategy).client)
    return {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()


def plan_of(directory: Path) -> dict[str, Any] | None:
    """Return the plan of a finished run: kind, chunk, memory format (called "layout" in records), reason ("why")."""
    file = directory / "environment.json"
    plan = json.loads(file.read_text()).get("plan") if file.is_file() else None
    if plan is not None:
        plan["layout"] = plan.pop("memory_format")
    return plan


def is_refusal(error: Exception) -> bool:
    """Return whether fl refused the configuration; other errors happen during the run."""
    return type(error).__name__ == "ConfigError"
