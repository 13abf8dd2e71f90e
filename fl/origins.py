"""Where code comes from: the user, an installed package, or Python itself; and what may be a part of a run.

A configuration can come from a stranger, so not every name in it may be called:

    the user's own files and modules      any class or function that is defined there
    installed packages, fl included       registered parts, subclasses of the kind's base, and for models nn.Modules
    Python's standard library             nothing, and it is not even imported
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import sysconfig
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from fl import own_packages
from fl.errors import UnknownName
from fl.kinds import Kind

Origin = Literal["user", "installed", "python"]
INSTALLED = {"site-packages", "dist-packages"}
OWN = tuple(own_packages.ROOT / name for name in ("fl", *own_packages.METHODS))


def of_module(name: str) -> Origin:
    """Return where a module comes from; it need not be imported."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return "python"
    file = getattr(sys.modules.get(name), "__file__", None)
    return "user" if file is None else of_file(Path(file))


@functools.lru_cache(maxsize=4096)
def of_file(file: Path) -> Origin:
    """Return where a source file comes from."""
    file = file.resolve()
    if INSTALLED & set(file.parts) or any(own in file.parents for own in OWN):
        return "installed"
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    in_library = any(Path(library).resolve() in file.parents for library in libraries)
    return (
        "python" if in_library or re.search(r"/lib(64)?/python3[.\d]*/", str(file)) else "user"
    )  # or another Python's


def require_part(kind: Kind, reference: str, found: Any, registered: bool) -> None:
    """Raise an `UnknownName` unless what `reference` names may be called as a part of this kind.

    Args:
        kind: the kind of part.
        reference: `path/to/file.py:Name` or `module:Name`.
        found: what it names.
        registered: whether `found` is a registered part of the kind.
    """
    if registered:
        return
    made = found.func if isinstance(found, functools.partial) else found
    cls = made if isinstance(made, type) else type(made)
    called = made if inspect.isroutine(made) or isinstance(made, type) else cls
    if kind.base_class in cls.__mro__:
        return
    if kind.name == "model" and _is_module(cls if not inspect.isroutine(made) else _returned(made)):
        return
    if of_module(getattr(called, "__module__", None) or "builtins") != "user" and not _is_plain(found):
        needs = f"a registered part or a subclass of {kind.base_class.__name__}"
        needs += " or nn.Module, or a function that is annotated to return one" if kind.name == "model" else ""
        raise UnknownName(f"{reference!r} is not a {kind.name}: outside your own files it must be {needs}")


def _is_plain(found: Any) -> bool:
    """Whether a name stands for a number, a text or a tuple (such as a data set's arrays), which is not called."""
    return type(found).__module__ == "builtins" and not callable(found)


def _is_module(cls: Any) -> bool:
    from torch import nn

    return isinstance(cls, type) and issubclass(cls, nn.Module)


def _returned(function: Any) -> Any:
    """The type that a function is annotated to return; None if it is not."""
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # an annotation that cannot be evaluated says nothing
        return None


# -- the user's source files -------------------------------------------------------------------------------------------
def source_files(modules: Iterable[str]) -> dict[str, str]:
    """Return the user's source files behind modules, path -> text, with the modules that they use.

    Used modules are those that a module's globals name: imported modules, and the homes of imported classes and
    functions.
    """
    found: dict[str, str] = {}
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or name == "__main__" or of_module(name) != "user":
            continue
        seen.add(name)
        file = getattr(module, "__file__", None)
        if file and Path(file).suffix == ".py" and Path(file).is_file():
            found[file] = Path(file).read_text(errors="replace")
        for value in list(vars(module).values()):
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str):
                waiting.append(home)
        waiting += [n for n in list(sys.modules) if n.startswith(f"{name.partition('.')[0]}.")] if "." in name else []
    return dict(sorted(found.items()))
