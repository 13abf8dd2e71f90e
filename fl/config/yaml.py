"""YAML for configurations: `1e-3` is a number, and a key that is written twice is an error.

A file may come from a stranger, so its size is limited: nesting, the number of values with every alias (`*name`)
written out, the file itself, and whole numbers.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from fl.errors import ConfigError

# YAML 1.1 accepts an exponent only after a decimal point (1.0e-3)
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


DEEPEST = 64  # levels of nesting
MOST_VALUES = 1_000_000  # with every alias written out
LONGEST_TEXT = 32 << 20  # characters
LARGEST = 2**64  # whole numbers are smaller; seeds use all 64 bits


def parse(text: str) -> Any:
    """The value of a YAML text. A `ConfigError` if it is too large.

    >>> parse("client: {lr: 1e-3}")
    {'client': {'lr': 0.001}}
    """
    if len(text) > LONGEST_TEXT:
        raise ConfigError("", f"the text has {len(text):,} characters, and {LONGEST_TEXT:,} are allowed")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of values below a node, and their levels, with every alias written out.

    `known` holds the answers of finished nodes, by id.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    where = f"line {node.start_mark.line + 1}"
    if id(node) in known:
        if not known[id(node)][0]:
            raise ConfigError("", f"{where}: a value contains itself by an alias")
        return known[id(node)]
    known[id(node)] = (0, 0)
    children = [part for child in node.value for part in (child if isinstance(child, tuple) else (child,))]
    measured = [_measure(child, known) for child in children]
    size, depth = 1 + sum(size for size, _ in measured), 1 + max((depth for _, depth in measured), default=0)
    if size > MOST_VALUES:
        raise ConfigError("", f"{where}: aliases stand for more than {MOST_VALUES:,} values")
    if depth > DEEPEST:
        raise ConfigError("", f"{where}: nested in more than {DEEPEST} levels")
    known[id(node)] = size, depth
    return size, depth


class _Loader(yaml.SafeLoader):
    """A loader with our rules for numbers and mappings."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; a `ConfigError` if it lies too deep."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConfigError("", f"line {self.line + 1}: nested in more than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # `<<: *name`
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, Hashable):  # others are refused below
            if key in seen:
                raise ConfigError(str(key), f"given twice in one place (line {node.start_mark.line + 1} on)")
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    value = loader.construct_yaml_int(node) if len(text) < 100 else LARGEST
    if abs(value) >= LARGEST:
        raise ConfigError("", f"line {node.start_mark.line + 1}: {text:.20}... has more than 64 bits")
    return value


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
