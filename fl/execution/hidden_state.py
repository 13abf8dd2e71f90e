"""Find what a user's own parts keep outside of their state: attributes, class attributes, globals of their methods.

A strategy, client algorithm, sampler, codec or task is a value: the same on each worker, and built again when a run is
resumed. What it changes in itself would be lost there, so a run that finds such a change stops. Values that can be
computed again are no state: `functools.cached_property` and `functools.cache` are left out.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import itertools
import pickle
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl import registry
from fl.models.probe import Kept
from fl.tensors.generators import seeded_generators
from fl.tensors.params import Params
from fl.user_code import relative

LARGE = 1 << 16  # bytes; larger values are compared by checksum, and not in every check
_MISSING = object()
_DESCRIPTORS = (property, classmethod, staticmethod, functools.cached_property, types.MemberDescriptorType)
_ADVICE = {
    "strategy": "return it from init() and step() as part of the strategy's state",
    "client": "return it from first_state() and finish() (or in Reply) as the client's state",
    "cohort": "return it from init() and sample(), or from observe(), as the sampler's state",
}


class HiddenState(RuntimeError):
    """A part changed itself. The next round would depend on it, and a worker or a resumed run would not know it."""


class HiddenStateWatch:
    """Compares the attributes of parts with what they were.

    It looks at users' own classes only, also inside parts of this project: at their instances' attributes, at class
    attributes, and at globals, closures and default arguments of their methods.

    Args:
        parts: what the part is used as -> the part, or several in a list.
    """

    def __init__(self, parts: Mapping[str, Any]):
        self.places: list[_Place] = []
        self.checks = 0
        seen: set[int] = set()
        for use, part in parts.items():
            for own in _users_parts(part):
                places = _places(use, own, _name(type(own)), seen)
                self.places += [place for place in places if place.entries or place.space is not None]

    def changes(self, when: str) -> str | None:
        """Return a sentence about the first attribute that has changed, or `None`.

        Large arrays and tensors are compared in the checks 1, 2, 4, 8, ... only.

        Args:
            when: the present round, in words.
        """
        self.checks += 1
        thorough = self.checks & (self.checks - 1) == 0
        for place in self.places:
            if (name := place.changed(thorough)) is not None:
                advice = _ADVICE.get(place.use, "it has no state; compute the value from what it is given")
                return (
                    f"{place.use} {place.owner} changed {name} in {when}. Workers and resumed runs do not know it: "
                    f"{advice}. A value that can be computed again belongs in functools.cached_property or "
                    "functools.cache"
                )
        return None

    def check(self, when: str) -> None:
        """Raise `HiddenState` if an attribute has changed."""
        if (found := self.changes(when)) is not None:
            raise HiddenState(found)

    @contextmanager
    def during(self, when: str, word: Callable[[], int]) -> Iterator[None]:
        """Check parts of the server: within, no attribute changes. For users' parts, global generators are seeded.

        Args:
            when: the present round, in words.
            word: returns the seed of the global generators; they are restored at the end.

        Raises:
            HiddenState: an attribute has changed.
        """
        with seeded_generators(word()) if self.places else nullcontext():
            yield
        self.check(when)


class _Entry:
    """A value and where it is read.

    Args:
        name: the value's name in messages.
        read: returns the present value.
    """

    __slots__ = ("fixed", "kept", "large", "name", "read", "value")

    def __init__(self, name: str, read: Callable[[], Any]):
        self.name, self.read, self.value = name, read, read()
        content = _content(self.value)
        mutable = isinstance(content, (Tensor, list, tuple, dict, set)) or hasattr(content, "tobytes")
        self.fixed = content is self.value and not mutable
        self.large = _size(self.value) > LARGE
        self.kept = Kept(content)

    def changed(self, thorough: bool) -> bool:
        """Whether the value has changed; `thorough`: compare the content of large values, too."""
        now = self.read()
        if now is self.value and (self.fixed or (self.large and not thorough)):
            return False
        return self.kept.differs(_content(now))


class _Place:
    """Some names of one part, such as the attributes of an instance.

    Args:
        use: what the part is used as.
        owner: the class, with its file.
        entries: the values.
        space: where new names may appear, or `None`; `ignored` are names of caches.
    """

    def __init__(
        self,
        use: str,
        owner: str,
        entries: list[_Entry],
        space: Mapping[str, Any] | None = None,
        ignored: Collection[str] = (),
    ):
        self.use, self.owner, self.entries, self.ignored = use, owner, entries, ignored
        self.mutable = [entry for entry in entries if not entry.fixed]
        self.space = space
        self.names, self.values = list(space or ()), list((space or {}).values())

    def changed(self, thorough: bool) -> str | None:
        """Name of what has changed, or `None`."""
        space = self.space
        same = space is not None and len(space) == len(self.values) and all(map(is_, space.values(), self.values))
        for entry in self.mutable if same else self.entries:
            if entry.changed(thorough):
                return entry.name
        if space is None or same:
            return None
        added = [name for name in space if name not in self.names and name not in self.ignored]
        added = [name for name in added if not name.startswith("__")]
        self.names, self.values = list(space), list(space.values())
        return f"self.{added[0]}" if added else None


def _content(value: Any) -> Any:
    """A value in a form that `Kept` compares by content.

    Parameters, generators, iterators and queues are replaced, and large arrays by a checksum.
    """
    if isinstance(value, (str, int, float, type(None))) or callable(value):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        return value if _size(value) <= LARGE else _checksum(value)
    if isinstance(value, Params):
        return [_content(buffer) for buffer in value.buffers]
    if isinstance(value, dict):
        return {key: _content(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(item) for item in value]
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, (types.ModuleType, set)):
        return value
    if isinstance(value, itertools.count):  # Python 3.14 cannot pickle it
        return repr(value)
    return _pickled(value) if type(value).__module__.startswith(_PICKLED) else value


def _pickled(value: Any) -> Any:
    """The bytes of a pickled value, or the value if it cannot be pickled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of iterators of itertools
            return pickle.dumps(value)
    except Exception:
        return value


def _size(value: Any) -> int:
    """Size in bytes of the arrays and tensors in a value, and of its containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (np.ndarray, Params)):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return 8


def _checksum(value: Tensor | np.ndarray) -> str:
    """Shape, type and CRC-32 of a large array or tensor."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().to_dense() if value.layout != torch.strided else value.detach().cpu()
        data = flat.contiguous().view(torch.uint8).numpy()
    else:
        data = value
    return f"{tuple(value.shape)} {value.dtype} {zlib.crc32(data.tobytes())}"


_PICKLED = ("collections", "itertools", "random", "builtins", "array", "numpy.random")  # modules of types with content


def _users_parts(part: Any) -> Iterator[Any]:
    """Instances of users' classes: a part itself, or parts inside of it."""
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _users_parts(item)
    elif _comes_from_user(type(part)):
        yield part
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        for field in dataclasses.fields(part):
            yield from _users_parts(getattr(part, field.name, None))


def _comes_from_user(thing: type | types.FunctionType) -> bool:
    """Whether a class or function is neither this project's nor Python's nor of an installed package."""
    return _is_users_module(thing.__module__ or "")


def _is_users_module(name: str) -> bool:
    """Whether the module `name` is a user's."""
    if registry.is_ours(name) or name.partition(".")[0] in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


def _name(cls: type) -> str:
    """`./my_rule.py:SignMean`, or the class's name if it has no file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{relative(file)}:{cls.__name__}" if file else cls.__name__


def _places(use: str, part: Any, owner: str, seen: set[int], path: str = "self") -> Iterator[_Place]:
    """Where a part, and objects of users' classes that it holds, may keep something."""
    if id(part) in seen:
        return
    seen.add(id(part))
    classes = [cls for cls in type(part).__mro__ if _comes_from_user(cls)]
    cached = {name for cls in type(part).__mro__ for name, v in vars(cls).items() if _caches(v)}
    space: dict[str, Any] = getattr(part, "__dict__", {})
    slots = [n for cls in classes for n in _slots(cls) if hasattr(part, n)]
    entries = [_Entry(f"{path}.{name}", partial(space.get, name, _MISSING)) for name in space if name not in cached]
    in_slots = [_Entry(f"{path}.{name}", partial(getattr, part, name, _MISSING)) for name in slots]
    yield _Place(use, owner, entries, space, cached)
    yield _Place(use, owner, in_slots)
    for entry in (*entries, *in_slots):
        yield from _inside(use, entry.value, owner, seen, entry.name)
    for cls in classes:
        yield from _class_places(use, cls, owner, seen)


def _inside(use: str, value: Any, owner: str, seen: set[int], path: str) -> Iterator[_Place]:
    """Objects that a part holds: modules, and instances of users' classes, also in lists and dicts."""
    if isinstance(value, nn.Module):
        for prefix, child in value.named_modules():
            for tensors in (child._parameters, child._buffers):
                names = {f"{path}.{prefix}.{name}" if prefix else f"{path}.{name}": name for name in tensors}
                entries = [_Entry(name, partial(tensors.get, key, _MISSING)) for name, key in names.items()]
                yield _Place(use, owner, entries)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _inside(use, item, owner, seen, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(use, item, owner, seen, f"{path}[{key!r}]")
    elif _comes_from_user(type(value)):
        yield from _places(use, value, owner, seen, path)


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _caches(value: Any) -> bool:
    return isinstance(value, functools.cached_property)


def _class_places(use: str, cls: type, owner: str, seen: set[int]) -> Iterator[_Place]:
    """Class attributes, and what the methods of a class reach beside their arguments."""
    if id(cls) in seen:
        return
    seen.add(id(cls))
    names = [n for n, v in vars(cls).items() if not n.startswith("__") and not isinstance(v, _DESCRIPTORS)]
    entries = [
        _Entry(f"{cls.__name__}.{n}", partial(vars(cls).get, n, _MISSING)) for n in names if not callable(vars(cls)[n])
    ]
    yield _Place(use, owner, entries, vars(cls))
    methods = [v for n, v in vars(cls).items() if n == "__call__" or not n.startswith("__")]  # not what @dataclass made
    reached = [entry for value in methods for entry in _reached(_function(value), seen)]
    yield _Place(use, owner, reached)
    for entry in (*entries, *reached):
        yield from _inside(use, entry.value, owner, seen, entry.name)


def _function(value: Any) -> Any:
    """The plain function behind a method, property or class method."""
    for attribute in ("__func__", "fget", "func"):
        value = getattr(value, attribute, value)
    return value


def _reached(function: Any, seen: set[int]) -> Iterator[_Entry]:
    """Values of globals, closures and default arguments of a user's function, and of functions that it calls."""
    if not isinstance(function, types.FunctionType) or id(function) in seen or not _comes_from_user(function):
        return
    seen.add(id(function))
    scope = function.__globals__
    for name in sorted(set(_global_names(function.__code__))):
        value = scope.get(name, _MISSING)
        if isinstance(value, types.FunctionType):
            yield from _reached(value, seen)
        elif isinstance(value, types.ModuleType):
            yield from _globals_of(value, seen)
        elif not callable(value) and name not in vars(_BUILTINS):
            yield _Entry(f"the global {name}", partial(scope.get, name, _MISSING))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        value = _cell(cell)
        if isinstance(value, types.FunctionType):
            yield from _reached(value, seen)
        elif not callable(value):
            yield _Entry(f"the variable {name} around {function.__name__}", partial(_cell, cell))
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for default in defaults:
        if isinstance(default, (list, dict, set)):
            yield _Entry(f"a default argument of {function.__name__}", partial(_itself, default))


def _globals_of(module: types.ModuleType, seen: set[int]) -> Iterator[_Entry]:
    """Values of globals of a user's module that a method uses, and what its functions reach."""
    if id(module) in seen or not _is_users_module(module.__name__):
        return
    seen.add(id(module))
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType):
            yield from _reached(value, seen)
        elif not name.startswith("__") and not callable(value) and not isinstance(value, types.ModuleType):
            yield _Entry(
                f"{Path(module.__file__ or module.__name__).stem}.{name}", partial(vars(module).get, name, _MISSING)
            )


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Names of globals that code reads or writes, with the functions defined in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return _MISSING


def _itself(value: Any) -> Any:
    return value


_BUILTINS = sys.modules["builtins"]
