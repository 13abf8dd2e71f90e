"""The `Args:` sections (Google style) of docstrings, for `fl show`.

Parsed here and not by a library: one kind of section in one style is a few lines, and `fl show` stays quick.
"""

from __future__ import annotations

import inspect
import re

_ARGUMENT = re.compile(r"(\w+)(?: \([^)]*\))?:\s*(.*)")  # `name: text` or `name (type): text`


def split_args(docstring: str) -> tuple[str, dict[str, str]]:
    """The docstring without its `Args:` section, and the description of each argument as one line.

    >>> text, args = split_args('''Weighted mean.
    ...
    ...     Args:
    ...         power: exponent of the weights;
    ...             0 gives equal weights.
    ...         floor: smallest weight.
    ... ''')
    >>> text
    'Weighted mean.'
    >>> args
    {'power': 'exponent of the weights; 0 gives equal weights.', 'floor': 'smallest weight.'}
    """
    text: list[str] = []
    section: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line.strip() == "Args:" and not line.startswith(" "):
            inside = True
        elif inside and (line.startswith(" ") or not line):
            section.append(line)
        else:
            inside = False
            text.append(line)
    return "\n".join(text).strip(), _descriptions(inspect.cleandoc("\n".join(["", *section])))


def _descriptions(section: str) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = _ARGUMENT.match(line)
        if start is not None:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
