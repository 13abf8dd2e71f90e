"""The wheel and the sdist hold what a user needs, and run the quick start in an empty folder."""

import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import fl
from tests import dist

NEEDED = {
    "fl/py.typed",
    "fl/tools/templates/strategy.py.txt",
    "fl/report/page/page.html",
    "experiments/quickstart.yaml",
    "experiments/cifar10/cifar10.yaml",
    "strategies/baselines/local.py",
    "partitions/vertical/shares.py",
    "clients/sgd.py",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    return dist.build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_what_they_hold(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = set(opened.namelist())
    with tarfile.open(sdist) as opened:
        in_sdist = {name.partition("/")[2] for name in opened.getnames()}
    assert NEEDED <= in_wheel and NEEDED <= in_sdist and "CITATION.cff" in in_sdist
    wanted = {path.relative_to(dist.ROOT).as_posix() for path in (dist.ROOT / "experiments").rglob("*.yaml")}
    assert wanted <= in_wheel
    tops = {name.partition("/")[0] for name in in_wheel}
    assert tops == {"fl", "strategies", "clients", "partitions", "experiments", f"fl-{fl.__version__}.dist-info"}
    for name in in_wheel | in_sdist:
        assert not name.startswith(("tests", "docs", "runs", "build")) and "__pycache__" not in name, name
        assert not name.endswith((".png", ".ipynb")), name


@pytest.mark.slow
def test_the_wheel_runs_the_quick_start_in_an_empty_folder(built, tmp_path):
    commands = dist.install(built[0], tmp_path / "environment", dependencies=False)
    dist.quick_start(commands, tmp_path / "empty", "execution.executor=serial", "rounds=2")
    assert "fedavg" in (tmp_path / "empty" / "report.html").read_text()
    where = dist.run((str(commands / "python"), "-c", "import fl, strategies; print(strategies.__file__)"), tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "environment")


def test_the_citation_is_valid():
    """The fields that CFF 1.2.0 requires, with the values that it allows."""
    citation = yaml.safe_load((dist.ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == fl.__version__
    assert citation["type"] in ("software", "dataset") and citation["license"] == "Apache-2.0"
    assert all(isinstance(citation[key], str) and citation[key] for key in ("message", "title", "abstract"))
    known = {"name"} if "name" in citation["authors"][0] else {"family-names", "given-names", "orcid", "affiliation"}
    assert citation["authors"] and all(author and author.keys() <= known for author in citation["authors"])
    allowed = {"cff-version", "message", "title", "abstract", "type", "authors", "version", "license", "keywords"}
    assert citation.keys() <= allowed | {"doi", "url", "repository-code", "date-released", "references"}


def test_a_file_that_does_not_exist_names_what_is_packaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("experiments/quickstart.yaml", "quickstrat", "quickstart.yml"):
        with pytest.raises(
            fl.ConfigError, match=f"{name} does not exist. Did you mean quickstart, which comes with fl"
        ):
            fl.run(name)
    with pytest.raises(fl.ConfigError, match="quickstart and the other files of .*experiments come with fl"):
        fl.run("zzz")
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(fl.ConfigError, match="quickstart is a folder"):
        fl.run("quickstart")
