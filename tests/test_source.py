"""`fl list` and `fl show` read source text. What they say is compared with the imported parts."""

import ast
import dataclasses
import inspect
import subprocess
import sys

import pytest

from fl import registry
from fl.config.config import Config
from fl.config.fields import NOT_A_KEY
from fl.errors import UnknownName
from fl.kinds import KINDS
from fl.reference import parts, source

HEAVY = {"torch", "numba", "ray", "numpy", "scipy", "sklearn", "pydantic", "transformers", "peft", "flwr", "pandas"}


@pytest.mark.parametrize(
    "command",
    ["--help", "list", "show", "show execution", "show strategy scaffold", "show config", "show config --json"],
)
def test_commands_about_parts_import_nothing_heavy(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fl", *command.split()], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "fl.cli.parts" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("kind", KINDS)
def test_source_text_tells_what_the_imported_parts_are(kind):
    """The names, docstrings, and the arguments with their types and defaults."""
    entries = parts.names(kind)
    assert list(entries) == registry.names(kind)
    aliases = {name for entry in entries.values() for name in entry.names}
    assert aliases == set(registry.names(kind, aliases=True))
    for name, entry in entries.items():
        part, told = registry.lookup(kind, name), entry.definition
        module = inspect.cleandoc(sys.modules[part.__module__].__doc__)
        assert entry.summary in (module.partition("\n")[0], inspect.cleandoc(part.__doc__).partition("\n")[0])
        assert told.is_dataclass == dataclasses.is_dataclass(part)
        assert told.module.docstring == module
        assert_arguments_are_told(told, part)
        if kind == "strategy":
            assert parts.client_of(told) == part.client


def assert_arguments_are_told(told, part):
    fields = dataclasses.fields(part) if told.is_dataclass else ()
    keys = [field for field in fields if field.init and field.metadata != NOT_A_KEY]
    arguments = told.arguments() if told.is_dataclass else []
    assert [(each.name, each.type) for each in arguments] == [(field.name, field.type) for field in keys]
    for each, field in zip(arguments, keys):
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert (each.default == "required") == missing
        try:
            value = ast.literal_eval(each.default)
        except ValueError:  # a part, such as Plain(), a required one, or an expression
            continue
        assert value == (field.default if field.default is not dataclasses.MISSING else field.default_factory())


def test_source_text_tells_the_keys_of_a_configuration():
    told = source.definition_of("fl.config.config:Config")
    assert_arguments_are_told(told, Config)
    assert {kind: parts.default_name(kind) for kind in KINDS} == {name: kind.default() for name, kind in KINDS.items()}


FILE = '''
"""A rule."""
from dataclasses import dataclass
from beside import Base

raise SystemExit("shown, not run")

@dataclass
class Rule(Base):
    """Does it.

    Args:
        lr: the rate.
    """
    lr: float = 0.5
'''
BESIDE = '''
from dataclasses import dataclass, field
from fl import Strategy

LENGTH = 3

@dataclass
class Base(Strategy):
    """A base.

    Args:
        length: a number.
    """
    length: int = LENGTH
    names: list[str] = field(default_factory=lambda: ["a"])
    hidden: int = field(default=1, init=False)
    client = "moon"
'''


def test_a_users_file_is_shown_without_running_it(tmp_path):
    (tmp_path / "rule.py").write_text(FILE)
    (tmp_path / "beside.py").write_text(BESIDE)
    rule = parts.find("strategy", f"{tmp_path}/rule.py:Rule")
    assert [(each.name, each.type, each.default, each.description) for each in rule.arguments()] == [
        ("length", "int", "3", "a number."),
        ("names", "list[str]", "['a']", ""),
        ("lr", "float", "0.5", "the rate."),
    ]
    assert (rule.text, parts.client_of(rule)) == ("Does it.", "moon")


@pytest.mark.parametrize("reference", ["{}/missing.py:Rule", "{}/beside.py:Rule", "no_such_module:Rule", "scaffol"])
def test_a_part_that_does_not_exist(tmp_path, reference):
    (tmp_path / "beside.py").write_text(BESIDE)
    with pytest.raises(UnknownName):
        parts.find("strategy", reference.format(tmp_path))
