"""Multi-label classification and language modelling: losses by hand, pooled metrics compared with scikit-learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score

import fl
from fl.errors import ConfigError
from fl.method.fold import Fold
from fl.method.reduction import Product
from fl.simulation.evaluation import spread
from fl.tasks.language import LanguageModelling
from fl.tasks.multilabel import Multilabel, average_precision, f1
from fl.tasks.supervised import Classification
from fl.tasks.task import minimised
from fl.tensors.trees import row


def pooled(task, outputs: torch.Tensor, y: torch.Tensor, seed: int) -> tuple[dict, dict]:
    """Deal rows to 5 clients in batches of at most 7, fold two chunks; return (global metrics, metrics per client)."""
    draw = np.random.default_rng(seed)
    metrics = task.metrics()
    owner = np.sort(draw.integers(0, 5, len(y)))
    owner[:5] = range(5)  # each client has at least one row
    order = draw.permutation(len(y))
    fold, each = Fold(Product(metrics), 5), {name: [] for name in metrics}
    for clients in ([0, 1, 2], [3, 4]):
        mine = np.concatenate([order[owner[order] == c] for c in clients])
        accs = {}
        for a in range(0, len(mine), 7):
            rows = torch.from_numpy(mine[a : a + 7])
            segments = torch.from_numpy(owner[mine[a : a + 7]]) - clients[0]
            for name, metric in metrics.items():
                part = metric.measure(outputs[rows], {"y": y[rows]}, segments, len(clients))
                accs[name] = metric.merge(accs[name], part) if name in accs else part
        for name, metric in metrics.items():
            each[name] += metric.each(accs[name], len(clients)).tolist()
        for i, position in enumerate(clients):
            fold.add(0, position, row(accs, i))
    return fold.finish(), each | {"owner": owner}


# -- multilabel -------------------------------------------------------------------------------------------------------
def test_multilabel_loss_on_paper():
    outputs = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])  # p = 1/2, 3/4; 3/4, 1/2
    y = torch.tensor([[1, 1], [0, 0]])
    expected = [(math.log(2) + math.log(4 / 3)) / 2, (math.log(4) + math.log(2)) / 2]
    for labels in (y, y.float()):
        assert Multilabel().loss(outputs, {"y": labels}).tolist() == pytest.approx(expected)


def test_f1_on_paper():
    assert f1(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])).tolist() == pytest.approx(
        [2 / 3, 0]
    )


def test_average_precision_on_paper():
    # 0.9 is right (precision 1, recall 1/2), 0.8 wrong, 0.7 right (2/3): 1/2 + 1/3
    assert average_precision(torch.tensor([0.7, 0.9, 0.8]), torch.tensor([1, 1, 0])) == pytest.approx(5 / 6)
    # ties are one threshold: recall 1 at precision 2/3 in any order
    assert average_precision(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_multilabel_pools_to_scikit_learns(seed):
    draw = np.random.default_rng(seed)
    outputs = torch.from_numpy(draw.normal(size=(40, 4)).round(1).astype(np.float32))  # rounding makes ties
    y = torch.from_numpy((draw.random((40, 4)) < [0.5, 0.2, 0.9, 0.0]).astype(np.int64))  # no sample has label 3
    value, each = pooled(Multilabel(), outputs, y, seed)
    said = outputs.numpy() > 0
    assert value["f1_micro"] == pytest.approx(f1_score(y, said, average="micro"))
    assert value["f1_macro"] == pytest.approx(f1_score(y, said, average="macro", zero_division=0))
    assert value["map"] == pytest.approx(average_precision_score(y[:, :3], outputs[:, :3], average="macro"))
    loss = F.binary_cross_entropy_with_logits(outputs, y.float())
    assert value["loss"] == pytest.approx(float(loss), rel=1e-6)
    for c in range(5):
        mine = each["owner"] == c
        assert each["f1_micro"][c] == pytest.approx(f1_score(y[mine], said[mine], average="micro", zero_division=0))
        known = y[mine].any(0)
        expected = average_precision_score(y[mine][:, known], outputs[mine][:, known]) if known.any() else math.nan
        assert each["map"][c] == pytest.approx(expected, nan_ok=True)


def test_a_metric_of_nothing_is_not_a_number():
    metrics = Multilabel().metrics() | LanguageModelling().metrics()
    for name, metric in metrics.items():
        shape = (0, 3, 4) if name in ("perplexity", "accuracy") else (0, 4)
        y = torch.zeros(0, *shape[1:2], dtype=torch.int64)
        outputs = torch.zeros(shape) if "f1" in name or name == "map" else torch.zeros(0, y.shape[1], 4)
        acc = metric.measure(outputs, {"y": y}, torch.zeros(0, dtype=torch.int64), 2)
        assert np.isnan(metric.each(acc, 2)).all(), name


def test_spread_leaves_out_who_has_no_value():
    assert spread(np.array([1.0, np.nan, 3.0]), np.array([1, 5, 3]))["weighted"] == pytest.approx((1 + 9) / 4)
    assert spread(np.array([1.0, np.nan, 3.0]), np.array([1, 5, 3]))["mean"] == 2


# -- language modelling -----------------------------------------------------------------------------------------------
def test_language_loss_on_paper():
    # at each place p = (1/2, 1/4, 1/4)
    outputs = torch.log(torch.tensor([0.5, 0.25, 0.25])).expand(3, 2, 3)
    y = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    expected = [1.5 * math.log(2), 2 * math.log(2), 0]
    task = LanguageModelling()
    assert task.loss(outputs, {"y": y}).tolist() == pytest.approx(expected)
    metrics, segments = task.metrics(), torch.zeros(3, dtype=torch.int64)
    value = {n: m.finish(row(m.measure(outputs, {"y": y}, segments, 1), 0)) for n, m in metrics.items()}
    mean = (1 + 2 + 2) / 3 * math.log(2)  # the mean over three tokens, not over samples
    assert value == pytest.approx({"loss": mean, "perplexity": 2 ** (5 / 3), "accuracy": 1 / 3})


@pytest.mark.parametrize("seed", range(3))
def test_language_metrics_pool_to_the_whole(seed):
    draw = torch.Generator().manual_seed(seed)
    outputs, y = torch.randn(30, 6, 9, generator=draw), torch.randint(-1, 9, (30, 6), generator=draw)
    value, each = pooled(LanguageModelling(), outputs, y, seed)
    known = y >= 0
    loss = float(F.cross_entropy(outputs[known], y[known]))
    assert value["loss"] == pytest.approx(loss, rel=1e-6) and value["perplexity"] == pytest.approx(
        math.exp(loss), rel=1e-6
    )
    assert value["accuracy"] == pytest.approx(float((outputs.argmax(-1) == y)[known].double().mean()))
    mine = torch.from_numpy(each["owner"] == 2)
    own = F.cross_entropy(outputs[mine].flatten(0, 1), y[mine].flatten(), ignore_index=-1)
    assert each["loss"][2] == pytest.approx(float(own), rel=1e-6)


def test_less_perplexity_is_better():
    assert minimised("val/perplexity") and minimised("val/loss") and not minimised("val/f1_micro")


# -- outputs and labels -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "task, y, outputs",
    [
        (Multilabel(), np.zeros((3, 5)), 5),
        (LanguageModelling(), np.array([[3, -1]]), 4),
        (LanguageModelling(vocabulary=80), np.array([[3, -1]]), 80),
        (Classification(), np.array([2, 0]), 3),
    ],
)
def test_outputs(task, y, outputs):
    assert task.num_outputs({"y": y}) == outputs


@pytest.mark.parametrize(
    "task, y, message",
    [
        (Multilabel(), np.zeros(3), "is not .rows, labels. of 0 and 1"),
        (LanguageModelling(), np.zeros((3, 2)), "is not .rows, positions. of tokens"),
        (LanguageModelling(vocabulary=2), np.array([[3]]), "vocabulary: 2 is less than the 4 tokens"),
        (Classification(), np.zeros((3, 2), int), "not one class per row; use 'language_modelling'"),
    ],
)
def test_labels_that_do_not_fit(task, y, message):
    with pytest.raises(ValueError, match=message):
        task.num_outputs({"y": y})


def test_scores_at_one_place_are_refused():
    with pytest.raises(ValueError, match="not scores at each position; use a model with predicts: all"):
        LanguageModelling().loss(torch.zeros(2, 5), {"y": torch.zeros(2, 3, dtype=torch.int64)})


# -- runs -------------------------------------------------------------------------------------------------------------
USER = """
from dataclasses import dataclass
import numpy as np
from fl.data.dataset import Dataset

@dataclass(frozen=True)
class Counting:
    '''Counts upwards modulo 7, by 6 clients.'''
    def load(self):
        x = (np.arange(60)[:, None] + np.arange(5)) % 7
        return Dataset({"x": x.astype(np.int8), "y": (x + 1) % 7}, clients=np.arange(60) % 6)

@dataclass(frozen=True)
class Signs:
    '''Labels are the signs of three features.'''
    def load(self):
        x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
        train, test = ({"x": part, "y": (part > 0).astype(np.int64)} for part in (x[:80], x[80:]))
        return Dataset(train, test, clients=np.arange(80) % 4)
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "mine.py").write_text(USER)
    return {
        "rounds": 15,
        "strategy": "fedavg",
        "partition": "natural",
        "splits": {"val": 0.2},
        "cohort": {"name": "uniform", "size": 3},
        "execution": {"executor": "serial"},
    }


def test_a_run_with_language_modelling(settings, tmp_path):
    settings |= {
        "data": f"{tmp_path}/mine.py:Counting",
        "model": {"name": "char_gru", "vocabulary": 7, "hidden": 16, "layers": 1, "predicts": "all"},
        "task": "language_modelling",
        "client": {"name": "sgd", "batch": 4, "lr": 2.0, "epochs": 2},
    }
    first, *_, last = fl.run(settings, out=tmp_path / "run").metrics
    assert last["val/accuracy"] > 0.95 > first["val/accuracy"]
    assert last["val/perplexity"] == pytest.approx(math.exp(last["val/loss"]))
    with pytest.raises(ConfigError, match="are not one class per row; use a partition without labels"):
        fl.run(settings | {"partition": {"name": "dirichlet", "clients": 3, "alpha": 1.0}}, out=tmp_path / "b")
    with pytest.raises(ConfigError, match="task: 'y' .* is not one class per row"):
        fl.run(settings | {"task": "classification"}, out=tmp_path / "c")


def test_a_run_with_labels_of_three_signs(settings, tmp_path):
    settings |= {
        "data": f"{tmp_path}/mine.py:Signs",
        "model": "softmax",
        "task": "multilabel",
        "client": {"name": "sgd", "batch": 4, "lr": 1.0},
        "evaluation": {"select": "val/f1_macro"},
    }
    last = fl.run(settings, out=tmp_path / "run").metrics[-1]
    assert last["eval/f1_macro"] > 0.85 and last["eval/map"] > 0.95 and last["val/f1_micro"] > 0.85
