"""The majority class, compared with counts by numpy."""

import numpy as np
import pytest

from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation

CONFIG = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 0.3, "min_size": 10},
    "splits": {"val": 0.0, "test": 0.4},
    "model": "softmax",
    "cohort": {"size": 6},
    "strategy": "majority",
    "execution": {"executor": "serial"},
}


def test_each_client_answers_with_its_most_frequent_label(tmp_path):
    with Simulation(resolve(read(CONFIG)), tmp_path / "run") as run:
        row = run.run().metrics[-1]
        partition, y = run.run_setup.periods[0].partition, run.run_setup.dataset.train["y"]
    right = []
    for client in range(6):
        train, test = (y[partition.view_rows(client, view)] for view in ("train", "test"))
        right.append((test == np.bincount(train).argmax()).mean())
    assert row["clients/accuracy_mean"] == pytest.approx(np.mean(right))
    assert row["uplink_bytes"] == row["downlink_bytes"] == 0
