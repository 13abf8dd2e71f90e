"""Parts by name: after `@register("strategy", "fedavg")`, `strategy: fedavg` in a configuration means this class.

A name is looked up in the packages of its kind (see fl/kinds.py); a module is imported when its name is asked for. A
part of the user's own is written `path/to/file.py:Name` or `module:Name`. User files travel to workers as text.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import linecache
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from fl import origins
from fl.errors import UnknownName, did_you_mean
from fl.kinds import KINDS

Part = TypeVar("Part")

_parts: dict[tuple[str, str], Any] = {}


def register(kind: str, *names: str) -> Callable[[Part], Part]:
    """Register a class (or function) under a kind and names. The first name is the part's own; the others are aliases.

    Args:
        kind: a kind of fl/kinds.py, such as "strategy".
        names: names for configurations. The first one becomes the attribute `registered_as` of the part.
    """

    def mark(part: Any) -> Any:
        for name in names:
            other = _parts.get((kind, name))
            if other is not None and (other.__module__, other.__qualname__) != (part.__module__, part.__qualname__):
                raise ValueError(f"{kind} {name!r} is both {other} and {part}")
            _parts[kind, name] = part
        part.registered_as = names[0]
        return part

    return mark


def lookup(kind: str, name: str) -> Any:
    """The part with this name. `UnknownName` lists the known names and the closest one."""
    if not isinstance(name, str):  # a configuration may hold anything
        raise UnknownName(f"{name!r} is not a name; one of {names(kind)}")
    if ":" in name:
        return _load(kind, name)
    if (kind, name) not in _parts:
        _import(kind, name)
    if (kind, name) not in _parts:
        known = names(kind)
        if (kind, name) in _parts:
            return _parts[kind, name]
        raise UnknownName(
            f"{name!r} is not one of {known} (nor a path/to/file.py:Name or module:Name).{did_you_mean(name, known)}"
        )
    return _parts[kind, name]


def is_registered(kind: str, name: str) -> bool:
    """Whether `lookup` finds a part of this kind and name."""
    try:
        lookup(kind, name)
    except UnknownName:
        return False
    return True


def names(kind: str, aliases: bool = False) -> list[str]:
    """All registered names of a kind, sorted."""
    _import(kind, None)
    return sorted(n for (k, n), part in _parts.items() if k == kind and (aliases or part.registered_as == n))


def name_of(part: Any) -> str:
    """The name under which an object's class is registered, or the name of its class."""
    return getattr(type(part), "registered_as", type(part).__name__)


def is_ours(module: str) -> bool:
    """Whether a module belongs to the packages of this project, or to Python's builtins.

    >>> is_ours("fl.strategies.sage"), is_ours("strategies.mine")
    (True, False)
    """
    return module.partition(".")[0] in ("fl", "builtins")


def is_users(cls: type) -> bool:
    """Whether a class comes from a user: it is defined outside the packages of this project."""
    return not is_ours(cls.__module__)


def definer(cls: type, name: str) -> type:
    """The class among `cls` and its bases that defines the attribute `name`; `cls` itself if none does.

    >>> definer(bool, "bit_length")
    <class 'int'>
    """
    return next((base for base in cls.__mro__ if name in vars(base)), cls)


def parts() -> set[Any]:
    """All parts that have been registered so far."""
    return set(_parts.values())


def _import(kind: str, name: str | None) -> None:
    """Import the module `name` of each package of a kind, or all modules."""
    for package in KINDS[kind].packages:
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
            if name is None or found.name == name:
                importlib.import_module(f"{package}.{found.name}")


def _load(kind: str, reference: str) -> Any:
    """The part that `path/to/file.py:Name` or `module:Name` refers to; see fl/origins.py for what may be one."""
    found = named(reference)
    registered = any(k == kind and part is found for (k, _), part in _parts.items())
    origins.require_part(KINDS[kind], reference, found, registered)
    return found


def named(reference: str) -> Any:
    """What `path/to/file.py:Name` or `module:Name` names, of any kind. Use `lookup` for what is called."""
    where, _, attribute = reference.rpartition(":")
    is_file = where.endswith(".py")
    if (origins.of_file(Path(where).expanduser()) if is_file else origins.of_module(where)) == "python":
        raise UnknownName(f"{reference!r}: {where} belongs to Python's standard library, which has no parts")
    if is_file:
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


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UnknownName(f"{path} does not exist")
    name = module_name(path)
    _forget_changed(path.parent, name)
    adopt({name: (str(path), path.read_text())})
    return sys.modules[name]


def module_name(path: Path) -> str:
    """One module per file, with a name that depends on the path alone: a resumed run finds it again."""
    return f"fl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


_sources: dict[str, tuple[str, str]] = {}
_texts: dict[str, tuple[str, str]] = {}  # of files that may have to be made into modules, on a worker


def sources() -> dict[str, tuple[str, str]]:
    """The user files that were loaded, module name -> (path, text). A worker must `adopt` them before it unpickles."""
    return dict(_sources)


_folders: set[Path] = set()


def add_user_folder(folder: Path) -> None:
    """Treat all files in a folder as the user's own, for messages."""
    _folders.add(folder.resolve())


def is_user_file(path: str) -> bool:
    """Whether a path is a user file that was loaded or is being loaded, or lies in a user's folder.

    Installed packages in a user's folder (`.venv`) are not the user's own.
    """
    if any(path == file for file, _ in (*_sources.values(), *_texts.values())):
        return True
    inside = [Path(path).relative_to(folder) for folder in _folders if Path(path).is_relative_to(folder)]
    return any("site-packages" not in each.parts for each in inside)


def adopt(files: dict[str, tuple[str, str]]) -> None:
    """Make modules from the text of user files, so that workers do not need the user's disk.

    A module that exists already with the same text is kept. Files import the Python files beside them by name
    (`from helper import f`); these modules are private to the folder, so that files of other folders do not see them.
    """
    _texts.update(files)
    for name, (path, text) in files.items():
        previous = sys.modules.get(name)
        if previous is not None and _sources.get(name) == (path, text):
            continue
        module = types.ModuleType(name)
        module.__file__ = path
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importer(Path(path).parent)}
        sys.modules[name] = module
        linecache.cache[path] = (len(text), None, text.splitlines(True), path)  # tracebacks and inspect show the source
        try:
            exec(compile(text, path, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            if previous is not None:
                sys.modules[name] = previous
            raise
        _sources[name] = (path, text)


def _importer(folder: Path) -> Callable[..., Any]:
    """`__import__` for user files in `folder`: a file beside them comes before an installed module of the same name."""

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        path = folder / f"{name}.py"
        private = module_name(path)
        if level == 0 and name.isidentifier() and name not in sys.stdlib_module_names:
            if private in sys.modules:
                return sys.modules[private]
            if private not in _texts and path.is_file():
                _texts[private] = (str(path), path.read_text())
            if private in _texts:
                adopt({private: _texts[private]})
                return sys.modules[private]
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    return import_


def _forget_changed(folder: Path, main: str) -> None:
    """Forget the files of `folder` and the module `main`, if a file was changed on disk since it was loaded."""
    beside = {name: file for name, file in _texts.items() if Path(file[0]).parent == folder and name != main}
    if any(not Path(path).is_file() or Path(path).read_text() != text for path, text in beside.values()):
        for name in (*beside, main):
            for table in (_texts, _sources, sys.modules):
                table.pop(name, None)
