"""BatchNorm needs two rows in a batch: last batches of one row are merged, and the rest is refused before round 0."""

import sys

import numpy as np
import pytest
import torch

import fl
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.errors import ConfigError

USER_FILE = """
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(shape[0], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))
    def forward(self, x):
        if self.training:
            SIZES.append(len(x))
        return self.body(x)

class Functional(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.l = nn.Linear(shape[0], outputs)
    def forward(self, x):
        return self.l(F.batch_norm(x, None, None, training=True))

class Channel(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.norm, self.l = nn.BatchNorm1d(1), nn.Linear(shape[0], outputs)
    def forward(self, x):
        return self.l(self.norm(x[:, None])[:, 0])

SIZES = []
"""


def run(tmp_path, sizes, model="Net", batch_norm="averaged", test=0, out="run", **more):
    (tmp_path / "bn.py").write_text(USER_FILE)
    rows, draw = int(np.sum(sizes)), np.random.default_rng(0)

    def samples(n):
        return {"x": draw.normal(size=(n, 6)).astype(np.float32), "y": np.arange(n) % 2}

    config = {
        "data": Dataset(samples(rows), samples(test) if test else None, np.repeat(np.arange(len(sizes)), sizes)),
        "partition": "natural",
        "splits": {"val": 0},
        "model": {"name": f"{tmp_path}/bn.py:{model}"} | ({"batch_norm": batch_norm} if batch_norm else {}),
        "rounds": 1,
        "cohort": {"size": len(sizes)},
        "strategy": "fedavg",
        "client": {"batch": 8, "lr": 0.1},
        "execution": {"executor": "serial"},
        "evaluation": {"server": bool(test)},
    }
    return fl.run(config, out=tmp_path / out, **more)


def resolved(tmp_path):
    return read(tmp_path / "run" / "config.yaml")


@pytest.mark.parametrize("batch_norm", ["averaged", "local", "batch"])
def test_a_last_batch_of_one_row_joins_the_batch_before_it(tmp_path, batch_norm):
    run(tmp_path, [9, 17, 10], batch_norm=batch_norm)
    assert resolved(tmp_path)["client"]["last_batch"] == "merge_one"


def test_the_model_sees_these_batches(tmp_path):
    """Rows 9, 17 and 10 in batches of 8: 9; 8 and 9; 8 and 2."""
    run(tmp_path, [9, 17, 10])
    (module,) = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(tmp_path / "bn.py")]
    assert sorted(module.SIZES[-5:]) == [2, 8, 8, 9, 9]  # before round 0 the model is tried on other batches
    assert 1 not in module.SIZES[module.SIZES.index(9) :]


def test_merge_one_is_the_default_only_where_one_row_cannot_be_normalised(tmp_path):
    run(tmp_path, [9, 9], model="Channel")  # six values of one channel in one row
    assert resolved(tmp_path)["client"]["last_batch"] is None


@pytest.mark.parametrize("rule", ["merge_one", "merge", "drop"])
def test_other_rules_work_too(tmp_path, rule):
    run(tmp_path, [9, 17], **{"client.last_batch": rule})
    assert resolved(tmp_path)["client"]["last_batch"] == rule


OUT = "which the model cannot normalise"


@pytest.mark.parametrize(
    "sizes, changes, message",
    [
        ([9, 1, 8, 1], {}, rf"partition: 2 clients \(the first: client 1, with 1 training row\) .* {OUT}.*min_size"),
        ([9, 1], {"client.batch": "full"}, r"partition: 1 client \(the first: client 1"),
        ([9, 1], {"client.last_batch": "drop"}, r"partition: 1 client \(the first: client 1"),
        ([8, 9], {"client.batch": 1}, rf"client.batch: 2 clients \(the first: client 0, with 8 .* {OUT}.*GroupNorm"),
        ([8, 9], {"client.last_batch": "keep"}, r"last_batch: 1 client \(the first: client 1, with 9 training .*merge"),
    ],
)
def test_refused_before_round_0(tmp_path, sizes, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, sizes, **changes)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_functional_batch_norm_is_found_too(tmp_path):
    with pytest.raises(ConfigError, match="partition: 1 client"):
        run(tmp_path, [9, 1], model="Functional", batch_norm=None)


def test_clients_that_are_held_out_do_not_train(tmp_path):
    run(tmp_path, [9, 9, 1], **{"splits.clients": 1, "cohort.size": 2})


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_on_one_row_of_a_client(tmp_path, split):
    """Of 10 and 20 rows, .1 are 1 and 2."""
    changes = {f"splits.{split}": 0.1}
    with pytest.raises(
        ConfigError, match=rf"splits.{split}: 1 client .the first: client 0, with 1 {split} row. .* {OUT}"
    ):
        run(tmp_path, [10, 20], batch_norm="batch", **changes)
    run(tmp_path, [10, 20], batch_norm="averaged", out="averaged", **changes)
    if split == "test":
        run(tmp_path, [10, 20], batch_norm="batch", out="none", **changes, **{"evaluation.clients": 0})


@pytest.mark.parametrize("rows", [1, 1025])
def test_evaluation_on_the_server(tmp_path, rows):
    with pytest.raises(ConfigError, match=rf"evaluation.server: the server's test set of {rows} rows .* {OUT}"):
        run(tmp_path, [9, 9], batch_norm="batch", test=rows)
    run(tmp_path, [9, 9], batch_norm="batch", test=rows + 1, out="more")


def test_the_choice_is_part_of_the_resolved_configuration(tmp_path):
    first = run(tmp_path, [9, 17])
    again = run(tmp_path, [9, 17], out="again", **{"client.last_batch": "merge_one"})
    for name, tensor in first.model.items():
        assert torch.equal(tensor, again.model[name])


@pytest.mark.parametrize("stage", ["adapted", "trained"])
def test_clients_that_train_before_they_are_evaluated(tmp_path, stage):
    """Held-out clients with one training row and one test row; and one shot."""
    held = {"splits.clients": 1, "splits.test": 0.5, "evaluation.clients": "held_out", "cohort.size": 2}
    settings = {"evaluation.stage": stage}
    if stage == "adapted":
        settings["evaluation.adapt"] = {"name": "sgd", "lr": 0.1}
    who = r"evaluation: 1 client \(the first: client 2, with 1 training row\) would train on a batch of one row before"
    with pytest.raises(ConfigError, match=who):
        run(tmp_path, [9, 9, 2], **held, **settings)
    run(tmp_path, [9, 9, 5], out="more", **held, **settings)
    if stage == "adapted":
        with pytest.raises(ConfigError, match="Set evaluation.shots to 2 or more"):
            run(tmp_path, [9, 9, 5], out="shots", **held, **settings, **{"evaluation.shots": 1})
        run(tmp_path, [9, 9, 5], out="shots2", **held, **settings, **{"evaluation.shots": 2})


def test_fedala_learns_its_weights_on_a_share(tmp_path):
    """Of two rows, the share .8 is one row."""
    ala = {"strategy": "fedala", "batch_norm": "local", "rounds": 2}
    with pytest.raises(ConfigError, match=r"\(the first: client 1, with 2 training rows\) .*partition.min_size"):
        run(tmp_path, [9, 2], **ala)
    run(tmp_path, [9, 2], out="whole", **ala, **{"client.sample": 1.0})
    run(tmp_path, [9, 9], out="rest", **ala, **{"client.batch": 6})  # 7 rows: batches of 6 and 1


def test_dropout_before_normalisation(tmp_path):
    layers = "nn.Dropout(.1), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs)"
    (tmp_path / "more.py").write_text(f"from torch import nn\ndef net(outputs): return nn.Sequential({layers})")
    run(tmp_path, [9, 17], **{"model.name": f"{tmp_path}/more.py:net"})
    assert resolved(tmp_path)["client"]["last_batch"] == "merge_one"
