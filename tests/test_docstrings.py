"""Public names have docstrings, and every hyper-parameter of a registered part has a line in an `Args:` section.

ruff checks modules, classes and functions. It cannot see inheritance, so methods are checked here: an override may
leave its docstring to the method of a base class, or of a protocol that the class implements.
"""

import dataclasses
import functools
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl import registry
from fl.kinds import KINDS
from fl.reference.docstring import split_args

ROOT = Path(__file__).parent.parent
PACKAGES = ("fl", "strategies", "clients", "partitions")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")) if file.stem != "__main__"]
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES]


def load(name: str) -> types.ModuleType | str:
    """Import one of our modules; return the name of the optional package if the module needs one that is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in PACKAGES:
            raise
        return missing


def parts_of(kind: str) -> list[Any]:
    """Registered parts of a kind that belong to our packages, without those that other tests registered."""
    parts = (registry.lookup(kind, name) for name in registry.names(kind))
    return [part for part in parts if part.__module__.partition(".")[0] in PACKAGES]


def public(module: types.ModuleType) -> Iterator[Any]:
    """Public classes and functions that a module defines, without those that it imports."""
    for name, value in vars(module).items():
        defined = isinstance(value, type | types.FunctionType) and value.__module__ == module.__name__
        if defined and not name.startswith("_"):
            yield value


def function_of(member: Any) -> types.FunctionType | None:
    """The function behind a method or property, or None for other attributes of a class."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    member = inspect.unwrap(getattr(member, "__func__", member))  # class methods, static methods, functools.cache
    return member if isinstance(member, types.FunctionType) else None


def is_documented(base: type, method: str) -> bool:
    """Whether a class defines a method or property of this name with a docstring."""
    function = function_of(vars(base).get(method))
    return function is not None and bool(function.__doc__)


def methods_of(value: type) -> list[str]:
    """Names of the public methods and properties that a class itself defines."""
    fields = inspect.get_annotations(value)  # a field may hold a function
    names = [n for n in vars(value) if not n.startswith("_") and n not in fields]
    return [n for n in names if function_of(vars(value)[n]) is not None]


def implemented(value: type, protocols: list[type]) -> list[type]:
    """The protocols whose methods a class has, all of them."""
    return [p for p in protocols if methods_of(p) and all(hasattr(value, n) for n in methods_of(p))]


def undocumented(module: types.ModuleType, protocols: list[type]) -> list[str]:
    """Public names of a module without a docstring, such as `Toy.method`; "module" if it has none itself."""
    found = [] if module.__doc__ else ["module"]
    for value in public(module):
        if not (own_docstring(value) if isinstance(value, type) else value.__doc__):
            found.append(value.__qualname__)
        if isinstance(value, type):
            bases = [*value.__mro__, *implemented(value, protocols)]
            lacking = [n for n in methods_of(value) if not any(is_documented(base, n) for base in bases)]
            found += [f"{value.__qualname__}.{n}" for n in lacking]
    return found


def argument_descriptions(part: type) -> dict[str, str]:
    """Return the description of each argument of a class; base classes describe those that they define."""
    found: dict[str, str] = {}
    for base in reversed(part.__mro__):
        if not base.__module__ == "builtins":
            found |= split_args(own_docstring(base))[1]
    return found


def own_docstring(part: Any) -> str:
    """Return the docstring of a module, class or function, without indentation.

    It is "" without one, also for a dataclass, to which Python gives its signature as docstring.
    """
    text = vars(part).get("__doc__") or ""
    return "" if re.fullmatch(rf"{part.__name__}\(.*\)", text) else inspect.cleandoc(text)


def undescribed(part: type) -> list[str]:
    """Hyper-parameters (dataclass fields) of a part that no `Args:` section of the part or its bases describes."""
    described = argument_descriptions(part)
    return [f"{part.__qualname__}.{f.name}" for f in dataclasses.fields(part) if f.init and not described.get(f.name)]


@functools.cache
def all_protocols() -> list[type]:
    """The public protocols of all modules."""
    modules = [module for module in map(load, MODULES) if not isinstance(module, str)]
    classes = [value for module in modules for value in public(module) if isinstance(value, type)]
    return [value for value in classes if getattr(value, "_is_protocol", False)]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_docstrings(name: str) -> None:
    module = load(name)
    if isinstance(module, str):
        pytest.skip(f"{name} needs the optional package {module!r}")
    assert undocumented(module, all_protocols()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_hyper_parameters_are_described(kind: str) -> None:
    parts = parts_of(kind)
    assert parts != [] or kind == "after_reduction"  # all its parts are users' own
    assert [lacking for part in parts for lacking in undescribed(part)] == []


# -- the checker itself -----------------------------------------------------------------------------------------------
TOY = '''
import functools
from dataclasses import dataclass
from os.path import join          # imported, so it is not this module's
from typing import Protocol


@dataclass
class Base:
    """A base.

    Args:
        one: the first.
    """

    one: int

    def inherited(self):
        """Return one."""

    def bare(self): ...


@dataclass
class Part(Base):
    """A part.

    Args:
        two: the second.
    """

    two: int
    three: int

    def inherited(self): ...

    def bare(self): ...

    def implemented(self): ...

    @property
    def size(self): ...

    @functools.cached_property
    def total(self): ...

    @classmethod
    def of(cls): ...

    @staticmethod
    def documented():
        """Return nothing."""

    def _private(self): ...


@dataclass
class Bare:                       # has only the signature that dataclass writes
    x: int


class _Private:
    def method(self): ...


class Form(Protocol):
    """A protocol that `Part` implements."""

    def implemented(self):
        """Return something."""

    @property
    def size(self): ...


class Other(Protocol):
    """A protocol that no class implements."""

    def bare(self):
        """Return something."""

    def missing(self):
        """Return something."""


def function(): ...


def documented():
    """Return nothing."""
'''


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with and without docstrings."""
    module = types.ModuleType("toy")
    monkeypatch.setitem(sys.modules, "toy", module)  # dataclass looks its module up
    exec(TOY, vars(module))
    return module


def test_each_missing_docstring_is_found(toy: types.ModuleType) -> None:
    without = ["module", "Base.bare", "Part.bare", "Part.implemented", "Part.size", "Part.total", "Part.of"]
    assert undocumented(toy, []) == [*without, "Bare", "Form.size", "function"]


def test_a_protocol_documents_the_classes_that_implement_it(toy: types.ModuleType) -> None:
    assert implemented(toy.Part, [toy.Form, toy.Other]) == [toy.Form]
    assert set(undocumented(toy, [])) - set(undocumented(toy, [toy.Form, toy.Other])) == {"Part.implemented"}


def test_each_missing_description_is_found(toy: types.ModuleType) -> None:
    assert undescribed(toy.Part) == ["Part.three"]
    assert undescribed(toy.Bare) == ["Bare.x"]
