"""Sweeps: runs, chosen candidates, and runs that are reused."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from fl.cli.app import app
from fl.errors import ConfigError
from fl.tools import sweep
from fl.tools.sweep import Sweep
from tests.process import CONTEXT

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
SWEEP = {
    "config": "config.yaml",
    "seeds": [3, 4],
    "seeded": ["partition.seed"],
    "tune": {"client.lr": [0.0, 0.2]},
    "metrics": ["eval/accuracy"],
    "variants": {"FedAvg": {}, "Two": {"cohort.size": 3, "tune": {"client.lr": [0.1]}}},
}


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch):
    """Fork the processes of `jobs` from a server with the heavy imports."""
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda method: CONTEXT)


@pytest.fixture
def write(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def write(**changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**SWEEP, **changes}))
        return path

    return write


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_variant_is_tuned_and_run_on_every_seed(write, tmp_path, jobs):
    told = []
    first, second = Sweep.load(write()).run(tmp_path / "out", jobs=jobs, say=told.append)
    assert (
        len(told) == 2 + 1 + 2
    )  # a variant with one candidate has no trial; the chosen candidate's first seed is reused
    chosen = json.loads((tmp_path / "out" / "chosen.json").read_text())
    assert chosen == {
        "FedAvg": {"client.lr": 0.2},
        "Two": {"client.lr": 0.1},
    }  # lr=0 learns nothing
    assert [rows[-1]["cohort_size"] for rows in first.runs + second.runs] == [2, 2, 3, 3]
    for name, size, lr in (("FedAvg", 2, 0.2), ("Two", 3, 0.1)):
        for seed in (3, 4):
            folder = tmp_path / "out" / (name if name == "Two" else "FedAvg,lr=0.2") / f"s{seed}"
            resolved = yaml.safe_load((folder / "config.yaml").read_text())
            assert (resolved["seed"], resolved["partition"]["seed"]) == (seed, seed)
            assert (resolved["cohort"]["size"], resolved["client"]["lr"]) == (size, lr)

    told.clear()
    again = Sweep.load(write()).run(tmp_path / "out", jobs=jobs, say=told.append)
    assert told == [] and again[0].runs == first.runs


@pytest.mark.slow
def test_a_variant_may_begin_with_what_another_ended_with(write, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"extends": "config.yaml", "rounds": 1, "client": {"lr": 0.0}}))
    begins = {"config": "other.yaml", "model.init": "{out}/FedAvg/s{seed}"}
    path = write(tune={}, variants={"Later": begins, "FedAvg": {}})
    found = {variant.name: variant.runs for variant in Sweep.load(path).run(tmp_path / "out", jobs=2)}
    for of_later, of_fedavg in zip(found["Later"], found["FedAvg"], strict=True):
        assert len(of_later) == 1 and of_later[-1]["eval/accuracy"] == of_fedavg[-1]["eval/accuracy"] > 0.15


def test_a_candidate_that_diverges_is_not_chosen(write, tmp_path):
    path = write(tune={"client.lr": [1e38, 0.1]}, variants={"FedAvg": {}})
    told = []
    Sweep.load(path).run(tmp_path / "out", say=told.append)
    assert "failed" in told[0] and "not finite" in told[0]
    assert json.loads((tmp_path / "out" / "chosen.json").read_text()) == {"FedAvg": {"client.lr": 0.1}}


def test_the_command(write, tmp_path):
    path = write(seeds=1, tune={})
    done = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "out"), "--only", "FedAvg", "--json"])
    (row,) = json.loads(done.stdout)
    assert row["name"] == "FedAvg" and row["runs"] == 1 and row["rounds"] == 2 and row["eval/accuracy"][0] > 0.1


def test_the_command_compares_and_plots(write, tmp_path):
    path, plot = write(tune={}), tmp_path / "curves.png"
    options = ["sweep", str(path), "--out", str(tmp_path / "out"), "--versus", "FedAvg", "--plot", str(plot), "--json"]
    done = CliRunner().invoke(app, [*options, "--cost", "round"])
    fedavg, two = json.loads(done.stdout)
    assert fedavg["eval/accuracy - FedAvg"] is None and two["eval/accuracy - FedAvg"] is not None
    assert plot.read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(app, ["sweep", str(path), "--out", str(tmp_path / "none"), "--versus", "Avg"])
    assert done.exit_code == 2 and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"seed": 3}, "seed: not a key of a sweep"),
        ({"variants": {"A": {"client.epoch": 3}}}, "client.epoch: not a key of 'sgd'"),
        ({"variants": {"1/4": {}}}, "'1/4' cannot name a folder: it has a slash"),
        ({"by": "val/f1"}, "by: 'val/f1' was not measured"),
    ],
)
def test_mistakes_are_found(write, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        Sweep.load(write(**changes)).run(tmp_path / "out", say=lambda line: None)


def test_a_variant_that_is_not_there(write, tmp_path):
    with pytest.raises(ConfigError, match="'Three' is not one of"):
        Sweep.load(write()).run(tmp_path / "out", only=["Three"])


def test_a_variants_own_code_lies_beside_the_sweep(write, tmp_path, monkeypatch):
    (tmp_path / "rule.py").write_text(
        "from dataclasses import dataclass\nfrom fl import Strategy\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Still(Strategy):\n    def step(self, state, mean, ctx):\n        return state, {}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    path = write(seeds=1, variants={"Still": {"strategy": "./rule.py:Still", "tune": {}}})
    monkeypatch.chdir(tmp_path / "elsewhere")
    (still,) = Sweep.load(path).run(tmp_path / "out")
    assert [row["eval/loss"] for row in still.runs[0]] == [still.runs[0][0]["eval/loss"]] * 2
