"""Parts as their source text describes them. Nothing is imported or run, so `fl list` and `fl show` need no torch.

module_source("fl.data.splits") -> Module          a module of this project, of a user's folder or of Python's path
definition_of("module:Class")   -> Definition      a class or a function
definition.arguments()          -> [Argument, ...] the fields of a dataclass, those of its bases first
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import fl
from fl.own_packages import METHODS, ROOT
from fl.reference.docstring import split_args

PACKAGES = ("fl", *METHODS)
EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}  # default factories


@dataclass(frozen=True)
class Argument:
    """An argument of a part.

    Args:
        name: its name, which is the key of a configuration.
        type: its annotation as text.
        default: its default as Python text; "required" if it has none.
        description: what it means; "" without a line in an `Args:` section.
        owner: the class that defines it.
        node: its line in the source.
    """

    name: str
    type: str
    default: str
    description: str
    owner: Definition
    node: ast.AnnAssign


@dataclass(frozen=True)
class Module:
    """The source of a module."""

    path: Path
    tree: ast.Module

    @property
    def docstring(self) -> str:
        """The docstring without indentation, or ""."""
        return ast.get_docstring(self.tree) or ""

    @functools.cached_property
    def values(self) -> dict[str, ast.expr]:
        """The expressions that are assigned to names."""
        return dict(_assigned(self.tree.body))

    @functools.cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Name -> (module, name in it), or (module, "") for a module."""
        found: dict[str, tuple[str, str]] = {}
        for node in _top_level(self.tree):
            if isinstance(node, ast.ImportFrom) and (module := self._absolute(node)):
                found |= {each.asname or each.name: (module, each.name) for each in node.names}
            elif isinstance(node, ast.Import):
                found |= {each.asname or each.name: (each.name, "") for each in node.names}
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The module that an import names. Only the packages of this project have relative imports; "" elsewhere."""
        if not node.level or not self.path.is_relative_to(ROOT):
            return "" if node.level else node.module or ""
        names = self.path.parents[node.level - 1].relative_to(ROOT).parts
        return ".".join((*(("fl",) if names[0] in METHODS else ()), *names, *filter(None, (node.module,))))

    @functools.cached_property
    def own(self) -> dict[str, Definition]:
        """The classes and functions that this module defines, by name."""
        nodes = (node for node in self.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
        return {node.name: Definition(self, node) for node in nodes}

    def home(self, name: str) -> tuple[Module, str] | None:
        """Return the module that defines a name, as far as its source is found, and its name there."""
        prefix, _, attribute = name.rpartition(".")
        where, what = self.imported.get(prefix or name, ("", ""))
        if not where:
            return None if prefix else (self, name)
        if where == "fl":
            where = fl._HOMES.get(what, where)
        if prefix and what:  # a module of a package
            where = f"{where}.{what}"
        elif not prefix:
            attribute = what
        source = module_source(where, self.path.parent) if attribute else None
        return None if source is None else (source, attribute)

    def definition(self, name: str) -> Definition | None:
        """Return a class or function of this module, or one that it imports."""
        if name in self.own:
            return self.own[name]
        home = self.home(name)
        return home[0].definition(home[1]) if home is not None and home != (self, name) else None

    def constant(self, name: str) -> tuple[Module, ast.expr] | None:
        """Return the expression of a constant, which may be imported, and its module; None if it is not found."""
        if name in self.values:
            return self, self.values[name]
        home = self.home(name)
        return home[0].constant(home[1]) if home is not None and home != (self, name) else None


@dataclass(frozen=True)
class Definition:
    """A class or a function."""

    module: Module
    node: ast.ClassDef | ast.FunctionDef

    @property
    def docstring(self) -> str:
        """The docstring without indentation, or ""."""
        return ast.get_docstring(self.node) or ""

    @property
    def text(self) -> str:
        """The docstring without its `Args:` section."""
        return split_args(self.docstring)[0]

    @functools.cached_property
    def lineage(self) -> list[Definition]:
        """The class and its bases, as far as their source is found, in the order in which Python looks names up."""
        found = [self]
        for base in getattr(self.node, "bases", ()):
            name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            definition = self.module.definition(name)
            if definition is not None:
                found += definition.lineage
        last = {(each.module.path, each.node.name): i for i, each in enumerate(found)}  # a common base comes last
        return [each for i, each in enumerate(found) if last[each.module.path, each.node.name] == i]

    @property
    def is_dataclass(self) -> bool:
        """Whether the class or a base of it is a dataclass."""
        return any(each._decorated for each in self.lineage)

    @property
    def _decorated(self) -> bool:
        return any(ast.unparse(each).startswith("dataclass") for each in self.node.decorator_list)

    def arguments(self) -> list[Argument]:
        """Return the arguments of a dataclass that are configuration keys."""
        found: dict[str, tuple[Definition, ast.AnnAssign]] = {}
        described: dict[str, str] = {}
        for each in reversed(self.lineage):
            described |= split_args(each.docstring)[1]
            for node in each.node.body if each._decorated else ():
                if isinstance(node, ast.AnnAssign):
                    found[ast.unparse(node.target)] = each, node
        keys = {name: each for name, each in found.items() if _is_key(each[1])}
        return [
            Argument(
                name, ast.unparse(node.annotation), owner._default(node.value), described.get(name, ""), owner, node
            )
            for name, (owner, node) in keys.items()
        ]

    def value(self, name: str) -> ast.expr | None:
        """Return the expression that is assigned to a class attribute; None if there is none."""
        for each in self.lineage:
            values = dict(_assigned(each.node.body))
            if name in values:
                return values[name]
        return None

    def _default(self, value: ast.expr | None) -> str:
        if value is None:
            return "required"
        if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field"):
            given = {keyword.arg: keyword.value for keyword in value.keywords}
            made = given.get("default_factory")
            if isinstance(made, ast.Lambda):
                return ast.unparse(made.body)
            if made is not None:
                return EMPTY.get(ast.unparse(made), f"{ast.unparse(made)}()")
            return self._default(given.get("default"))
        if isinstance(value, ast.Name):
            value = (self.module.constant(value.id) or (None, value))[1]
        try:
            return repr(ast.literal_eval(value))
        except ValueError:
            return ast.unparse(value)


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module, and those under `if TYPE_CHECKING:` and `try:`."""
    for node in tree.body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from node.body


def _is_key(node: ast.AnnAssign) -> bool:
    """Whether a field is a configuration key (fl/config/fields.py); a class variable may replace a base's field."""
    text = ast.unparse(node)
    return not any(word in text for word in ("ClassVar", "NOT_A_KEY", "init=False"))


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Yield (name, expression) of the assignments in a body."""
    for node in body:
        if isinstance(node, ast.Assign):
            yield from ((ast.unparse(target), node.value) for target in node.targets)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield ast.unparse(node.target), node.value


@functools.cache
def read_module(path: Path) -> Module:
    """Return the module in a file."""
    return Module(path, ast.parse(path.read_text()))


@functools.cache
def module_source(name: str, beside: Path | None = None) -> Module | None:
    """Return the module `name` of this project, of the folder `beside` or of Python's path; None if it has no source.

    No parent package is imported, which `importlib.util.find_spec` would do.
    """
    parts = name.split(".")
    places = [str(ROOT)] if parts[0] == "fl" else [str(beside)] * bool(beside)
    parts = parts[1:] if parts[0] == "fl" and parts[1:2] and parts[1] in METHODS else parts  # fl/own_packages.py
    for where in (places, None):
        spec = None
        for i in range(len(parts)):
            spec = PathFinder.find_spec(".".join(parts[: i + 1]), where)
            if spec is None:
                break
            where = list(spec.submodule_search_locations or [])
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            return read_module(Path(spec.origin))
    return None


def definition_of(reference: str) -> Definition:
    """Return the class that `module:Class` names, as fl/kinds.py writes classes."""
    where, _, name = reference.partition(":")
    module = module_source(where)
    found = module.definition(name) if module is not None else None
    assert found is not None, reference
    return found
