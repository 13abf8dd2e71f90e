"""Evaluation: the spread of a metric over clients, and the best round, chosen by validation rows, not test rows."""

import json

import numpy as np
import pytest

import fl
from fl.simulation.evaluation import spread
from fl.storage import checkpoint
from fl.tasks.statistics import gini
from fl.tasks.task import minimised

ENOUGH = np.full(4, 10)


# -- spread -----------------------------------------------------------------------------------------------------------
def test_spread_by_hand():
    # values 0 .2 .6 .8, sizes 10 10 20 40: mean 1.6/4, weighted 46/80; squared deviations from .4: .16 .04 .04 .16
    # |differences| .2 .6 .8 .4 .6 .2, sum 2.8, each twice: 5.6 / (2 * 16 * .4) = .4375
    row = spread(np.array([0.6, 0.0, 0.8, 0.2]), np.array([20, 10, 40, 10]))
    expected = {"mean": 0.4, "weighted": 0.575, "std": np.sqrt(0.1), "worst10": 0.0, "gini": 0.4375}
    assert row == pytest.approx(expected)


def test_worst10_is_the_mean_of_the_worst_tenth_rounded_up():
    values = np.arange(21) / 100  # the worst ceil(2.1) = 3 are 0, .01, .02, or .2, .19, .18
    assert spread(values, np.full(21, 50))["worst10"] == pytest.approx(0.01)
    assert spread(values, np.full(21, 50), low_is_good=True)["worst10"] == pytest.approx(0.19)


def test_worst10_is_over_clients_with_ten_samples_if_there_are_any():
    # 30 small clients have accuracy 0; the worst ceil(1.1) = 2 of the 11 others are .5 and .51
    values = np.concatenate([np.zeros(30), 0.5 + np.arange(11) / 100])
    sizes = np.concatenate([np.full(30, 9), np.full(11, 10)])
    assert spread(values, sizes)["worst10"] == pytest.approx(0.505)
    assert spread(values, sizes)["mean"] == pytest.approx((11 * 0.5 + 0.55) / 41)  # the mean is over all clients
    assert spread(values[:30] + 0.25, sizes[:30])["worst10"] == pytest.approx(
        0.25
    )  # no client has ten samples, so all count


def test_gini_of_extremes():
    assert gini(np.full(7, 0.3)) == pytest.approx(0.0, abs=1e-15)
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)  # one client has everything: 1 - 1/N
    assert gini(np.zeros(5)) == 0.0  # all values are equal
    assert gini(np.array([0.4])) == 0.0


def test_gini_is_the_formula_over_all_pairs_and_ignores_scale():
    x = np.random.default_rng(0).exponential(size=50)
    pairs = np.abs(x[:, None] - x[None, :]).sum() / (2 * len(x) ** 2 * x.mean())
    assert gini(x) == pytest.approx(pairs) and gini(1000 * x) == pytest.approx(pairs)


def test_negative_values_have_no_gini():
    assert "gini" not in spread(np.array([-0.1, 0.2, 0.3, 0.4]), ENOUGH)


def test_which_metrics_are_minimised():
    assert all(
        map(
            minimised, ("val/loss", "eval/mse", "clients/loss_worst10", "clients/accuracy_gini", "clients/accuracy_std")
        )
    )
    assert not any(map(minimised, ("val/accuracy", "clients/accuracy_worst10", "clients/accuracy_mean")))


# -- selection --------------------------------------------------------------------------------------------------------
CONFIG = {
    "seed": 2,
    "rounds": 12,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.1, "min_size": 5},
    "splits": {"val": 0.2, "test": 0.2},
    "model": "softmax",
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"lr": 1.0},
    "evaluation": {"every": 2},
    "execution": {"executor": "serial"},
}


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_test_set_has_more_blocks_than_there_are_clients(tmp_path):
    """2,500 rows of zeros are three blocks, for two clients. All get one class, which 1,000 or 1,500 of them have."""
    test = {"x": np.zeros((2500, 2), np.float32), "y": np.repeat([0, 1], [1000, 1500])}
    train = {"x": np.zeros((8, 2), np.float32), "y": np.tile([0, 1], 4)}
    config = {
        "rounds": 1,
        "data": {"train": train, "test": test},
        "partition": {"name": "iid", "clients": 2},
        "model": "softmax",
        "cohort": {"size": 2},
        "strategy": "fedavg",
        "client": {"lr": 0.0},
        "execution": {"executor": "serial"},
    }
    (row,) = fl.run(config, out=tmp_path / "run").metrics
    assert row["eval/accuracy"] in (0.4, 0.6)


@pytest.mark.parametrize("every", [1, 4])
def test_the_best_checkpoint_has_the_best_val_accuracy(tmp_path, every):
    fl.run(CONFIG, out=tmp_path, **{"checkpoint.every": every})
    rows = [row for row in rows_of(tmp_path) if "val/accuracy" in row]
    assert [row["round"] for row in rows] == [1, 3, 5, 7, 9, 11]
    best, of_test = (max(rows, key=lambda row: row[metric])["round"] for metric in ("val/accuracy", "eval/accuracy"))
    own = max(rows, key=lambda row: row["clients/accuracy_weighted"])["round"]
    assert best not in (of_test, own, 11)  # if this fails, the test shows nothing; choose another seed
    assert checkpoint.load(tmp_path / "checkpoints" / "best.safetensors")["round"] == best + 1


def test_without_a_val_split_the_train_loss_of_evaluated_rounds_decides(tmp_path):
    fl.run(CONFIG, out=tmp_path, seed=0, **{"splits.val": 0.0})
    rows = [row for row in rows_of(tmp_path) if "eval/accuracy" in row]
    best = min(rows, key=lambda row: row["train/loss"])["round"]
    assert best != max(rows, key=lambda row: row["eval/accuracy"])["round"]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.safetensors")["round"] == best + 1


def test_patience_counts_evaluations_without_a_better_val_accuracy(tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    fl.run(CONFIG, out=whole, rounds=30)
    values = [row["val/accuracy"] for row in rows_of(whole) if "val/accuracy" in row]
    end = next(
        i for i in range(3, 15) if max(values[i - 2 : i + 1]) <= max(values[: i - 2])
    )  # three evaluations in a row are not better
    result = fl.run(CONFIG, out=short, rounds=30, **{"stop.patience": 3})
    assert result.reason == "no better val/accuracy in 3 evaluations"
    assert len(rows_of(short)) == 2 * (end + 1) < 30


def test_a_target_ends_the_run_when_it_is_first_measured(tmp_path):
    whole = [row.get("val/accuracy") for row in rows_of_run(tmp_path / "whole")]
    value = sorted(v for v in whole if v is not None)[2]
    first = next(i for i, v in enumerate(whole) if v is not None and v >= value)
    rows = rows_of_run(tmp_path / "short", **{"stop.target": {"val/accuracy": value}})
    assert len(rows) == first + 1 < 12


def rows_of_run(out, **changes):
    fl.run(CONFIG, out=out, **changes)
    return rows_of(out)
