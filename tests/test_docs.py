"""The code and the configurations of README and docs run."""

import re
from pathlib import Path

import pytest

import fl
from experiments.benchmarks import plans
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
    "docs/methods.md",
    "docs/models.md",
    "docs/open_world.md",
    "docs/python.md",
    "docs/recommendation.md",
    "docs/report.md",
    "docs/secure_aggregation.md",
    "docs/semi_supervised.md",
    "docs/sweeps.md",
    "docs/tasks.md",
    "docs/vertical.md",
]
PAGES += sorted(f"docs/interfaces/{p.name}" for p in INTERFACES.glob("*.md"))


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "python")])
def test_snippets_of_the_docs_run(block, tmp_path):
    done = python(block, tmp_path, strict=True)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.slow
def test_the_table_of_batched_plans_is_up_to_date():
    table = plans.table()
    assert table.startswith("| method | compiled | stacked | flat | vmap |")
    assert "| `fedavg` | yes | yes | yes | yes |  |" in table.splitlines()
    assert table + "\n" in (ROOT / "docs/baselines.md").read_text(), "run python -m experiments.benchmarks.plans"
