"""FedOnce and GAL: closed forms of their bytes, their invariants, and small cases on paper."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from numpy.testing import assert_allclose

import fl
from clients.fedonce import assigned
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from strategies.gal import line_search, simplex_projection, simplex_weights
from tests.watching import AfterRound

ROWS, TEST = 70, 21
FEW = {"hidden": [5], "epochs": 2, "batch": 16}


def settings(name: str, **more) -> dict:
    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)[:ROWS]
    strategy = {"fedonce": {"hidden": [5], "top": [6], "batch": 16, "lr": 0.03}, "gal": FEW | {"lr": 0.01}}[name]
    return {
        "rounds": 3,
        "data": (x, y[:ROWS]),
        "partition": {"name": "vertical", "columns": [[0, 1, 2, 3], list(range(4, 20)), list(range(20, 30))]},
        "splits": {"val": 0.0, "test": 0.3},
        "model": "softmax",
        "cohort": {"fraction": 1.0},
        "strategy": {"name": name, **strategy},
        "client": {"name": name, **FEW, "lr": 0.01},
        "execution": {"executor": "serial"},
    } | more


# -- FedOnce ----------------------------------------------------------------------------------------------------------
def test_targets_are_assigned_to_the_least_sum_of_distances():
    generator = torch.Generator().manual_seed(0)
    z, targets = torch.randn((5, 3), generator=generator), torch.randn((5, 3), generator=generator)
    cost = {order: float((z - targets[list(order)]).square().sum()) for order in permutations(range(5))}
    assert tuple(assigned(z, targets).tolist()) == min(cost, key=lambda order: cost[order])


@pytest.mark.parametrize("width", [3, 5])
def test_fedonce_communicates_once(width, tmp_path):
    """(P - 1) n width b bytes up before round 0 and none later; unit vectors; the passive models stay as they are."""
    config = settings("fedonce")
    config["strategy"] |= {"width": width}
    kept = []
    with Simulation(resolve(read(config)), tmp_path / "run") as simulation:

        def keep(_):
            states = Segments(simulation.directory / "clients")
            kept.append([states.read(place) for place in simulation.states.locations(np.arange(2))])

        result = simulation.run([AfterRound(keep)])
        collected = simulation.state.collected
    sent = [(r["round"], r["direction"], r["encoded_bytes"]) for r in result.ledger.to_pylist()]
    assert sent == [(-1, "up", (ROWS - TEST) * width * 4)] * 2
    assert all(row["eval/inference_bytes"] == 2 * TEST * width * 4 for row in result.metrics[1:])  # row 0: setup
    for z in collected:
        assert_allclose(z.norm(dim=1), 1, atol=1e-6)
    for name, first in kept[0][0].items():
        assert torch.equal(first, kept[-1][0][name])
    assert result.metrics[-1]["train/loss"] < result.metrics[1]["train/loss"]
    assert result.metrics[-1]["eval/accuracy"] > 0.8


# -- GAL --------------------------------------------------------------------------------------------------------------
def test_the_nearest_point_of_the_simplex():
    found = simplex_projection(np.array([0.5, 0.5, 0.5]))
    assert_allclose(found, 1 / 3)
    assert simplex_projection(np.array([5.0, 0.0])).tolist() == [1.0, 0.0]


def test_weights_are_those_of_an_exhaustive_search():
    generator = torch.Generator().manual_seed(1)
    fits = [torch.randn((40, 2), generator=generator) for _ in range(3)]
    residual = 0.7 * fits[0] + 0.2 * fits[2] - 0.4 * fits[1] + 0.1 * torch.randn((40, 2), generator=generator)
    w = simplex_weights(residual, fits)
    grid = np.linspace(0, 1, 201)
    points = np.array([(a, b, 1 - a - b) for a in grid for b in grid if a + b <= 1])
    flat, target = np.stack([fit.numpy().ravel() for fit in fits]), residual.numpy().ravel()
    errors = ((points @ flat - target) ** 2).sum(1)
    assert_allclose(w, points[errors.argmin()], atol=0.006)
    assert ((w @ flat - target) ** 2).sum() <= errors.min() + 1e-9


def test_a_step_that_does_not_help_has_length_0():
    assert line_search(lambda eta: 1 + eta**2) == 0.0
    assert line_search(lambda eta: (eta - 100.0) ** 2) == pytest.approx(100.0)


def test_gal_never_raises_the_training_loss_and_counts_each_byte(tmp_path):
    """(P - 1) n K b bytes each way. The first residual is onehot(y) minus the class frequencies."""
    config = settings("gal")
    with Simulation(resolve(read(config)), tmp_path / "run") as simulation:
        y = simulation.run_setup.server_context(0, np.arange(2)).server["y"]
        result, last = simulation.run(), simulation.state
    frequency = torch.bincount(y).double() / len(y)
    losses = [float(-(frequency * frequency.log()).sum())] + [row["train/loss"] for row in result.metrics]
    assert all(after <= before for before, after in zip(losses, losses[1:])) and losses[-1] < 0.5 * losses[0]
    for row in result.metrics:
        assert row["uplink_bytes"] == row["downlink_bytes"] == 2 * (ROWS - TEST) * 2 * 4
        assert sum(row[f"weight{p}"] for p in range(3)) == pytest.approx(1)
    found = torch.nn.functional.cross_entropy(last.outputs, y)
    assert float(found) == pytest.approx(losses[-1], abs=1e-9)


def test_gal_with_one_output_is_boosting_of_squared_error(tmp_path):
    """For the loss 1/2 (y - F)^2 the first residual is y - mean(y); without training steps nothing moves."""
    config = settings("gal", task="regression", rounds=1)
    x, y = config["data"]
    config["data"] = (x, 3.0 * y.astype(np.float32))
    config["strategy"] |= {"lr": 0.0, "hidden": []}
    result = fl.run(config, out=tmp_path / "run")
    assert result.model["base"].shape == (1,)
    assert result.metrics[0]["train/loss"] > 0


@pytest.mark.parametrize("name", ["fedonce", "gal"])
def test_a_resumed_run_gives_the_same_bits(name, tmp_path):
    config = settings(name)
    data: Path = tmp_path / "data.npz"
    np.savez(data, **dict(zip("xy", config["data"])))
    config["data"] = str(data)
    straight = fl.run(config, out=tmp_path / "straight")
    fl.run(config, out=tmp_path / "cut", interrupt=lambda: True)
    resumed = fl.resume(tmp_path / "cut")
    assert resumed.digest == straight.digest
    assert resumed.metrics[-1]["eval/loss"] == straight.metrics[-1]["eval/loss"]
