"""Users' packages called `strategies`, `clients`, `partitions` or `experiments`: nobody hides anything of anybody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl.own_packages import NAMES, ROOT
from tests import process

METHOD = """\
from dataclasses import dataclass

from {package}.helper import factor
from fl.{package}.{module} import {base}


@dataclass(frozen=True, kw_only=True)
class Mine({base}):
    '''The rule of the user.'''

    note: int = factor
"""
CONFIG = """\
rounds: 1
data: digits
partition: {clients: 4}
model: {name: mlp, hidden: [4]}
cohort: {size: 2}
strategy: strategies.fedavg:Mine
client: {name: "clients.sgd:Mine", lr: 0.1}
"""
CHECK = """\
import clients.helper, experiments.mine, partitions.mine, strategies.helper
from importlib.util import find_spec
found = (strategies.helper.factor, clients.helper.factor, experiments.mine.factor, partitions.mine.factor)
assert found == (0, 1, 2, 3)
assert find_spec("strategies.fedavg").origin.endswith(PROJECT + "/strategies/fedavg.py")
import fl
for name in ("strategies.fedavg", "clients.sgd", "partitions.dirichlet", "experiments.headline"):
    assert find_spec("fl." + name).origin == f"ROOT/{name.replace('.', '/')}.py"
""".replace("ROOT", str(ROOT))
TEST = """import strategies.fedavg
from fl.registry import lookup

def test_both_are_found():
    assert strategies.fedavg.Mine.__mro__[1] is lookup("strategy", "fedavg")
    assert lookup("strategy", "fedavg").__module__ == "fl.strategies.fedavg"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with four folders that are called like our packages; none has an `__init__.py`."""
    files = {
        "strategies/fedavg.py": METHOD.format(package="strategies", module="fedavg", base="FedAvg"),
        "strategies/helper.py": "factor = 0",
        "clients/sgd.py": METHOD.format(package="clients", module="sgd", base="LocalSGD"),
        "clients/helper.py": "factor = 1",
        "experiments/mine.py": "factor = 2",
        "partitions/mine.py": "factor = 3",
        "run.yaml": CONFIG,
        "test_mine.py": TEST,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def check(project: Path) -> str:
    """Code that stops unless Python finds the modules of the project and of fl."""
    return f"PROJECT = {project.name!r}\n{CHECK}"


def make_packages(project: Path, names: tuple[str, ...] = NAMES) -> None:
    """Give the folders an `__init__.py` that must not be imported together with fl."""
    for name in names:
        (project / name / "__init__.py").write_text("import sys; assert 'fl' not in sys.argv")


def python(project: Path, *arguments: str, path: tuple[Path, ...] = (ROOT,)) -> subprocess.CompletedProcess:
    """Run Python in the project's folder; fl comes after that folder, as if it were installed."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    clean["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run([sys.executable, *arguments], cwd=project, env=clean, capture_output=True, text=True)


@pytest.mark.parametrize("packages", [(), NAMES], ids=["folders", "packages"])
def test_both_are_found_from_the_working_directory_and_by_pytest(packages, project):
    make_packages(project, packages)
    done = python(project, "-c", check(project))
    assert done.returncode == 0, done.stderr
    done = python(project, "-m", "experiments.mine")
    assert done.returncode == 0, done.stderr
    mode = "importlib" if packages else "prepend"
    done = python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", "test_mine.py")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize("packages", [(), NAMES], ids=["folders", "packages"])
def test_both_are_found_from_pythonpath(packages, project, tmp_path_factory):
    make_packages(project, packages)
    done = python(tmp_path_factory.mktemp("elsewhere"), "-c", check(project), path=(project, ROOT))
    assert done.returncode == 0, done.stderr


def test_a_folder_that_comes_after_ours_shares_the_name(project, tmp_path_factory):
    done = python(tmp_path_factory.mktemp("elsewhere"), "-c", check(project), path=(ROOT, project))
    assert done.returncode == 0, done.stderr


def test_a_package_that_comes_after_ours_is_named(project, tmp_path_factory):
    make_packages(project)
    done = python(tmp_path_factory.mktemp("elsewhere"), "-c", "import clients.helper", path=(ROOT, project))
    assert done.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: no module 'clients.helper': 'clients' is the package of fl in {ROOT}, which comes "
        f"before {project / 'clients'} on Python's path. Put {project} first; fl finds its own as 'fl.clients'"
    )


def test_a_single_file_may_have_the_name(tmp_path):
    (tmp_path / "clients.py").write_text("mine = 1")
    code = "import clients, fl, importlib.util; print(clients.mine, importlib.util.find_spec('fl.clients.sgd').name)"
    assert python(tmp_path, "-c", code).stdout == "1 fl.clients.sgd\n"


def test_short_and_long_names_are_one_module():
    code = """
import pickle, strategies.fedavg, fl.strategies.fedavg, strategies.lora_math
from strategies.baselines.local import Local as short
from fl.strategies.baselines.local import Local as long

assert short is long is pickle.loads(pickle.dumps(short))
assert strategies.fedavg is fl.strategies.fedavg
assert fl.strategies.fedavg.__spec__.name == fl.strategies.fedavg.__name__ == "fl.strategies.fedavg"
"""
    done = python(Path("/"), "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_workers_find_both(project):
    """One of the user's names is a package, the other is a folder."""
    make_packages(project, ("strategies",))
    digests = []
    for executor in ("serial", "ray"):
        more = ["--out", str(project / executor), "--quiet", f"execution.executor={executor}"]
        done = python(project, "-m", "fl", "run", "run.yaml", *more, *["execution.workers=2"] * (executor == "ray"))
        assert done.returncode == 0, done.stderr
        digests.append(process.fl("digest", project / executor).stdout)
    assert digests[0] == digests[1] != ""


def test_a_missing_package_is_an_error(tmp_path):
    (tmp_path / "fl").mkdir()
    for name in ("__init__.py", "own_packages.py", "platforms.py"):
        (tmp_path / "fl" / name).write_text((ROOT / "fl" / name).read_text())
    done = python(tmp_path, "-c", "import fl.strategies", path=())
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: fl needs its own package 'strategies' beside it in {tmp_path}, and there is none: "
        "install fl again"
    )
