"""Several tasks at once: losses and metrics on paper, labels by name, heads of the model, refusals before round 0."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.fedproto import FedProto
from clients.majority import Majority
from fl.data.dataset import Dataset, Loader
from fl.data.sets.tasks import Target, Tasks
from fl.errors import ConfigError
from fl.models.architectures.linear import MLP
from fl.models.architectures.multihead import MultiHead
from fl.report.compare import table
from fl.report.variants import Variant
from fl.tasks.multitask import Multitask
from fl.tasks.task import minimised

CLASSES = {"digit": 4, "parity": 2}
TARGETS = {"digit": {"kind": "label"}, "parity": {"kind": "parity"}}
CONFIG = {
    "rounds": 2,
    "data": {
        "name": "tasks",
        "of": {"name": "noise", "shape": [6], "classes": 4, "clients": 6, "samples": 20},
        "targets": TARGETS,
    },
    "task": {"name": "multitask", "classes": CLASSES},
    "model": {"name": "multihead", "encoder": {"name": "mlp", "hidden": [5]}, "features": 4},
    "partition": "natural",
    "splits": {"val": 0.2, "test": 0.2},
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"batch": 8, "lr": 0.1},
    "execution": {"executor": "serial"},
}


# -- the task ---------------------------------------------------------------------------------------------------------
def test_losses_and_accuracies_on_paper():
    """Rows: task a is uniform over three classes; task b has p = (1/4, 3/4), then (3/4, 1/4)."""
    task = Multitask(classes={"a": 3, "b": 2})
    outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0, math.log(3)], [0.0, 0.0, 0.0, math.log(3), 0.0]])
    batch = {"y_a": torch.tensor([2, 0]), "y_b": torch.tensor([1, 1])}
    a, b = [math.log(3)] * 2, [math.log(4 / 3), math.log(4)]
    assert task.loss(outputs, batch).tolist() == pytest.approx([x + y for x, y in zip(a, b)])
    assert task.loss_of(("b",), outputs, batch).tolist() == pytest.approx(b)
    found = {}
    for name, metric in task.metrics().items():
        acc = metric.measure(outputs, batch, torch.tensor([0, 0]), 1)
        found[name] = float(metric.each(acc, 1)[0])
    assert found == pytest.approx({"loss": math.log(3) + math.log(16 / 3) / 2, "loss/a": math.log(3),
                                   "loss/b": math.log(16 / 3) / 2, "accuracy/a": 0.5, "accuracy/b": 0.5})  # fmt: skip
    assert all(minimised(f"val/{name}") == name.startswith("loss") for name in found)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"y_a": [0, 1]}, "train has no 'y_b'; it has labels of the tasks \\['a'\\]"),
        ({"y_a": [0, 1], "y_b": [0, 3]}, r"train y_b has 3 in row 1 .*task.classes says that b has 2"),
        ({"y_a": [0, 1], "y_b": [0.5, 1]}, "train y_b .*0.5 in row 0"),
        ({"y_a": [[0], [1]], "y_b": [0, 1]}, "y_a .* is not one class per row"),
    ],
)
def test_labels_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        Multitask(classes={"a": 3, "b": 2}).checked({n: np.array(y) for n, y in arrays.items()}, "train")


@pytest.mark.parametrize(
    "classes, message", [({}, "classes: there is no task"), ({"a": 1}, "not at least 2"), ({"a.b": 2}, "'a.b' is not")]
)
def test_wrong_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        Multitask(classes=classes)


def test_methods_that_need_classes_refuse_several_tasks():
    for client in (Majority(), FedProto(predict="head")):
        with pytest.raises(ValueError, match=f"client {type(client).__name__} needs a class for each sample"):
            client.check_task(Multitask(classes=CLASSES))


# -- the data ---------------------------------------------------------------------------------------------------------
class Rows(Loader):
    """Images (6, 1, 3, 2) of two kinds, labels 0 to 5."""

    def load(self) -> Dataset:
        x = np.zeros((6, 1, 3, 2), np.float32)
        x[:3, 0, 0] = 1.0
        x[3:, 0, 2] = 1.0
        x[:, 0, 1] = np.arange(6)[:, None]  # the middle line belongs to no half
        return Dataset({"x": x, "y": np.arange(6)}, {"x": x[1:3], "y": np.arange(1, 3)})


def test_targets_by_name():
    targets = {
        "y": Target(kind="label"),
        "odd": Target(kind="parity"),
        "high": Target(kind="at_least", value=2),
        "top": Target(kind="top_bottom"),
        "dice": Target(kind="random", classes=3),
    }
    data = Tasks(of=Rows(), targets=targets).load()
    assert data.train["y_y"].tolist() == data.train["y"].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.train["y_odd"].tolist() == [0, 1, 0, 1, 0, 1] and data.test["y_odd"].tolist() == [1, 0]
    assert data.train["y_high"].tolist() == [0, 0, 1, 1, 1, 1]
    assert data.train["y_top"].tolist() == [1, 1, 1, 0, 0, 0]


def test_no_target_is_refused():
    with pytest.raises(ValueError, match="targets: there are none"):
        Tasks(of=Rows(), targets={})


def test_random_labels_are_balanced_and_independent():
    def dice(name: str, seed: int = 0, where: str = "train") -> np.ndarray:
        rows = {"x": np.zeros((6000, 1)), "y": np.zeros(6000, np.int64)}
        return Target(kind="random", classes=3, seed=seed).of(rows, where, name)

    one = dice("a")
    assert np.bincount(one, minlength=3) == pytest.approx([2000] * 3, abs=200)
    assert np.array_equal(one, dice("a"))
    for other in (dice("b"), dice("a", 1), dice("a", where="test")):
        assert (one == other).mean() == pytest.approx(1 / 3, abs=0.03)


# -- the model --------------------------------------------------------------------------------------------------------
def test_heads_are_linear_in_one_encoder():
    net = MultiHead(encoder=MLP(hidden=(5,)), features=4, heads=CLASSES).build((6,), 6)
    assert [name for name, _ in net.named_parameters()] == [
        f"{layer}.{part}"
        for layer in ("encoder.1", "encoder.3", "heads.digit", "heads.parity")
        for part in ("weight", "bias")
    ]
    x = torch.randn(3, 6)
    features = net.encoder(x).relu()
    expected = torch.cat([nn.functional.linear(features, h.weight, h.bias) for h in net.heads.values()], 1)
    torch.testing.assert_close(net(x), expected)
    with pytest.raises(ValueError, match="have 6 outputs, and the task has 7"):
        MultiHead(heads=CLASSES).build((6,), 7)


# -- runs -------------------------------------------------------------------------------------------------------------
def test_other_methods_run_and_tables_have_the_metrics_of_each_task(tmp_path):
    for name in ("fedavg", "scaffold"):
        fl.run(CONFIG, out=tmp_path / name, strategy=name)
    (row, _) = table([Variant.read(n, [tmp_path / n]) for n in ("fedavg", "scaffold")], ["val/accuracy/parity"])
    assert row["val/accuracy/parity"] is not None


def test_plans_agree(tmp_path):
    loop, vmap = (fl.run(CONFIG, out=tmp_path / plan, **{"execution.plan": plan}) for plan in ("loop", "vmap"))
    for name, tensor in loop.model.items():
        torch.testing.assert_close(tensor, vmap.model[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strategy": "fedrod"}, "task: client FedROD needs a class for each sample, and Multitask is no"),
        ({"labels": {"name": "budget", "share": 0.5}}, "labels: hides the labels y, .* learns the labels y_NAME"),
        ({"shift": {"name": "relabel", "classes": 2}}, "shift: changes the labels y"),
        ({"stream": {"name": "classes", "tasks": 2, "rounds": 1}}, "stream.head: .*use head: joint"),
        ({"model.heads": {"parity": 2, "digit": 4}}, "model.heads: .* are not those of the task"),
        ({"data": CONFIG["data"]["of"]}, r"data: train has no 'y_digit'; .*data: tasks makes them"),
    ],
)
def test_wrong_combinations_are_refused_before_round_0(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "run", **change)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
