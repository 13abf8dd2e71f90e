"""YAML for configurations: `1e-3` is a number, and a key that is written twice is an error."""

from __future__ import annotations

import re
from typing import Any

import yaml

from fl.errors import ConfigError

# YAML 1.1 accepts an exponent only after a decimal point (1.0e-3)
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


def parse(text: str) -> Any:
    """The value of a YAML text.

    >>> parse("client: {lr: 1e-3}")
    {'client': {'lr': 0.001}}
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """A loader with our rules for numbers and mappings."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(str(key), f"given twice in one place (line {node.start_mark.line + 1} on)")
    return loader.construct_mapping(node, deep=True)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
