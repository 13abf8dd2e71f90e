"""Docstrings for `fl list` and `fl show`: summaries, and the `Args:` sections (Google style) of hyper-parameters.

Parsed here and not by a library: one kind of section in one style is a few lines, and `fl show` stays quick.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

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


def argument_descriptions(part: type) -> dict[str, str]:
    """Description of each argument of a class; base classes describe those that they define."""
    found: dict[str, str] = {}
    for base in reversed(part.__mro__):
        if not base.__module__ == "builtins":
            found |= split_args(own_docstring(base))[1]
    return found


def own_docstring(part: Any) -> str:
    """The docstring of a module, class or function, without indentation.

    It is "" without one, also for a dataclass, to which Python gives its signature as docstring.
    """
    text = vars(part).get("__doc__") or ""
    return "" if re.fullmatch(rf"{part.__name__}\(.*\)", text) else inspect.cleandoc(text)


def summary_line(part: Any, alone: bool) -> str:
    """First line that describes a part: of its module if the part is `alone` in it, else its own."""
    module = sys.modules[part.__module__]
    sources = (module, part) if alone else (part, module)
    return next(filter(None, map(own_docstring, sources)), "").partition("\n")[0]
