"""The code, commands and configurations of README and docs run."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import yaml

import fl
from experiments.benchmarks import plans
from fl.config.config import resolve
from fl.config.reading import read
from tests.process import python

ROOT = Path(fl.__file__).parent.parent
INTERFACES = ROOT / "docs/interfaces"
SMALL = {"rounds": 2, "execution.executor": "serial"}


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


def test_the_readmes_rule_runs_from_a_configuration(tmp_path):
    rule = next(b for b in blocks("README.md", "python") if "class SignMean" in b)
    assert len([line for line in rule.splitlines() if line.strip()]) <= 15
    (tmp_path / "my_rule.py").write_text(rule)
    before = fl.run(ROOT / "experiments/quickstart.yaml", out=tmp_path / "a", **SMALL, **{"client.lr": 0.0})
    after = fl.run(
        ROOT / "experiments/quickstart.yaml",
        out=tmp_path / "b",
        **SMALL,
        **{"strategy.name": f"{tmp_path}/my_rule.py:SignMean", "strategy.lr": 0.5},
    )
    # FedAvg without training keeps the initial model; two steps of +-0.5 move it by 0 or 1 (0.5 if a sign is 0)
    moved = (after.model - before.model).buffers[0].abs()
    assert set(moved.mul(2).round().tolist()) <= {0.0, 1.0, 2.0} and moved.max() == pytest.approx(1.0, abs=1e-5)


def test_the_readmes_configuration_resolves_and_runs(tmp_path):
    text = next(b for b in blocks("README.md", "yaml") if "strategy:" in b)
    (tmp_path / "c.yaml").write_text(text)
    result = fl.run(tmp_path / "c.yaml", out=tmp_path / "run", **SMALL)
    assert len(result.metrics) == 2


PAGES = [
    "docs/cluster.md",
    "docs/communication.md",
    "docs/data.md",
    "docs/evaluation.md",
    "docs/install.md",
    "docs/language_models.md",
    "docs/methods.md",
    "docs/models.md",
    "docs/open_world.md",
    "docs/python.md",
    "docs/recommendation.md",
    "docs/report.md",
    "docs/secure_aggregation.md",
    "docs/semi_supervised.md",
    "docs/speed.md",
    "docs/sweeps.md",
    "docs/system.md",
    "docs/tasks.md",
    "docs/topologies.md",
    "docs/vertical.md",
]
PAGES += sorted(f"docs/interfaces/{p.name}" for p in INTERFACES.glob("*.md"))


def test_a_users_file_is_found_again_from_anywhere(tmp_path, monkeypatch):
    """The run directory stores the file's full path and a copy."""
    rule = next(b for b in blocks("README.md", "python") if "class SignMean" in b)
    (tmp_path / "my_rule.py").write_text(rule)
    monkeypatch.chdir(tmp_path)
    fl.run(ROOT / "experiments/quickstart.yaml", out="run", **SMALL, **{"strategy.name": "./my_rule.py:SignMean"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(fl.resume("../run", rounds="+1").metrics) == 3
    assert (tmp_path / "run/code/my_rule.py").read_text() == rule


# -- guides: each page is a story that runs from its first line to its last, in one folder -----------------------------
GUIDES = [
    "docs/choose.md",
    "docs/continual.md",
    "docs/from_flower.md",
    "docs/measure_communication.md",
    "docs/own_data.md",
    "docs/own_model.md",
    "docs/own_rule.md",
    "docs/personalised.md",
    "docs/reproduce.md",
    "docs/start.md",
    "docs/write_parts.md",
]
NOT_RUN = "*Not run by the tests: "  # the paragraph above a block that needs what a test has not
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
FRAGMENT = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "iid", "clients": 10},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"size": 2},
    "strategy": "fedavg",
}


class Block(NamedTuple):
    language: str
    code: str
    runs: bool

    @property
    def file(self) -> str | None:
        """`# my_rule.py`, at the beginning of the first line, names the file of the block."""
        name = re.match(r"# ([\w./]+\.(?:py|yaml))\b", self.code)
        return name and name[1]


def page_blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(found[1], found[2], NOT_RUN not in text[: found.start()].rstrip().rsplit("\n\n", 1)[-1])
        for found in FENCE.finditer(text)
    ]


def commands(code: str) -> list[list[str]]:
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize(
    "code", [b.code for page in PAGES for b in page_blocks(page) if b.language == "python" and b.runs]
)
def test_snippets_of_the_docs_run(code, tmp_path):
    done = python(code, tmp_path, strict=True)
    assert done.returncode == 0, done.stderr


# the blocks of a page in one process: its imports cost more than most of the runs
RUNNER = """
import sys, types, warnings
from fl.cli.app import main

sys.path.insert(0, "")  # as in an interpreter that is started in the folder

def execute(code):
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(code, "<block>", "exec"), module.__dict__)

def command(program, *arguments):
    sys.argv = [program, *arguments]
    if program == "python":
        return execute(open(arguments[0]).read())
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"exit code {end.code}: {sys.argv}"
"""


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = [RUNNER]
    for block in page_blocks(page):
        if block.file:
            steps.append(f"open({block.file!r}, 'w').write({block.code!r})")
        if not block.runs or block.language == "text":
            continue
        if block.language == "yaml" and not block.file:
            resolve(read(FRAGMENT | yaml.safe_load(block.code)))
        elif block.language == "yaml":
            pass  # a command of the page runs it
        elif block.language == "python":
            steps.append(f"execute({block.code!r})")
        else:
            assert block.language == "bash", f"{page}: a block in the language {block.language!r}"
            for words in commands(block.code):
                assert words[0] in ("fl", "python"), f"no test runs {words}: mark the block with {NOT_RUN!r}"
                steps.append(f"command(*{words!r})")
    if len(steps) > 1:
        done = python("\n".join(steps), tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_command_of_a_guide_runs_each_configuration():
    for page in GUIDES:
        blocks_ = page_blocks(page)
        told = "".join(block.code for block in blocks_ if block.language in ("bash", "python"))
        for block in blocks_:
            if block.file and block.language == "yaml":
                assert block.file in told, f"{page}: {block.file}"


def test_a_page_says_which_blocks_do_not_run():
    """A marker stands right above its block, or it would be a sentence without effect."""
    for page in GUIDES + PAGES:
        marks = (ROOT / page).read_text().count(NOT_RUN)
        assert marks == sum(not block.runs for block in page_blocks(page)), page


# -- the site ----------------------------------------------------------------------------------------------------------
LOADED = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^" >]*)|<link[^>]*\shref="?([^" >]*)')


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_page_has_a_place_in_the_navigation_and_links_lead_somewhere(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "BUILD", tmp_path)
    site.stage()


def test_llms_txt_is_up_to_date(site):
    assert site.llms() == (ROOT / "llms.txt").read_text(), "run python docs/site.py"


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_other_hosts(site, tmp_path, monkeypatch):
    pytest.importorskip("zensical")
    monkeypatch.setattr(site, "BUILD", tmp_path)
    site.main()
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|iframe|source)[^>]*\ssrc="?([^" >]*)|<link[^>]*href="?([^" >]*)', page.read_text()
        )
        hosts = [a or b for a, b in loaded if (a or b).startswith(("http:", "https:", "//"))]
        assert not hosts, f"{page.name} loads {hosts}"


@pytest.mark.slow
def test_the_table_of_batched_plans_is_up_to_date():
    table = plans.table()
    assert table.startswith("| method | compiled | stacked | flat | vmap |")
    assert "| `fedavg` | yes | yes | yes | yes |  |" in table.splitlines()
    assert table + "\n" in (ROOT / "docs/baselines.md").read_text(), "run python -m experiments.benchmarks.plans"
