"""Whole runs with task streams, held-out clients, and evaluation after adaptation."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.digits import Digits
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation
from fl.tasks.statistics import forgetting
from partitions.permuted import pixel_orders
from partitions.relabel import relabelling

STREAM = {
    "data": {"name": "digits", "test": 0.3},
    "partition": {"name": "iid", "clients": 4},
    "stream": {"name": "permuted", "tasks": 3, "rounds": 2},
    "splits": {"val": 0.1, "test": 0.2},
    "model": {"name": "mlp", "hidden": [16]},
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"epochs": 2, "batch": 16, "lr": 0.3},
    "execution": {"executor": "serial"},
}


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# -- the accuracy matrix ----------------------------------------------------------------------------------------------
def test_forgetting_by_hand():
    row = forgetting([[0.9], [0.6, 0.8], [0.7, 0.5, 1.0]])
    assert row["acc"] == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert row["fgt"] == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert row["bwt"] == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)


def test_forgetting_is_from_the_best_and_backward_transfer_from_the_first():
    row = forgetting([[0.5], [0.9, 0.8], [0.6, 0.8, 0.1]])  # task 0 had its best accuracy after task 1
    assert row["fgt"] == pytest.approx(((0.9 - 0.6) + 0.0) / 2)
    assert row["bwt"] == pytest.approx(((0.6 - 0.5) + 0.0) / 2)
    assert forgetting([[0.4]]) == {"acc": 0.4}


def test_a_stream_is_evaluated_on_what_was_met(tmp_path):
    result = fl.run(STREAM, out=tmp_path / "run")
    rows = lines(result.directory)
    assert len(rows) == 6
    seen = [sum(f"task{s}/accuracy" in row for s in range(3)) for row in rows]
    assert seen == [1, 1, 2, 2, 3, 3]
    assert ["stream/acc" in row for row in rows] == [False, True] * 3
    ends = [row for row in rows if "stream/acc" in row]
    matrix = [[row[f"task{s}/accuracy"] for s in range(t + 1)] for t, row in enumerate(ends)]
    assert ends[-1]["stream/acc"] == pytest.approx(np.mean(matrix[-1]))
    lost = [max(matrix[t][s] for t in range(s, 2)) - matrix[2][s] for s in range(2)]
    assert ends[-1]["stream/fgt"] == pytest.approx(np.mean(lost))

    # the last row has the metrics of the saved model on pixels permuted by hand
    test, orders = Digits(test=0.3).load().test, pixel_orders(64, 3)
    w = result.model
    for s, order in enumerate(orders):
        x = torch.from_numpy(test["x"].reshape(-1, 64)[:, order])
        out = torch.relu(x @ w["1.weight"].T + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]
        assert (out.argmax(1).numpy() == test["y"]).mean() == pytest.approx(rows[-1][f"task{s}/accuracy"])


def test_a_stream_stopped_between_tasks_goes_on_to_the_same_bits(tmp_path):
    whole = fl.run(STREAM, out=tmp_path / "whole")
    first = fl.run(STREAM, out=tmp_path / "parts", interrupt=lambda: True)
    for _ in range(5):
        first = fl.resume(first.directory, interrupt=lambda: True)
    assert first.digest == whole.digest
    clean = [{k: v for k, v in row.items() if "seconds" not in k} for row in lines(first.directory)]
    assert clean == [{k: v for k, v in row.items() if "seconds" not in k} for row in lines(whole.directory)]


def test_each_task_has_orders_of_its_own():
    orders = pixel_orders(64, 4, seed=3)
    assert (orders[0] == np.arange(64)).all()
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert (pixel_orders(64, 6, seed=3)[:4] == orders).all()


def test_rounds_beside_a_stream_must_agree():
    with pytest.raises(ConfigError, match="rounds: 7 beside a stream of 6"):
        resolve(read(STREAM, {"rounds": 7}))
    assert resolve(read(STREAM, {"rounds": 6})).rounds == resolve(read(STREAM)).rounds == 6
    with pytest.raises(ConfigError, match="stream.tasks: 0 is not at least 1"):
        resolve(read(STREAM, {"stream.tasks": 0}))


# -- concept shift ----------------------------------------------------------------------------------------------------
def test_relabelling_permutes_some_classes_of_each_client():
    names = relabelling(clients=50, labels=10, classes=5, seed=1)
    assert (np.sort(names, 1) == np.arange(10)).all()
    assert ((names != np.arange(10)).sum(1) == 5).all()
    assert len({tuple(row) for row in names}) > 45
    with pytest.raises(ValueError, match="classes: 11"):
        relabelling(3, 10, 11)


def test_a_shift_changes_labels_of_clients_and_not_of_the_server(tmp_path):
    plain = {k: v for k, v in STREAM.items() if k != "stream"}
    with Simulation(resolve(read(plain)), tmp_path / "a") as run:
        before = run.run_setup
    with Simulation(resolve(read(plain, {"shift": {"name": "relabel", "classes": 4}})), tmp_path / "b") as run:
        after = run.run_setup
    names = relabelling(4, 10, 4)
    partition = after.periods[0].partition
    for client in range(4):
        rows = partition.indices[partition.offsets[client] : partition.offsets[client + 1]]
        assert (after.dataset.train["y"][rows] == names[client][before.dataset.train["y"][rows]]).all()
    assert (after.dataset.test["y"] == before.dataset.test["y"]).all()


# -- clients held out, and adapting -----------------------------------------------------------------------------------
ADAPTING = {
    **{k: v for k, v in STREAM.items() if k not in ("stream", "partition")},
    "partition": {"name": "iid", "clients": 6},
    "rounds": 3,
    "splits": {"val": 0.0, "test": 0.5, "clients": 2},
    "cohort": {"fraction": 1.0},
    "evaluation": {
        "clients": "held_out",
        "stage": "adapted",
        "adapt": {"name": "sgd", "steps": 7, "batch": "full", "lr": 0.2},
        "shots": 5,
    },
}


def test_clients_held_out_never_train_and_adapt_to_their_first_samples(tmp_path):
    with Simulation(resolve(read(ADAPTING)), tmp_path / "run") as run:
        result = run.run()
        run_setup = run.run_setup
    assert {row["client"] for row in result.ledger.to_pylist()} == {0, 1, 2, 3}

    # by plain torch: seven full-batch steps on five samples, evaluated on the other half of the client's rows
    partition, arrays = run_setup.periods[0].partition, run_setup.dataset.train
    accuracies = []
    for client in (4, 5):
        support, query = partition.view_rows(client, "train")[:5], partition.view_rows(client, "test")
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        net.load_state_dict(dict(result.model))
        step = torch.optim.SGD(net.parameters(), lr=0.2)
        for _ in range(7):
            step.zero_grad()
            F.cross_entropy(
                net(torch.from_numpy(arrays["x"][support])), torch.from_numpy(arrays["y"][support])
            ).backward()
            step.step()
        predicted = net(torch.from_numpy(arrays["x"][query])).argmax(1).numpy()
        accuracies.append((predicted == arrays["y"][query]).mean())
    assert result.metrics[-1]["clients/accuracy_mean"] == pytest.approx(np.mean(accuracies), abs=1e-9)


def test_adapting_needs_an_algorithm_and_somebody_to_train():
    with pytest.raises(ConfigError, match="evaluation.adapt"):
        resolve(read(ADAPTING, {"evaluation.adapt": None}))
    with pytest.raises(ConfigError, match="splits.clients: 6 of 6 clients are held out"):
        fl.run(ADAPTING, **{"splits.clients": 6})
