"""Parts by name: `@register("strategy", "fedavg")` on a class makes `strategy: fedavg` mean it.

A name is looked up in the packages of its kind (a file is imported when its name is asked for); a part of the user's own is
`path/to/file.py:Name` or `module:Name`. User files travel to workers by value.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import linecache
import pkgutil
import sys
import types
from pathlib import Path
from typing import Any

from fl.errors import UnknownName

PACKAGES = {
    "strategy": ("strategies",),
    "client": ("clients",),
    "partition": ("partitions",),
    "stream": ("partitions",),
    "shift": ("partitions",),
    "adapter": ("fl.models.adapters",),
    "data": ("fl.data.sets",),
    "augment": ("fl.data.augment",),
    "model": ("fl.models.architectures",),
    "task": ("fl.tasks",),
    "codec": ("fl.communication.codecs",),
    "transform": ("fl.privacy",),
    "sampler": ("fl.method.sampler",),
    "optimiser": ("fl.method.optimiser",),
    "server_optimiser": ("fl.method.server_optimiser",),
    "devices": ("fl.system.devices",),
    "availability": ("fl.system.availability",),
    "server": ("fl.system.rounds", "fl.system.events"),
}

_parts: dict[tuple[str, str], Any] = {}


def register(kind: str, *names: str):
    """Class decorator: the first name is the part's own (`part.registered_as`), the rest are aliases."""

    def mark(part):
        for name in names:
            other = _parts.get((kind, name))
            if other is not None and (other.__module__, other.__qualname__) != (part.__module__, part.__qualname__):
                raise ValueError(f"{kind} {name!r} is both {other} and {part}")
            _parts[kind, name] = part
        part.registered_as = names[0]
        return part

    return mark


def lookup(kind: str, name: str) -> Any:
    """The part called `name`; `UnknownName` says what there is and what may have been meant."""
    if ":" in name:
        return _load(name)
    if (kind, name) not in _parts:
        _import(kind, name)
    if (kind, name) not in _parts:
        known = names(kind)
        if (kind, name) in _parts:
            return _parts[kind, name]
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"{name!r} is not one of {known} (nor a path/to/file.py:Name or module:Name).{hint}")
    return _parts[kind, name]


def names(kind: str) -> list[str]:
    """All registered names of a kind, aliases left out."""
    _import(kind, None)
    return sorted(n for (k, n), part in _parts.items() if k == kind and part.registered_as == n)


def parts() -> set[Any]:
    """All parts registered so far."""
    return set(_parts.values())


def _import(kind: str, name: str | None) -> None:
    """Import the file of that name in the kind's packages, or all of them."""
    for package in PACKAGES[kind]:
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if name is None or found.name == name:
                importlib.import_module(f"{package}.{found.name}")


def _load(reference: str) -> Any:
    """`path/to/file.py:Name` or `module:Name`."""
    where, _, attribute = reference.rpartition(":")
    if where.endswith(".py"):
        module = _load_file(Path(where))
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise UnknownName(f"{reference!r}: cannot import {where!r} ({error})") from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UnknownName(f"{reference!r}: {where} has no {attribute!r}; it has {public}")
    return getattr(module, attribute)


def _load_file(path: Path) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UnknownName(f"{path} does not exist")
    # one module per file, under a name that a resumed run finds again
    name = f"fl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    adopt({name: (str(path), path.read_text())})
    return sys.modules[name]


_sources: dict[str, tuple[str, str]] = {}


def sources() -> dict[str, tuple[str, str]]:
    """The user files loaded so far, module name -> (path, text): what a worker must `adopt` before it unpickles."""
    return dict(_sources)


def adopt(files: dict[str, tuple[str, str]]) -> None:
    """Make modules of user files by their text, so that no worker needs to see the user's disk; those that are made already,
    of the same text, stay."""
    for name, (path, text) in files.items():
        before = sys.modules.get(name)
        if before is not None and _sources.get(name) == (path, text):
            continue
        module = types.ModuleType(name)
        module.__file__ = path
        sys.modules[name] = module
        linecache.cache[path] = (len(text), None, text.splitlines(True), path)  # tracebacks and inspect show the source
        try:
            exec(compile(text, path, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            if before is not None:
                sys.modules[name] = before
            raise
        _sources[name] = (path, text)
