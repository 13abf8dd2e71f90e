"""Differences between configurations, whole configurations, and where the runs were computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fl.report.page.runs import Runs
from fl.report.page.section import Block, Folded, Section, Table
from fl.storage.yaml_text import dump

DIFFERENCES = "Keys with different values, and the seeds of the runs. Empty: the variant does not have the key."
ABSENT = ""  # a variant does not have the key


def configuration(runs: Runs) -> Section:
    """The keys whose values differ between variants, and the configuration of each."""
    known = [[_flat(config) for config in variant.configs] for variant in runs.variants]
    keys = list(dict.fromkeys(key for each in known for config in each for key in config))
    rows = []
    for key in keys:
        cells = {name: _cell([config.get(key, ABSENT) for config in each]) for name, each in zip(runs.names, known)}
        if key != "seed" and len({_cell([config.get(key, ABSENT)]) for each in known for config in each}) > 1:
            rows.append({"key": key} | cells)
    seeds = {"key": "seed"} | {
        name: _cell([config.get("seed", ABSENT) for config in each]) for name, each in zip(runs.names, known)
    }
    blocks: list[Block] = [Table([*rows, seeds], "Differences", DIFFERENCES)]
    if len(runs.variants) == 1 and not rows:
        blocks = [Table([seeds], "Seeds")]
    for variant in runs.variants:
        text = dump(dict(variant.configs[0]))
        blocks.append(Folded(f"Whole configuration of {variant.name}, first run", text))
    return Section("Configuration", blocks)


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """Dotted key -> value as text.

    >>> _flat({"data": {"name": "digits"}, "codec": {"up": [{"name": "identity"}]}, "system": None})
    {'data.name': 'digits', 'codec.up.0.name': 'identity', 'system': 'null'}
    """
    if isinstance(tree, Mapping) and tree:
        items: list[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, list) and any(isinstance(value, (Mapping, list)) for value in tree):
        items = list(enumerate(tree))
    else:
        return {path: json.dumps(tree) if not isinstance(tree, str) else tree}
    found: dict[str, str] = {}
    for key, value in items:
        found |= _flat(value, f"{path}.{key}".lstrip("."))
    return found


def _cell(values: Sequence[str]) -> str:
    """The different values, in order."""
    return ", ".join(dict.fromkeys(values))


def environment(runs: Runs) -> Section | None:
    """Versions, machine, command, plan and digests of the runs."""
    rows: dict[str, dict[str, str]] = {}
    for name, environments in zip(runs.names, runs.environments):
        for found in environments:
            for key, value in _facts(found).items():
                cell = rows.setdefault(key, {"": key} | dict.fromkeys(runs.names, ""))
                if value not in cell[name].split("; "):
                    cell[name] = f"{cell[name]}; {value}".removeprefix("; ")
    if not rows:
        return None
    same = [
        {"": key, "all runs": row[runs.names[0]]} for key, row in rows.items() if len({row[n] for n in runs.names}) == 1
    ]
    other = [row for row in rows.values() if len({row[name] for name in runs.names}) > 1]
    blocks: list[Block] = [Table(same)] if same else []
    if other:
        blocks.append(
            Table(other, "Differences between variants", "Several values in a cell: the runs of a variant differ.")
        )
    return Section("Environment", blocks)


def _facts(environment: Mapping[str, Any]) -> dict[str, str]:
    """Facts of an environment.json by name, without the configuration and the copies of code."""
    known = {key: value for key, value in environment.items() if key not in ("config", "code", "command", "packages")}
    command = environment.get("command")
    facts = {"command": " ".join(map(str, ["fl", *command[1:]]))} if command else {}
    for key, value in {**known, **(environment.get("packages") or {})}.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {each}" for name, each in value.items())
        text = str(value)
        facts[key.replace("_", " ")] = text[:16] if key.endswith("_sha256") else text
    code = environment.get("code") or {}
    return facts | ({"own files": ", ".join(code)} if code else {})
