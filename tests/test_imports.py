"""Imports point one way (experiments -> strategies, clients, partitions -> fl) and cost little."""

import ast
import configparser
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fl
from fl.kinds import KINDS
from fl.registry import names

pytestmark = pytest.mark.xdist_group("imports")  # one process reads all files, once
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "fl": {"fl"},
    "strategies": {"strategies", "fl"},
    "clients": {"clients", "fl"},
    "partitions": {"partitions", "fl"},
    "experiments": {"experiments", "strategies", "clients", "partitions", "fl"},
}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted module) of each import in a file, at any depth; `from fl import a` also imports fl.a."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
            if node.module in (None, "fl"):
                start = "." * node.level if node.module is None else "fl."
                yield from ((node.lineno, start + alias.name) for alias in node.names if alias.name in PACKAGES)


def package_of(module: str, path: Path) -> str:
    """The top-level package of a module that a file imports: `strategies` for `fl.strategies.fedavg`, too."""
    level = len(module) - len(module.lstrip("."))
    around = path.parents[level - 1].relative_to(ROOT).parts if level else ()
    names = [*around, *(name for name in module.split(".") if name)]
    return names[1] if names[:1] == ["fl"] and len(names) > 1 and names[1] in PACKAGES else "".join(names[:1])


@functools.cache
def found(package: str) -> list[tuple[str, str]]:
    """Return (file:line, top-level package) of each import in a package, without the peers of `fl bench`."""
    peers = ROOT / "experiments" / "benchmarks" / "peers"
    files = sorted(p for p in (ROOT / package).rglob("*.py") if p.parent != peers)
    return [(f"{p.relative_to(ROOT)}:{line}", package_of(m, p)) for p in files for line, m in imports(p)]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a new interpreter that finds our packages, without the environment variables that fl sets."""
    ours = ("RAY_USAGE_STATS_ENABLED", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    clean |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)


def test_imports_are_seen_wherever_they_stand(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import os.path as p, sys\ndef f():\n    from fl.tensors.params import Params\n    from . import b\n"
    )
    assert sorted(imports(file)) == [(1, "os.path"), (1, "sys"), (3, "fl.tensors.params"), (4, ".")]


@pytest.mark.parametrize(
    ("text", "packages"),
    [
        ("from .fedavg import FedAvg", ["strategies"]),
        ("from fl.clients.sgd import SGD", ["clients"]),
        ("from ..clients.sgd import SGD", ["clients"]),
        ("from .. import clients", ["clients"]),
        ("from fl import Params, clients", ["fl", "clients"]),
    ],
)
def test_a_package_is_seen_behind_each_of_its_names(text, packages, tmp_path):
    (tmp_path / "a.py").write_text(text)
    file = ROOT / "strategies" / "a.py"
    names = [package_of(module, file) for _, module in imports(tmp_path / "a.py")]
    assert [name for name in names if name] == packages


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    upward = PACKAGES.keys() - PACKAGES[package]
    assert [(where, module) for where, module in found(package) if module in upward] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_only_fl_flower_imports_flwr(package):
    assert [where for where, module in found(package) if module == "flwr" and not where.startswith("fl/flower/")] == []


packages_distributions = functools.cache(importlib.metadata.packages_distributions)  # reads hundreds of files


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_declared(package):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = dict(config["options.extras_require"])
    del extras["test"], extras["dev"]
    required = "\n".join([config["options"]["install_requires"], *extras.values()]).split()
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in required}
    homes = packages_distributions()
    third_party = [(w, m) for w, m in found(package) if m and m not in {*PACKAGES, *sys.stdlib_module_names}]
    assert [(w, m) for w, m in third_party if not declared & {d.lower() for d in homes.get(m, [m])}] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_modules_is_a_package(package):
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").exists()] == [], "an installed fl would lack them"


def test_import_fl_loads_nothing_heavy():
    done = python(
        "import fl, sys; print(sorted({'torch', 'ray', 'flwr', 'numpy', 'sklearn', 'pydantic'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr


# words that name a part outside fl/, but have another meaning inside fl/
GENERIC = {
    "flow": "normalising flows, the module fl/models/flow.py; client",
    "flwr": "the package of Flower; partition",
    "local": "local training, this machine, statistics of batch normalisation; strategy, client",
    "median": "the statistic; strategy",
    "partial": "functools.partial, partial work of late clients; client",
    "target": "what is predicted, aimed at or checked; strategy, client",
    "vertical": "vertical federated learning, in which parties hold columns; partition",
}


# the laws compare other methods with FedAvg: `FedAvgEquivalent.fedavg` holds its settings
REFERENCE = {("fl/method/strategy.py", "fedavg"), ("fl/check/strategy.py", "fedavg")}


def names_outside() -> set[str]:
    """Return names and aliases of parts outside fl/, without those of parts inside fl/ (`sgd`, `lora`)."""
    inner = [kind for kind in KINDS.values() if kind.packages[0].split(".")[1] not in PACKAGES]
    inside = {name for kind in inner for name in names(kind.name, True)}
    outside = {"strategy", "client", "partition"}
    return {name for kind in outside for name in names(kind, True)} - inside


def words(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, word) of each identifier of a file, and of each word in its strings except docstrings."""
    tree = ast.parse(path.read_text(), str(path))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((node.lineno, word) for word in re.findall(r"\w+", node.value))
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield getattr(node, "lineno", 0), word.rpartition(".")[2]


def test_words_are_seen_in_strings_and_identifiers(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        '"""fedavg"""\nfrom strategies import fedprox\nx = f"use fedbn, {y.scaffold}"\n\ndef moon(ditto): ...\n'
    )
    assert {word for _, word in words(file)} >= {"fedprox", "fedbn", "scaffold", "moon", "ditto"}
    assert "fedavg" not in {word for _, word in words(file)}


def test_fl_knows_no_strategy_client_or_partition_by_name():
    forbidden = names_outside() - GENERIC.keys()
    assert {"fedavg", "scaffold", "iid", "majority"} <= forbidden
    files = sorted((ROOT / "fl").rglob("*.py"))
    found = [(str(p.relative_to(ROOT)), line, word) for p in files for line, word in words(p) if word in forbidden]
    assert [(file, line, word) for file, line, word in found if (file, word) not in REFERENCE] == []


def test_each_generic_word_is_a_registered_name():
    assert GENERIC.keys() <= names_outside()


def test_type_checkers_see_the_offered_names():
    """The names imported under TYPE_CHECKING are those imported lazily at their first use."""
    tree = ast.parse(Path(fl.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == fl._HOMES


def test_one_import_is_enough_to_write_a_method():
    """Method files import from fl only names that `from fl import ...` offers."""
    helpers = {"checks", "locate"}  # checks is a module; locate finds files of graphs in the data folder
    files = [p for folder in ("strategies", "clients") for p in (ROOT / folder).glob("*.py")]
    nodes = [node for p in files for node in ast.walk(ast.parse(p.read_text())) if isinstance(node, ast.ImportFrom)]
    used = {alias.name for n in nodes if (n.module or "").partition(".")[0] == "fl" for alias in n.names}
    assert used - {*fl.__all__} - helpers == set()


@pytest.mark.parametrize("name", fl.__all__)
def test_offered_names_exist(name):
    assert getattr(fl, name) is not None


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="fl has no 'Stategy'; it has .*'Strategy'"):
        fl.Stategy


def test_nothing_is_reported_unless_the_user_asks_for_it():
    code = "import fl, os; print(os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['FLWR_TELEMETRY_ENABLED'])"
    assert python(code).stdout == "0 0\n"
    assert python(code, RAY_USAGE_STATS_ENABLED="1").stdout == "1 0\n"
