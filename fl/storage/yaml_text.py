"""Plain values as YAML text: the config.yaml of a run, of an export and of `fl tune`."""

from __future__ import annotations

from typing import Any

import yaml

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the first one is written in C and ten times as fast


def dump(value: Any) -> str:
    r"""Return the YAML text of plain values; keys keep their order.

    >>> dump({"rounds": 2, "client": {"lr": 0.1}})
    'rounds: 2\nclient:\n  lr: 0.1\n'
    """
    text: str = yaml.dump(value, Dumper=_DUMPER, sort_keys=False)
    return text
