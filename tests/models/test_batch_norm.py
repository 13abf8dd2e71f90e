"""BatchNorm's statistics are the batch's, each client's or averaged; never another client's by accident."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.errors import ConfigError
from fl.simulation.build import load_data
from fl.storage import checkpoint
from fl.storage.clients import ClientStates
from fl.storage.segments import Segments

USER_FILE = """
from torch import nn
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Normed:
    def build(self, shape, outputs):
        return nn.Sequential(nn.BatchNorm1d(shape[0], affine=False), nn.Linear(shape[0], outputs))
"""
MOMENTUM = 0.1


def dataset(clients=3, rows=8):
    """Return clients' data; client c's features have mean 10 c."""
    generator = np.random.default_rng(0)
    x = (
        generator.normal(size=(clients * rows, 2)).astype(np.float32)
        + 10 * np.repeat(np.arange(clients), rows)[:, None]
    )
    return Dataset({"x": x, "y": np.arange(clients * rows) % 2}, None, np.repeat(np.arange(clients), rows))


def run(tmp_path, policy, name="run", **overrides):
    (tmp_path / "normed.py").write_text(USER_FILE)
    config = {
        "data": dataset(),
        "partition": "natural",
        "splits": {"val": 0.25},
        "model": {"name": f"{tmp_path}/normed.py:Normed", **({"batch_norm": policy} if policy else {})},
        "strategy": "fedavg",
        "cohort": {"fraction": 1.0},
        "rounds": 2,
        "client": {"batch": "full", "lr": 0.01},
        "execution": {"executor": "serial"},
        "evaluation": {"server": False},
    }
    return fl.run(config, out=tmp_path / name, **overrides)


def held(tmp_path, split):
    """Return the rows of each client of the run in a split."""
    _, (period,) = load_data(resolve(read(tmp_path / "run" / "config.yaml") | {"data": dataset()}))
    return [period.partition.view_rows(c, split) for c in range(3)]


def moved(mean, x, rounds):
    """Return the running mean after `rounds` full batches: r <- .9 r + .1 mean(x)."""
    for _ in range(rounds):
        mean = (1 - MOMENTUM) * mean + MOMENTUM * x.mean(0)
    return mean


def test_has_to_be_said(tmp_path):
    with pytest.raises(ConfigError, match="model: has buffers that training changes .* batch, local or averaged"):
        run(tmp_path, None)


def test_averaged_is_the_mean_of_the_clients(tmp_path):
    result = run(tmp_path, "averaged")
    data, tensors = dataset(), load_file(tmp_path / "run" / "model.safetensors")
    # each client trains on 6 of 8 rows; with equal sizes the mean of means is the mean over all training rows
    trained = np.concatenate([data.train["x"][rows] for rows in held(tmp_path, "train")])
    assert len(trained) == 18
    expected = moved(np.zeros(2), trained, 2)
    np.testing.assert_allclose(tensors["0.running_mean"], expected, rtol=1e-5)
    assert set(result.model) == {"0.running_mean", "0.running_var", "1.weight", "1.bias"}
    ledger = result.ledger.to_pydict()
    assert ledger["payload_bytes"][0] == 4 * (2 + 2 + 4 + 2)  # statistics are sent and counted


def test_averaged_statistics_do_not_descend(tmp_path):
    """Weight decay and momentum do not change statistics."""
    plain = run(tmp_path, "averaged")
    decayed = run(
        tmp_path, "averaged", "decayed", **{"client.optimiser": {"name": "sgd", "weight_decay": 5.0, "momentum": 0.9}}
    )
    for name in ("0.running_mean", "0.running_var"):
        assert torch.equal(plain.model[name], decayed.model[name])
    assert not torch.equal(plain.model["1.weight"], decayed.model["1.weight"])


def test_local_stays_with_each_client(tmp_path):
    result = run(tmp_path, "local", cohort={"name": "fixed", "clients": [0, 1]})
    assert set(result.model) == {"1.weight", "1.bias"}
    states = ClientStates(tmp_path / "run" / "clients", 3)
    states.restore(checkpoint.load(tmp_path / "run" / "checkpoints", "last")["clients"])
    segments = Segments(tmp_path / "run" / "clients")
    kept = [segments.read(location) for location in states.locations(np.arange(3))]
    assert kept[2] is None
    for c in (0, 1):
        mean = kept[c]["statistics"]["0.running_mean"]
        # after two steps 1 - .9^2 = .19 of the mean 10 c, and nothing of the other client's
        np.testing.assert_allclose(mean, [1.9 * c, 1.9 * c], atol=0.25)
        assert set(kept[c]["statistics"]) == {"0.running_mean", "0.running_var"}


def test_local_statistics_survive_a_resume(tmp_path):
    """A run that stops after a round keeps the clients' statistics, so its final metrics are the same."""
    rows = dataset().train
    np.savez(tmp_path / "rows.npz", **rows)
    (tmp_path / "rows.py").write_text(
        f"import numpy as np\nfrom fl.data.dataset import Dataset\n"
        f"def load():\n    rows = np.load({str(tmp_path / 'rows.npz')!r})\n"
        f"    return Dataset({{'x': rows['x'], 'y': rows['y']}}, None, np.repeat(np.arange(3), 8))\n"
    )
    data = {"data": {"name": f"{tmp_path}/rows.py:load"}, "rounds": 4}
    whole = run(tmp_path, "local", "whole", **data)
    asked = iter([False, True, True])
    config = read(tmp_path / "whole" / "config.yaml")
    fl.run(config, out=tmp_path / "halved", interrupt=lambda: next(asked))
    resumed = fl.resume(tmp_path / "halved")
    assert resumed.digest == whole.digest
    assert [row["val/loss"] for row in resumed.metrics] == [row["val/loss"] for row in whole.metrics]


def test_batch_looks_at_no_other_client(tmp_path):
    """The evaluation of a client depends on its own rows only."""
    result = run(tmp_path, "batch", **{"client.lr": 0.0, "rounds": 1})
    data = dataset()
    weight, bias = result.model["1.weight"], result.model["1.bias"]
    table = pq.read_table(tmp_path / "run" / "clients.parquet").to_pylist()
    reported = {row["client"]: row["loss"] for row in table if row["split"] == "val"}
    for c, rows in enumerate(held(tmp_path, "val")):
        x, y = torch.from_numpy(data.train["x"][rows]), torch.from_numpy(data.train["y"][rows])
        z = (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-5)
        loss = nn.functional.cross_entropy(z @ weight.T + bias, y)
        assert reported[c] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    "policy, overrides, said",
    [
        (
            "averaged",
            {"strategy": "fedadam"},
            "model.batch_norm: 'averaged' needs a strategy whose model is an average",
        ),
        ("averaged", {"strategy.lr": 2.0}, "model.batch_norm: 'averaged' needs a strategy"),
        ("averaged", {"strategy": "ditto"}, "model.batch_norm: 'averaged' needs a client"),
        (
            "local",
            {"data": "digits", "partition": {"name": "iid", "clients": 3}, "evaluation.server": True},
            "evaluation.server",
        ),
        ("mine", {}, "model.batch_norm: 'mine' is not 'batch', 'local' or 'averaged'"),
    ],
)
def test_refused(tmp_path, policy, overrides, said):
    if overrides.get("data") == "digits":
        (tmp_path / "flat.py").write_text(
            USER_FILE.replace("nn.BatchNorm1d(shape[0]", "nn.Flatten(), nn.BatchNorm1d(64").replace(
                "shape[0], outputs", "64, outputs"
            )
        )
        overrides = {**overrides, "model": {"name": f"{tmp_path}/flat.py:Normed", "batch_norm": policy}}
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, policy, **overrides)


def test_without_batch_norm(tmp_path):
    with pytest.raises(ConfigError, match="batch_norm: 'batch', but the model has no BatchNorm layer"):
        run(tmp_path, "batch", model={"name": "softmax", "batch_norm": "batch"})


@pytest.mark.parametrize("policy", ["batch", "local", "averaged"])
def test_fedbn_without_private_tensors_is_fedavg(tmp_path, policy):
    fedbn = run(tmp_path, policy, "fedbn", strategy={"name": "fedbn", "private": []})
    assert fedbn.digest == run(tmp_path, policy, "fedavg").digest


def test_fedbn_keeps_statistics_too(tmp_path):
    text = USER_FILE.replace(", affine=False", "")
    (tmp_path / "affine.py").write_text(text)
    model = {"name": f"{tmp_path}/affine.py:Normed", "batch_norm": "averaged"}
    result = run(tmp_path, "averaged", strategy="fedbn", model=model)
    groups = result.ledger.to_pydict()
    assert set(groups["payload_bytes"]) == {4 * (4 + 2)}  # only the linear layer is sent


@pytest.mark.slow
@pytest.mark.ray
def test_the_same_bits_on_ray(tmp_path):
    """Statistics per client and augmented images, on two workers."""
    config = {
        "data": {"name": "digits", "normalise": True, "augment": [{"name": "crop", "padding": 1}, "flip"]},
        "partition": {"name": "iid", "clients": 6},
        "model": {"name": "resnet8", "norm": "batch", "width": 4, "batch_norm": "local"},
        "strategy": "fedavg",
        "cohort": {"size": 3},
        "rounds": 3,
        "evaluation": {"server": False},
    }
    serial, ray = (
        fl.run(config, out=tmp_path / name, execution={"executor": name, **more})
        for name, more in (("serial", {}), ("ray", {"workers": 2}))
    )
    assert serial.digest == ray.digest
    assert [row["val/loss"] for row in serial.metrics] == [row["val/loss"] for row in ray.metrics]
