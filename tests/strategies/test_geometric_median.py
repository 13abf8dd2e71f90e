"""Geometric median: by hand, against scipy's minimisation, its symmetries, and its breakdown point."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import fl
from fl.method.fold import Fold
from fl.method.reduction import Meta
from fl.tensors.params import Params
from strategies.geometric_median import GeometricMedian, GeometricMedianOf
from tests.strategies.test_trimmed_mean import InMemory


def reduced(points, counts=None, block=65536, **arguments):
    """The geometric median of points (n, D), as the server computes it."""
    reduction = GeometricMedianOf(block=block, **arguments)
    fold = Fold(reduction, len(points))
    for k, point in enumerate(points):
        count = 1 if counts is None else counts[k]
        value = Params.of({"w": torch.tensor(point, dtype=torch.float64)})
        fold.add(0, k, reduction.lift(value, Meta(client=k, num_examples=count, spill=InMemory)))
    return fold.finish()["w"].numpy()


def test_two_rounds_by_hand():
    """On a line with equal weights it is the median: of 0, 1, 10 and of -4, -1, 7."""
    rule, state = GeometricMedian(weights="uniform", smoothing=1e-9), Params.of({"w": torch.tensor([5.0])})
    for points, expected in (([[0.0], [1.0], [10.0]], 6.0), ([[-4.0], [-1.0], [7.0]], 5.0)):
        median = torch.tensor(reduced(points, smoothing=1e-9), dtype=torch.float32)
        state, _ = rule.step(state, Params.of({"w": median}), None)
        assert state["w"].item() == pytest.approx(expected, abs=1e-4)


def test_weights_count_as_copies_of_a_client():
    points, counts = np.random.default_rng(0).standard_normal((4, 3)), [3, 1, 2, 1]
    assert reduced(points, counts) == pytest.approx(reduced(np.repeat(points, counts, axis=0)), abs=1e-5)
    assert reduced(points, counts, weights="uniform") == pytest.approx(reduced(points), abs=1e-12)


@pytest.mark.parametrize(("n", "dimension", "seed"), [(3, 2, 0), (5, 3, 1), (9, 4, 2), (20, 8, 3)])
def test_it_minimises_the_weighted_sum_of_distances(n, dimension, seed):
    random = np.random.default_rng(seed)
    points, counts = random.standard_normal((n, dimension)) + 5, random.integers(1, 9, n)

    def total(m):
        return counts @ np.linalg.norm(points - m, axis=1)

    best = minimize(total, points.mean(0), method="BFGS", options={"gtol": 1e-9})
    found = reduced(points, counts, smoothing=1e-9)
    assert total(found) <= best.fun * (1 + 1e-9)
    assert found == pytest.approx(best.x, abs=1e-4)


def test_it_moves_and_turns_with_the_points():
    random = np.random.default_rng(4)
    points, turn = random.standard_normal((7, 5)), np.linalg.qr(random.standard_normal((5, 5)))[0]
    assert reduced(points @ turn + 3) == pytest.approx(reduced(points) @ turn + 3, abs=1e-5)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_of_coordinates_change_nothing(block):
    points = np.random.default_rng(5).standard_normal((6, 100))
    assert reduced(points, block=block) == pytest.approx(reduced(points), abs=1e-9)


@pytest.mark.parametrize("far", [10.0, 1e6, 1e30])
def test_less_than_half_of_the_clients_cannot_move_it_far(far):
    """Wherever the f attackers are, it stays within 2 (n - f) / (n - 2 f) honest radii (Lopuhaa, Rousseeuw 1991)."""
    honest = np.random.default_rng(6).standard_normal((6, 10))
    attackers = np.full((5, 10), far)
    radius = np.linalg.norm(honest, axis=1).max()
    assert np.linalg.norm(reduced(np.concatenate([honest, attackers]))) <= 2 * 6 / (11 - 10) * radius
    assert np.linalg.norm(np.concatenate([honest, attackers]).mean(0)) > far


def test_a_large_smoothing_is_the_mean_and_without_weights_all_count_the_same():
    points = np.random.default_rng(7).standard_normal((5, 3))
    assert reduced(points, smoothing=1e9) == pytest.approx(points.mean(0), abs=1e-12)
    assert reduced(points, [0] * 5) == pytest.approx(reduced(points), abs=1e-12)
    same = reduced(np.ones((3, 2)))
    assert same == pytest.approx([1, 1])


def test_attackers_do_not_stop_it_from_learning(tmp_path):
    config = {
        "rounds": 8,
        "data": "digits",
        "partition": {"name": "iid", "clients": 10},
        "model": "softmax",
        "cohort": {"size": 10},
        "client": {"lr": 0.3},
        "adversary": {"name": "sign_flip", "share": 0.3, "scale": 10.0},
        "execution": {"executor": "serial", "plan": "flat"},
    }
    names = ("geometric_median", "fedavg")
    accuracy = {n: fl.run(config, out=tmp_path / n, strategy=n).metrics[-1]["eval/accuracy"] for n in names}
    assert accuracy["geometric_median"] > 0.7 > accuracy["fedavg"] + 0.2
