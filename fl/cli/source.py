"""Parts as their source text describes them. Nothing is imported or run, so `fl list` and `fl show` need no torch.

registered(kind)             -> {name: Definition}      every `@register(kind, name, ...)` of this project
find(kind, "scaffold")       -> Definition              also "path/to/file.py:Name" and "module:Name"
definition.arguments()       -> [Argument, ...]         the fields of a dataclass, those of its bases first
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import fl
from fl.cli.docstring import split_args
from fl.errors import UnknownName, did_you_mean
from fl.kinds import KINDS

ROOT = Path(fl.__file__).resolve().parents[1]
PACKAGES = sorted({package.partition(".")[0] for kind in KINDS.values() for package in kind.packages})
DEFAULT_PART = re.compile(r"KINDS\['(\w+)'\]\.default\(\)")
EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}  # default factories


@dataclass(frozen=True)
class Argument:
    """An argument of a part: its name, its type and default as text, and what it means ("" without a description)."""

    name: str
    type: str
    default: str
    description: str


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
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {each.asname or each.name: (node.module, each.name) for each in node.names}
            elif isinstance(node, ast.Import):
                found |= {each.asname or each.name: (each.name, "") for each in node.names}
        return found

    def definition(self, name: str) -> Definition | None:
        """Return a class or function of this module, or one that it imports."""
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                return Definition(self, node)
        module, _, attribute = name.rpartition(".")
        where, what = self.imported.get(name, (self.imported.get(module, ("", ""))[0] if module else "", attribute))
        if where == "fl":
            where = fl._HOMES.get(what, where)
        source = module_source(where, self.path.parent) if where and what else None
        return source.definition(what) if source is not None else None

    def registered(self) -> Iterator[tuple[list[str], Definition]]:
        """Yield (kind and names, part) for each part that is registered."""
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "register":
                        yield [ast.literal_eval(word) for word in call.args], Definition(self, node)


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

    @property
    def summary(self) -> str:
        """First line that describes the part: that of its module if the part is alone in it, else its own."""
        alone = len({part.node.name for _, part in self.module.registered()}) == 1
        texts = (self.module.docstring, self.docstring) if alone else (self.docstring, self.module.docstring)
        return next(filter(None, texts), "").partition("\n")[0]

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
        return [
            Argument(name, ast.unparse(node.annotation), where._default(node.value), described.get(name, ""))
            for name, (where, node) in found.items()
            if _is_key(node)
        ]

    def annotation(self, name: str) -> list[Definition]:
        """Return the classes that may be the value of a field, as far as their source is found."""
        node = next(n for n in self.node.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == name)
        found = map(self.module.definition, ast.unparse(node.annotation).split(" | "))
        return [each for each in found if each is not None]

    def value(self, name: str) -> str:
        """Return the value of a class attribute as text."""
        for each in self.lineage:
            values = dict(_assigned(each.node.body))
            if name in values:
                default = DEFAULT_PART.fullmatch(ast.unparse(values[name]))
                return default_name(default[1]) if default else str(ast.literal_eval(values[name]))
        return ""

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
            value = self._constant(self.module, value.id) or value
        try:
            return repr(ast.literal_eval(value))
        except ValueError:
            return ast.unparse(value)

    def _constant(self, module: Module, name: str) -> ast.expr | None:
        """Return the expression of a constant, which may be imported."""
        if name in module.values:
            return module.values[name]
        where, what = module.imported.get(name, ("", ""))
        source = module_source(where, module.path.parent) if what else None
        return self._constant(source, what) if source is not None else None


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


# -- finding ----------------------------------------------------------------------------------------------------------
@functools.cache
def _read(path: Path) -> Module:
    return Module(path, ast.parse(path.read_text()))


def module_source(name: str, beside: Path | None = None) -> Module | None:
    """Return the module `name` of this project, of the folder `beside` or of Python's path; None if it has no source.

    No parent package is imported, which `importlib.util.find_spec` would do.
    """
    first = name.partition(".")[0]
    places = [str(ROOT)] if first in PACKAGES else [str(beside)] * bool(beside)
    for where in (places, None):
        spec = None
        for i, _ in enumerate(parts := name.split(".")):
            spec = PathFinder.find_spec(".".join(parts[: i + 1]), where)
            if spec is None:
                break
            where = list(spec.submodule_search_locations or [])
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            return _read(Path(spec.origin))
    return None


def registered(kind: str) -> dict[str, Definition]:
    """Return the registered parts of a kind by their own names, sorted."""
    return {name: part for name, part in sorted(_by_name(kind).items()) if _own_name(part, kind) == name}


def find(kind: str, reference: str) -> Definition:
    """Return the part with this name, or the one that `path/to/file.py:Name` or `module:Name` refers to.

    Raises:
        UnknownName: there is none.
    """
    if ":" not in reference:
        known = registered(kind)
        if reference not in _by_name(kind):
            hint = did_you_mean(reference, known)
            raise UnknownName(
                f"{reference!r} is not one of {list(known)} (nor a path/to/file.py:Name or module:Name).{hint}"
            )
        return _by_name(kind)[reference]
    where, _, name = reference.rpartition(":")
    path = Path(where).expanduser()
    if where.endswith(".py") and not path.is_file():
        raise UnknownName(f"{path} does not exist")
    module = _read(path.resolve()) if where.endswith(".py") else module_source(where, Path.cwd())
    if module is None:
        raise UnknownName(f"{reference!r}: there is no source of a module {where!r}")
    found = module.definition(name)
    if found is None:
        raise UnknownName(f"{reference!r}: {where} defines no class or function {name!r}")
    return found


@functools.cache
def _by_name(kind: str) -> dict[str, Definition]:
    """Return the parts of a kind by all their names."""
    found: dict[str, Definition] = {}
    for path, text in _registering():
        if f'@register("{kind}"' in text:
            for (its_kind, *names), part in _read(path).registered():
                if its_kind == kind:
                    found |= dict.fromkeys(names, part)
    return found


@functools.cache
def _registering() -> list[tuple[Path, str]]:
    """Return the files of this project that register parts, with their text."""
    texts = ((path, path.read_text()) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [(path, text) for path, text in texts if "@register(" in text]


def _own_name(part: Definition, kind: str) -> str:
    return next(names[1] for names, each in part.module.registered() if each.node is part.node and names[0] == kind)


def default_name(kind: str) -> str:
    """Return the name of the part that is used when a configuration names none, or ""."""
    module = module_source(KINDS[kind].packages[0])
    defaults = module.values.get("DEFAULTS") if module is not None else None
    return ast.literal_eval(defaults).get(kind, "") if defaults is not None else ""


def definition_of(reference: str) -> Definition:
    """Return the class that `module:Class` names, as fl/kinds.py writes classes."""
    where, _, name = reference.partition(":")
    module = module_source(where)
    found = module.definition(name) if module is not None else None
    assert found is not None, reference
    return found
