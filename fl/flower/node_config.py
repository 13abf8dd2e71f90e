"""Configuration of nodes: what a ClientApp finds in `context.node_config`, beside `partition-id` and `num-partitions`.

The syntax is that of `flower-supernode --node-config`: `batch-size=32 data-path="/data/a"`. A text is for all nodes; a
file has one such line per node.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl.errors import ConfigError

NodeConfig = Mapping[str, bool | int | float | str]
PARTITION, PARTITIONS = "partition-id", "num-partitions"
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")  # Flower's own expression


def parse_pairs(text: str, option: str) -> dict[str, Any]:
    """Parse `key=value key2="text"`, or read the TOML file that the text names; nested tables get dotted keys.

    >>> parse_pairs("rate=0.5 path='a b' fast=true", "--node-config")
    {'rate': 0.5, 'path': 'a b', 'fast': True}
    """
    example = f"{option}: write key=value pairs, with quotes around text: 'number=0.5 text=\"a b\" flag=true'"
    try:
        if text.endswith(".toml"):
            return flatten(tomllib.loads(Path(text).expanduser().read_text()))
        rest = _PAIR.sub("", text).strip()
        if rest:
            raise ConfigError("", f"{example}. {rest!r} is no pair")
        return flatten(tomllib.loads("\n".join(f"{key} = {value}" for key, value in _PAIR.findall(text))))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("", f"{example}. {text!r} is none: {error}") from None
    except OSError as error:
        raise ConfigError(option, str(error)) from None


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file with one line per node; empty lines and lines that begin with # do not count."""
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--node-configs", f"{file}: {error}") from None
    kept = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    return [parse_pairs(line, f"{file}, line {number}") for number, line in kept]


def check_node_config(
    config: NodeConfig | Sequence[NodeConfig] | None, num_nodes: int
) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the configuration of all nodes, or a list with one for each node, after checks.

    Raises:
        ConfigError: there are not `num_nodes` of them, a value is not a bool, a number or a text, or two nodes have the
            same partition.
    """
    if config is None or isinstance(config, Mapping):
        checked = _checked(config or {}, "node_config")
        if PARTITION in checked:
            raise ConfigError(
                "node_config", f"{PARTITION} would be the same for all nodes; it is n - 1 for node n. Leave it out"
            )
        _check_partitions([{PARTITION: num_nodes - 1, **checked}], num_nodes)  # the last is the largest
        return checked
    each = [_checked(one, f"node_config of node {n}") for n, one in enumerate(config, 1)]
    if len(each) != num_nodes:
        raise ConfigError("node_config", f"has {len(each)} entries for {num_nodes} nodes; give one for each node")
    _check_partitions([{PARTITION: n, **one} for n, one in enumerate(each)], num_nodes)
    return each


def of_node(config: NodeConfig | Sequence[NodeConfig], node: int, num_nodes: int) -> dict[str, Any]:
    """Return the `node_config` of node `node`, counted from 1."""
    own = config if isinstance(config, Mapping) else config[node - 1]
    return {PARTITION: node - 1, PARTITIONS: num_nodes, **own}


def _checked(config: NodeConfig, where: str) -> dict[str, Any]:
    for key, value in config.items():
        if not isinstance(key, str) or not isinstance(value, bool | int | float | str):
            raise ConfigError(where, f"{key!r}: {value!r} is not a bool, an int, a float or a text")
    return dict(config)


def _check_partitions(nodes: Sequence[NodeConfig], num_nodes: int) -> None:
    """Check that partitions are numbers in range, and that no two nodes have the same."""
    owners: dict[Any, int] = {}
    for number, config in enumerate(nodes, 1):
        partition, partitions = config[PARTITION], config.get(PARTITIONS, num_nodes)
        if not isinstance(partition, int) or not isinstance(partitions, int):
            raise ConfigError("node_config", f"{PARTITION}={partition!r}, {PARTITIONS}={partitions!r}: not ints")
        if not 0 <= partition < partitions:
            raise ConfigError("node_config", f"{PARTITION}={partition} is not one of 0..{partitions - 1}")
        if partition in owners:
            both = f"nodes {owners[partition]} and {number} have the same {PARTITION}={partition}"
            raise ConfigError("node_config", f"{both}; give each node its own")
        owners[partition] = number
