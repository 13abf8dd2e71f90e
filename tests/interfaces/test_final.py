"""Work after the last round: its metrics, an evaluation of its result and its bytes are a row of their own."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import fl
from fl import Strategy
from fl.report.client_metrics import clients
from fl.report.compare import table
from fl.report.variants import Variant
from fl.storage import checkpoint
from fl.storage.run import read_metrics
from tests.interfaces.laws import check_on_ray, facts

CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 5, "alpha": 0.5, "min_size": 8},
    "splits": {"val": 0.2, "test": 0.2},
    "model": "softmax",
    "cohort": {"size": 3},
    "strategy": f"{__file__}:Realigned",
    "client": {"steps": 5, "batch": 16},
    "evaluation": {"server": False},
    "execution": {"executor": "serial"},
}


# -- the toy ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Realigned(Strategy):
    """FedAvg; after the last round all classes get weights of the same norm."""

    def step(self, state, mean, ctx):
        return state + mean, {}

    def final(self, state, ctx):
        yield from ()
        (weights,) = (name for name in state if state[name].ndim == 2)
        norms = state[weights].norm(dim=1)
        model = state.replace({weights: state[weights] / norms[:, None] * norms.mean()})
        return model, {"norm": norms.mean()}


# -- laws -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("serial") / "run")


def test_the_rows_of_the_rounds_and_the_row_of_the_final_work(serial, tmp_path):
    fedavg = fl.run(CONFIG | {"strategy": "fedavg"}, out=tmp_path / "run")
    *rounds, final = (dict(row) for row in serial.metrics)
    for row in (*rounds, *fedavg.metrics):
        row.update(wall_seconds=0, busy_seconds=0)
    assert rounds == fedavg.metrics  # the final work changes no number of a round
    assert (final["round"], final["stage"], final["uplink_bytes"], final["downlink_bytes"]) == (3, "final", 0, 0)
    (weights,) = (name for name in fedavg.model if fedavg.model[name].ndim == 2)
    norms = fedavg.model[weights].double().norm(dim=1)
    assert final["norm"] == pytest.approx(norms.mean().item())
    assert torch.allclose(serial.model[weights].double().norm(dim=1), norms.mean(), rtol=1e-5)


def test_the_row_evaluates_the_model_that_is_saved(tmp_path):
    """`eval/loss` is the saved model's cross-entropy on the test set, computed with torch."""
    config = CONFIG | {"evaluation": {"server": True}, "splits": {"val": 0, "test": 0}}
    result = fl.run(config, out=tmp_path / "run")
    saved = load_file(tmp_path / "run/model.safetensors")
    from fl.config.config import resolve
    from fl.simulation.build import set_up_run

    test = set_up_run(resolve(config)).server_rows.test
    (weight, bias) = (next(t for t in saved.values() if t.ndim == n) for n in (2, 1))
    logits = test["x"].flatten(1) @ weight.T + bias
    assert result.metrics[-1]["eval/loss"] == pytest.approx(F.cross_entropy(logits, test["y"]).item(), rel=1e-5)


def test_resumed_and_longer_runs(serial, tmp_path):
    assert facts(fl.resume(serial.directory)) == facts(serial)  # the final work is done again
    fl.run(CONFIG | {"rounds": 2}, out=tmp_path / "run")
    assert facts(fl.resume(tmp_path / "run", rounds="+1")) == facts(serial)  # without the final work after round 2
    kept = checkpoint.load(tmp_path / "run/checkpoints/final.safetensors")
    assert kept["round"] == 3 and torch.equal(kept["state"].compact(), serial.model.compact())
    fl.run(CONFIG, out=tmp_path / "interrupted", interrupt=lambda: True)
    assert all("stage" not in row for row in read_metrics(tmp_path / "interrupted"))


@pytest.mark.ray
def test_ray_has_the_same_bits(serial, tmp_path):
    check_on_ray(CONFIG, serial, tmp_path)


def test_no_work_has_no_row(tmp_path):
    """With edge_rounds 1 the cloud has averaged in each round, so nothing is left to do."""
    strategy = {"name": "hierarchical", "edges": 2, "edge_rounds": 1}
    result = fl.run(CONFIG | {"strategy": strategy}, out=tmp_path / "run", rounds=1)
    assert [row["round"] for row in result.metrics] == [0]


# -- readers ----------------------------------------------------------------------------------------------------------
def test_reports(serial):
    variant = Variant.read("run", [serial.directory])
    last, final = serial.metrics[-2:]
    assert variant.values("val/loss") == [final["val/loss"]] and variant.values("val/loss@3") == [last["val/loss"]]
    assert variant.values("val/loss@last3") == pytest.approx(np.mean([r["val/loss"] for r in serial.metrics[:3]]))
    assert table([variant], ["val/loss"])[0]["rounds"] == 3
    test = clients(serial.directory)
    assert test["loss"].mean() == pytest.approx(final["clients/loss_mean"])
