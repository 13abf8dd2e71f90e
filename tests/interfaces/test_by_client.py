"""Architectures by client: each client trains and predicts with its own model, as if all clients had it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.models.architectures.by_client import ByClient
from fl.simulation.build import set_up_run
from fl.simulation.headline import headline
from fl.tasks.supervised import Classification
from tests.flower.test_deploy import same_run
from tests.interfaces.distil import Distilled

ROOT = Path(fl.__file__).parent.parent
DISTIL = f"{ROOT}/tests/interfaces/distil.py:Distil"
SMALL, DEEP = {"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [32, 16], "dropout": 0.2}
CLASSES, CLIENTS = 10, 6
RUN = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "iid", "clients": CLIENTS},
    "splits": {"test": 0.2},
    "model": {"by_client": {"models": {"small": SMALL, "deep": DEEP}}},
    "cohort": {"size": 4},
    "strategy": DISTIL,
    "client": {"batch": 32},
    "execution": {"executor": "serial"},
    "evaluation": {"server": False},
}
LOCAL = {"strategy": "local", "client": {"name": "local", "batch": 32}}


def run(out, **changes):
    return fl.run(resolved(**changes), out=out)


def resolved(**changes):
    """RUN with other sections, and with other values by dotted path."""
    sections = {key: value for key, value in changes.items() if "." not in key}
    return resolve(read({**RUN, **sections}, {key: value for key, value in changes.items() if "." in key}))


def of_clients(result):
    """The table of client metrics, by (split, round, client); "system" has virtual times."""
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    return {(row["split"], row["round"], row["client"]): row for row in table}


def assert_same(a, b):
    """All metrics, bytes, and what each client trained and predicted, have equal bits."""
    for x, y in zip(a.metrics, b.metrics, strict=True):
        assert x.keys() == y.keys() and all(x[name] == y[name] for name in x if "seconds" not in name)
    assert a.ledger.equals(b.ledger) and of_clients(a) == of_clients(b)


# -- each client's own model ------------------------------------------------------------------------------------------
def test_each_client_trains_as_if_all_had_its_architecture(tmp_path):
    """Local training and gamma = 0 have the bits of runs with one architecture, in which half of the clients count."""
    mixed = of_clients(run(tmp_path / "mixed", **LOCAL))
    neutral = of_clients(run(tmp_path / "neutral", client={"batch": 32, "gamma": 0.0}))
    for name, model, mine in (("small", SMALL, 0), ("deep", DEEP, 1)):
        alone = of_clients(run(tmp_path / name, **LOCAL, model=model, **{"execution.plan": "loop"}))
        assert alone.keys() == mixed.keys()
        for key, row in alone.items():
            if key[2] % 2 == mine:
                assert mixed[key] == row and neutral[key] == row


def test_one_architecture_is_the_plain_model_in_every_plan(tmp_path):
    for plan in ("compiled", "flat"):
        one = {"by_client": {"models": {"small": SMALL}}}
        a = run(tmp_path / f"{plan}/one", **LOCAL, model=one, **{"execution.plan": plan})
        b = run(tmp_path / f"{plan}/plain", **LOCAL, model=SMALL, **{"execution.plan": plan})
        assert_same(a, b)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path):
    """With state of BatchNorm layers that each client keeps, in one of the architectures only."""
    (tmp_path / "nets.py").write_text(NORMALISED)
    normalised = {"name": f"{tmp_path}/nets.py:normalised", "batch_norm": "local"}
    model = {"by_client": {"models": {"small": SMALL, "normalised": normalised}}}
    changes = {"model": model, "evaluation": {"server": False, "stage": "trained"}}
    whole = run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", **changes, rounds=1)
    assert_same(fl.resume(tmp_path / "parts", rounds=3), whole)


NORMALISED = """
from torch import nn

def normalised(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))
"""


@pytest.mark.ray
def test_workers_of_ray_give_the_same_bits(tmp_path):
    serial = run(tmp_path / "serial")
    assert_same(run(tmp_path / "ray", **{"execution.executor": "ray", "execution.workers": 2}), serial)


@pytest.mark.filterwarnings("ignore")
def test_flower_nodes_give_the_same_bits(tmp_path, capsys):
    same_run(resolved(**{"partition.clients": 3, "cohort": {"fraction": 1.0}, "execution.plan": "loop"}), tmp_path)


def test_no_parameter_is_sent(tmp_path):
    """C x C sums of outputs and C counts, 4 bytes each, to and from each client of the cohort in each round."""
    result, message = run(tmp_path / "run"), CLASSES * CLASSES * 4 + CLASSES * 4
    for row in result.metrics:
        assert row["uplink_bytes"] == row["downlink_bytes"] == 4 * message
    assert set(result.ledger.column("group").to_pylist()) == {"sums"}
    assert len(result.model) == 0


def test_the_loss_of_distillation_by_hand():
    """Two classes; the others' mean outputs for class 1 are (0, 0), so they ask for probabilities of a half."""
    sent = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, 1.0]])
    total = sent + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    state = {"model": None, "sent": sent, "round": 4}
    at = SimpleNamespace(received={"sums": total}, state=state, config={"of": 4})
    outputs = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # probabilities 1/4 and 3/4
    batch = {"x": outputs, "y": torch.tensor([1, 0])}
    losses = Distilled(gamma=2.0).objective(lambda x: x, batch, at, Classification())
    distance = 0.5 * math.log(4) + 0.5 * math.log(4 / 3)
    np.testing.assert_allclose(losses, [math.log(4 / 3) + 2 * distance, math.log(4)], rtol=1e-6)  # no other has class 0


def test_prototypes_of_different_models_meet(tmp_path):
    """FedProto: the features of both models have 16 numbers; up to 10 classes of 16 float32, a key and a count."""
    result = run(tmp_path / "run", strategy="fedproto")
    assert result.metrics[0]["downlink_bytes"] == 0
    assert all(row["uplink_bytes"] == 4 * 10 * (16 * 4 + 8 + 8) for row in result.metrics)
    assert result.metrics[-1]["clients/accuracy_mean"] > result.metrics[0]["clients/accuracy_mean"]


# -- set-up -----------------------------------------------------------------------------------------------------------
def test_floating_point_operations_are_each_clients_own():
    """A layer a -> b costs 2ab forward, 2ab for its weights' gradient and 2ab for its inputs' (not for the first)."""
    system = {"devices": {"name": "identical", "gflops": 1.0}, "compute": "flops"}
    setup = set_up_run(resolved(system=system))
    small, deep = 4 * 64 * 16 + 6 * 16 * 10, 4 * 64 * 32 + 6 * (32 * 16 + 16 * 10)
    assert setup.flops_per_sample(np.array([0, 1, 4])).tolist() == [small, deep, small]


def test_virtual_time_is_each_clients_own(tmp_path):
    devices = {"name": "identical", "gflops": 1.0, "up_mbps": 1e9, "down_mbps": 1e9, "latency_ms": 0.0}
    result = run(tmp_path / "run", rounds=1, system={"devices": devices, "compute": "flops"})
    times = {key[2]: row for key, row in of_clients(result).items() if key[0] == "system"}
    per_sample = {c: row["compute_seconds"] / row["num_examples"] for c, row in times.items()}
    assert all(seconds == pytest.approx(1e-9 * [5056, 12224][c % 2]) for c, seconds in per_sample.items())


@pytest.mark.parametrize("kind", ["list", "file"])
def test_a_list_assigns_models_to_clients(kind, tmp_path):
    names = ["deep", "small", "small", "deep", "small", "small"]
    (tmp_path / "assign.json").write_text(json.dumps(names))
    assign = names if kind == "list" else str(tmp_path / "assign.json")
    setup = set_up_run(resolve(resolved(**{"model.assign": assign}).to_dict()))  # what config.yaml holds
    assert [setup.by_client.of(c).name for c in range(CLIENTS)] == names
    assert headline(setup, tmp_path, "", "").startswith(
        "Distil with client Distilled, 6 clients, 4 small of 1210 parameters, 2 deep of 2778 parameters, training loop"
    )


def test_a_run_does_not_continue_with_another_assignment(tmp_path):
    assign = tmp_path / "assign.json"
    assign.write_text(json.dumps(["small", "deep"] * 3))
    model = {"by_client": {"assign": str(assign), "models": {"small": SMALL, "deep": DEEP}}}
    run(tmp_path / "run", model=model, rounds=1)
    assign.write_text(json.dumps(["deep", "small"] * 3))
    with pytest.raises(fl.ConfigError, match="the first model"):
        fl.resume(tmp_path / "run", rounds=2)


def by_client(**models):
    return {"model": {"by_client": {"models": {"small": SMALL, **models}}}}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"strategy": "fedavg"},
            r"model.by_client: client 'sgd' exchanges the parameters of the model, and parameters of different "
            r"architectures cannot be averaged. Use one architecture for all clients, or .* \['fedproto', 'local'\]",
        ),
        ({"strategy": "reconnaissance"}, "model.by_client: client 'reconnaissance' does not say that clients keep"),
        ({"evaluation": {"stage": "adapted", "adapt": "sgd", "server": False}}, "evaluation.adapt 'sgd' exchanges"),
        ({"data": {"name": "digits", "test": 0.2}, "evaluation": {}}, "evaluation.server: with model.by_client each"),
        ({"execution": {"plan": "flat"}}, "execution.plan: 'flat' is not possible: clients have models of 2 archi"),
        ({"model": {"name": "by_client", "models": {"small": SMALL}, "freeze": ["1.*"]}}, "model.freeze: write it"),
        ({"model": {"name": "by_client", "models": {}}}, "model.models: there are none"),
        ({"model.assign": ["small"]}, "model.by_client.assign: 1 names for 6 clients; each client needs one"),
        ({"model.assign": ["big"] * 6}, r"model.by_client.assign: 'big' is not one of the models \['small', 'deep'\]"),
        ({"model.assign": "round_robin"}, "model.by_client.assign: 'round_robin' is neither 'modulo' nor a list of"),
        (by_client(wide={"name": "mlp", "hiden": [3]}), "model.models.wide.hiden: not a key of 'mlp'"),
        (by_client(words="char_gru"), r"model.models.words: "),
        (by_client(more={"by_client": {"models": {"a": SMALL}}}), "model.models: 'more' is by_client itself"),
        (
            {"strategy": "fedproto", **by_client(wide={"name": "mlp", "hidden": [17]})},
            "client.features: prototypes of all clients need one width, and .* have small 16, wide 17. Name a layer",
        ),
    ],
)
def test_misuse_is_an_error_before_round_0(changes, message, tmp_path):
    with pytest.raises(fl.ConfigError, match=message):
        set_up_run(resolved(**changes))


def test_a_baseline_that_averages_models_is_refused_before_the_run(tmp_path):
    with pytest.raises(fl.ConfigError, match=r"baselines: .*centralised.* model.by_client"):
        run(tmp_path / "run", baselines=["local", "centralised"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_the_part_alone_builds_its_first_model():
    part = ByClient(models=dict(resolved().model.part.models))
    assert sum(p.numel() for p in part.build((1, 8, 8), 10).parameters()) == 1210
    assert part.assigned(3).tolist() == [0, 1, 0]


def test_the_page_shows_the_toy():
    toy, page = (ROOT / "tests/interfaces/distil.py").read_text(), (ROOT / "docs/interfaces/by_client.md").read_text()
    assert toy[toy.index("@dataclass") :].strip() in page
