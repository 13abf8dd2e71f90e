"""Baselines use the same splits and do the same amount of work as the run."""

import gc

import numpy as np
import pytest

import fl
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation
from fl.storage.run import read_metrics

CONFIG = {
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3, "min_size": 10},
    "splits": {"val": 0.1, "test": 0.3},
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 5},
    "rounds": 8,
    "client": {"epochs": 2, "batch": 10, "lr": 0.1},
    "execution": {"executor": "serial"},
    "baselines": ["local", "centralised", "finetune", "majority"],
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("baselines") / "run")


def train_rows(result):
    """Read the samples per pass of each round, {round: samples}, from the run's client table."""
    import pyarrow.parquet as pq

    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    rounds: dict[int, int] = {}
    for row in table:
        if row["split"] == "train":
            rounds[row["round"]] = rounds.get(row["round"], 0) + row["num_examples"]
    return rounds


def test_each_is_a_run_below_the_run(result):
    assert list(result.baselines) == CONFIG["baselines"]
    for name, other in result.baselines.items():
        assert other.directory == result.directory / "baselines" / name
        assert read_metrics(other.directory) and read(other.directory / "config.yaml")["baselines"] == []
    assert set(result.summary["baselines"]) == set(CONFIG["baselines"])


def test_the_same_work(result):
    # 8 rounds with 5 of 20 clients equal 2 rounds of all clients, or 2 epochs over a quarter of the rows with batch 10
    local, central = result.baselines["local"], result.baselines["centralised"]
    assert len(local.metrics) == 2 and len(central.metrics) == 8
    rows = train_rows(local)[0]
    config = read(central.directory / "config.yaml")
    assert config["client"]["steps"] == round(2 * rows / 4 / 10) and config["splits"]["pooled"] is True
    assert train_rows(central)[0] == rows  # client 0 has all rows


def test_the_same_splits(result):
    """The run and its baselines are evaluated on the same rows of the same clients."""
    import pyarrow.parquet as pq

    def held(directory):
        table = pq.read_table(directory / "clients.parquet").to_pylist()
        return {(row["split"], row["client"]): row["num_examples"] for row in table if row["split"] != "train"}

    assert all(held(other.directory) == held(result.directory) for other in result.baselines.values())


def test_majority_is_what_counting_says(result):
    from fl.config.config import resolve
    from fl.simulation.build import load_data

    dataset, (period,) = load_data(resolve(CONFIG))
    right = total = 0
    for c in range(20):
        train, test = (dataset.labels[period.partition.view_rows(c, split)] for split in ("train", "test"))
        right += int((test == np.bincount(train, minlength=10).argmax()).sum())
        total += len(test)
    assert result.baselines["majority"].metrics[-1]["clients/accuracy_weighted"] == pytest.approx(right / total)


def test_finetune_starts_from_the_runs_model(result, tmp_path):
    still = fl.run({**CONFIG, "baselines": ["finetune"]}, out=tmp_path / "run", **{"client.lr": 0.0})
    same = [m[-1]["clients/accuracy_weighted"] for m in (still.metrics, still.baselines["finetune"].metrics)]
    assert same[0] == same[1]
    finetuned = result.baselines["finetune"].metrics[-1]["clients/accuracy_weighted"]
    assert finetuned != result.metrics[-1]["clients/accuracy_weighted"]


def test_centralised_beats_the_rest_on_skewed_digits(result):
    weighted = {name: other.metrics[-1]["clients/accuracy_weighted"] for name, other in result.baselines.items()}
    assert weighted["centralised"] == max(weighted.values()) > result.metrics[-1]["clients/accuracy_weighted"]


def test_a_longer_run_repeats_its_baselines(tmp_path):
    config = {**CONFIG, "baselines": ["centralised"], "rounds": 2}
    first = fl.run(config, out=tmp_path / "run")
    again = fl.resume(tmp_path / "run")
    assert again.baselines["centralised"].digest == first.baselines["centralised"].digest
    longer = fl.resume(tmp_path / "run", rounds="+2")
    assert len(longer.baselines["centralised"].metrics) == 4


@pytest.mark.slow
def test_a_run_leaves_nothing_in_memory(tmp_path):
    """Baselines, seeds and sweeps perform many runs in one process, each with its own data."""

    def there():
        gc.collect()
        return {id(kept) for kept in gc.get_objects() if type(kept) in (Dataset, Simulation)}

    before = there()
    fl.run({**CONFIG, "baselines": ["local"], "rounds": 2}, out=tmp_path / "run")
    assert there() <= before


def test_stopped_in_a_baseline_and_gone_on_with(tmp_path):
    config = {**CONFIG, "baselines": ["centralised", "majority"], "rounds": 3}
    whole = fl.run(config, out=tmp_path / "whole")
    rounds = iter(range(100))
    stopped = fl.run(config, out=tmp_path / "run", interrupt=lambda: next(rounds) >= 4)
    assert stopped.reason == "all rounds done" and stopped.baselines["centralised"].reason == "interrupted"
    assert "majority" not in stopped.baselines
    resumed = fl.resume(tmp_path / "run")
    assert {n: r.digest for n, r in resumed.baselines.items()} == {n: r.digest for n, r in whole.baselines.items()}


@pytest.mark.parametrize(
    "overrides, said",
    [
        (
            {"baselines": ["best"]},
            r"baselines\[0\]: 'best' is not one of \['centralised', 'centralised_factors', 'finetune', 'local', 'maj",
        ),
        ({"evaluation.clients": "held_out", "splits.clients": 2}, "baselines: they need a run of one task"),
        (
            {"model": {"name": "softmax", "freeze": ["1.bias"]}},
            "baselines: 'finetune' needs a run that trains the whole model",
        ),
        (
            {"task": "regression", "data": "sine", "partition": "natural"},
            "baselines: 'majority' needs a classification task",
        ),
    ],
)
def test_refused_before_any_work(overrides, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        fl.run(CONFIG, out=tmp_path / "run", **overrides)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not read_metrics(tmp_path / "run")
