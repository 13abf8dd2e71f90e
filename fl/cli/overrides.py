"""Overrides on the command line: key=value arguments, seed ranges, and the small run of --smoke."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from fl.errors import ConfigError

SMOKE_ROUNDS = 2
SMOKE_COHORT = 4  # maximum number of clients in a round


def parse_overrides(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Key -> value of arguments key=value; values are YAML.

    A value that starts with "+" stays a string: rounds=+100 is not 100.

    >>> parse_overrides(["rounds=100", "client={lr: 0.1}", "stop=null"])
    {'rounds': 100, 'client': {'lr': 0.1}, 'stop': None}
    """
    changes: dict[str, Any] = {}
    for argument in arguments or ():
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise ConfigError("", f"{argument}: not key=value, as in rounds=100 or cohort.size=20")
        _refuse_option(key, value)
        changes[key] = value if value.startswith("+") else _parse_value(key, value)
    return changes


def _refuse_option(key: str, value: str) -> None:
    """Refuse an option of the command that was written without its dashes: out=DIR."""
    context = click.get_current_context(silent=True)
    for option in context.command.params if context else ():
        if isinstance(option, click.Option) and f"--{key}" in option.opts:
            from fl.config.config import Config

            if key in (field.name for field in dataclasses.fields(Config)):
                return
            flag = f"--{key}" if option.is_flag else f"--{key}={value}"
            raise ConfigError(key, f"not a key of a configuration, but an option of the command: {flag}")


def _parse_value(key: str, value: str) -> Any:
    import yaml

    from fl.config.yaml import parse

    quoted = f"a text with braces, brackets or colons needs quotes of its own: '{key}=\"a: {{b}}\"'"
    try:
        parsed = parse(value)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", error)
        raise ConfigError(key, f"{value!r} is not a YAML value: {problem}; {quoted}") from None
    if isinstance(parsed, dict) and None in parsed.values() and ":" not in value:
        raise ConfigError(key, f"{value!r} is a mapping without values in YAML; {quoted}")
    return parsed


def parse_seed_range(value: object) -> list[int]:
    """Seeds of a range "FIRST..LAST", both included; an empty list for a single seed.

    >>> parse_seed_range("0..2"), parse_seed_range(7)
    ([0, 1, 2], [])
    """
    match = re.fullmatch(r"(\d+)\.\.(\d+)", str(value))
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ConfigError("seed", f"{value} is an empty range; put the smaller seed first: seed={last}..{first}")
    return list(range(first, last + 1))


def shrink_for_smoke(config: Mapping[str, Any]) -> dict[str, Any]:
    """The raw configuration with 2 rounds of at most 4 clients, for a test that takes seconds."""
    config = dict(config)
    cohort = config.get("cohort")
    if isinstance(cohort, Mapping):
        size = cohort.get("size")
        # a cohort drawn by a rate can be large, so it is replaced by two clients
        small = {**cohort, "size": min(size, SMOKE_COHORT)} if isinstance(size, int) else {"name": "uniform", "size": 2}
        config["cohort"] = small
    return {**config, "rounds": SMOKE_ROUNDS}
