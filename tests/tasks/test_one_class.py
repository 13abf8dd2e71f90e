"""The task of one-class clients: scores from outputs, and an AUROC for each client that is never pooled."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import fl
from fl import ConfigError
from fl.tasks.one_class import AUROC, OneClass
from fl.tasks.task import pooled


def test_loss_and_score_of_features_by_hand():
    outputs, task = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), OneClass(features=2)
    assert task.loss(outputs, {}).tolist() == [2.5, 8.0]
    assert task.num_outputs({"y": np.zeros(3)}) == 2
    assert not pooled(task.metrics()).parts


def test_auroc_is_scikit_learns_for_each_client():
    draw = np.random.default_rng(1)
    segments, y = np.repeat([0, 1, 2], [30, 20, 5]), draw.integers(0, 2, 55)
    y[50:] = 1  # the last client has samples of its own class only
    scores, metric = draw.normal(size=55), AUROC()
    blocks = [
        metric.measure(
            torch.from_numpy(scores[a:b]), {"y": torch.from_numpy(y[a:b])}, torch.from_numpy(segments[a:b]), 3
        )
        for a, b in ((0, 17), (17, 55))
    ]
    found = metric.each(metric.merge(*blocks), 3)
    expected = [roc_auc_score(y[segments == k], scores[segments == k]) for k in (0, 1)]
    assert found[:2] == pytest.approx(expected) and np.isnan(found[2])


def test_scores_of_features_are_their_distances_from_0():
    """One sample of the own class is nearer to 0 than two of the others and farther than one: 2/3."""
    outputs = torch.tensor([[2.0, 0.0], [1.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    accs = AUROC().measure(outputs, {"y": torch.tensor([1, 0, 0, 0])}, torch.zeros(4, dtype=torch.int64), 1)
    assert AUROC().each(accs, 1)[0] == pytest.approx(2 / 3)


def test_classes_instead_of_own_and_other_are_refused_before_round_0(tmp_path):
    config = {
        "rounds": 1,
        "data": "digits",
        "partition": {"name": "iid", "clients": 4},
        "model": "softmax",
        "task": {"name": "one_class", "features": 4},
        "cohort": {"size": 2},
        "strategy": "fedavg",
        "execution": {"executor": "serial"},
    }
    with pytest.raises(ConfigError, match="shift: missing: .* and the data have class 2; set shift: own_or_other"):
        fl.run(config, out=tmp_path / "run")
    fl.run({**config, "shift": "own_or_other"}, out=tmp_path / "with")


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="features: 1"):
        OneClass(features=1)
    with pytest.raises(ValueError, match=r"train y has 0\.5 .*classes are whole numbers"):
        OneClass().checked({"x": np.zeros((1, 2)), "y": np.array([0.5])}, "train")
