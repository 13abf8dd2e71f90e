"""Everything that this tool takes from fl beside `fl.run` and `fl.resume`. If fl changes a name, change it here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from fl import registry


def names(kind: str) -> list[str]:
    """The names of all registered parts of a kind, such as "strategy" or "codec"."""
    return registry.names(kind)


def bench_of(strategy: str) -> dict[str, Any]:
    """What the strategy needs beside a usual configuration, as overrides by dotted path."""
    return dict(registry.lookup("strategy", strategy).example_config)


def client_fields(strategy: str) -> set[str]:
    """The names of the arguments of the strategy's own client."""
    part = registry.lookup("client", registry.lookup("strategy", strategy).client)
    return {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()


def plan_of(directory: Path) -> dict[str, Any] | None:
    """How the clients of a finished run were trained: kind, chunk, memory format ("layout" in all records), and why."""
    file = directory / "environment.json"
    plan = json.loads(file.read_text()).get("plan") if file.is_file() else None
    if plan is not None:
        plan["layout"] = plan.pop("memory_format")
    return plan


def is_refusal(error: Exception) -> bool:
    """Whether fl refused the configuration, in contrast to an error while it worked."""
    return type(error).__name__ == "ConfigError"
