"""The registered parts of each kind, found in the source text without importing or parsing every module.

names(kind)                 -> {name: Entry}     own names, sorted
find(kind, "scaffold")      -> Definition        also "path/to/file.py:Name" and "module:Name"
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from fl.errors import UnknownName, did_you_mean
from fl.kinds import KINDS
from fl.reference.source import PACKAGES, ROOT, Definition, Module, module_source, read_module

# `@register("kind", "name", "alias")`, other decorators, the class or function, and the first line of its docstring
_REGISTERED = re.compile(
    r'^@register\("(?P<kind>\w+)", (?P<names>"[^)]*")\)\n(?:@.*\n)*(?:class|def) (?P<object>\w+)'
    r'(?:.*?:\n\s+"""(?P<summary>.*))?',
    re.M,
)
_DEFAULT_PART = re.compile(r"KINDS\['(\w+)'\]\.default\(\)")


@dataclass(frozen=True)
class Entry:
    """A registered part.

    Args:
        path: the file that registers it.
        object: name of the class or function.
        names: its own name, then its aliases.
        summary: one line that describes it: that of its module if it is alone in it, else its own.
    """

    path: Path
    object: str
    names: tuple[str, ...]
    summary: str

    @property
    def definition(self) -> Definition:
        """The class or function."""
        found = read_module(self.path).definition(self.object)
        assert found is not None, self
        return found


def names(kind: str) -> dict[str, Entry]:
    """Return the parts of a kind by their own names, sorted."""
    found = {entry.names[0]: entry for its_kind, entry in _registered() if its_kind == kind}
    return dict(sorted(found.items()))


@functools.cache
def _registered() -> list[tuple[str, Entry]]:
    """All parts of this project, with their kinds."""
    return [each for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) for each in _entries(path)]


@functools.cache
def _entries(path: Path) -> list[tuple[str, Entry]]:
    """The parts that a file registers, with their kinds."""
    text = path.read_text()
    matches = list(_REGISTERED.finditer(text)) if "\n@register(" in text else []
    first = text.removeprefix('"""').partition("\n")[0].removesuffix('"""')
    alone = len({match["object"] for match in matches}) == 1
    found = []
    for match in matches:
        own = (match["summary"] or "").removesuffix('"""')
        words = tuple(re.findall(r'"([^"]*)"', match["names"]))
        found.append((match["kind"], Entry(path, match["object"], words, first if alone or not own else own)))
    return found


def find(kind: str, reference: str) -> Definition:
    """Return the part with this name, or the one that `path/to/file.py:Name` or `module:Name` refers to.

    Raises:
        UnknownName: there is none.
    """
    if ":" in reference:
        return _users(reference)
    known = names(kind)
    for entry in known.values():
        if reference in entry.names:
            return entry.definition
    hint = did_you_mean(reference, known)
    raise UnknownName(f"{reference!r} is not one of {list(known)} (nor a path/to/file.py:Name or module:Name).{hint}")


def _users(reference: str) -> Definition:
    """The class or function that `path/to/file.py:Name` or `module:Name` refers to."""
    where, _, name = reference.rpartition(":")
    path = Path(where).expanduser()
    if where.endswith(".py") and not path.is_file():
        raise UnknownName(f"{path} does not exist")
    module: Module | None
    if where.endswith(".py"):
        module = read_module(path.resolve())
    else:
        module = module_source(where, Path.cwd())
    if module is None:
        raise UnknownName(f"{reference!r}: there is no source of a module {where!r}")
    found = module.definition(name)
    if found is None:
        raise UnknownName(f"{reference!r}: {where} defines no class or function {name!r}")
    return found


@functools.cache
def default_name(kind: str) -> str:
    """Return the name of the part that is used when a configuration names none, or ""."""
    module = module_source(KINDS[kind].packages[0])
    defaults = module.values.get("DEFAULTS") if module is not None else None
    return ast.literal_eval(defaults).get(kind, "") if defaults is not None else ""


def client_of(strategy: Definition) -> str:
    """Return the name of the client algorithm that a strategy brings."""
    value = strategy.value("client")
    if value is None:
        return default_name("client")
    default = _DEFAULT_PART.fullmatch(ast.unparse(value))
    return default_name(default[1]) if default else str(ast.literal_eval(value))


def name_of(definition: Definition) -> str:
    """Return the name under which a class of this project is registered, or "".

    >>> from fl.reference.source import definition_of
    >>> name_of(definition_of("fl.method.optimiser:Adam"))
    'adam'
    """
    entries = (entry for _, entry in _entries(definition.module.path))
    return next((entry.names[0] for entry in entries if entry.object == definition.node.name), "")
