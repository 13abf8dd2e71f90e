"""Evaluation as a generator: clients are asked first, at no cost; several models and stages; metrics of one client."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import fl
from fl import (
    Broadcast,
    ClientMetric,
    EvaluateModel,
    Exchange,
    LocalTraining,
    Reply,
    ServerWork,
    Stack,
    Strategy,
    Transfer,
    Update,
)
from fl.errors import ConfigError
from fl.report.client_metrics import clients
from fl.tasks.supervised import Classification
from tests.interfaces.laws import check_on_ray, check_resumed, rows, traced_devices

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 5, "alpha": 0.5, "min_size": 8},
    "splits": {"val": 0.2, "test": 0.3},
    "model": "softmax",
    "cohort": {"size": 3},
    "strategy": f"{__file__}:AsksFirst",
    "client": {"name": f"{__file__}:Describes", "steps": 5, "batch": 16},
    "evaluation": {"server": False},
    "execution": {"executor": "serial", "plan": "loop"},
}
PLAIN = CONFIG | {"strategy": "fedavg", "client": {"steps": 5, "batch": 16}}


# -- the toy ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AsksFirst(Strategy):
    """FedAvg; for evaluation each client says how often its classes occur, and gets a model with that prior.

    logits_c + log(n_c + 1)
    """

    client: ClassVar[str] = "test_evaluation.py:Describes"

    def step(self, state, mean, ctx):
        return state + mean, {}

    def evaluation(self, state, ctx):
        told = yield Exchange(state, {"counts": Stack()}, work="describe", cohort=ctx.evaluated, free=True)
        counts = {meta.client: counts for counts, meta in told.value["counts"]}
        (bias,) = (name for name in state if state[name].ndim == 1)
        models = {c: state.replace({bias: state[bias] + (n + 1).log()}) for c, n in counts.items()}
        plain = yield EvaluateModel(state)
        own = yield EvaluateModel(Broadcast(shared={"all": models}, rows={"model": of_client}, hidden=("all",)), "own")
        return {**plain, **own, "asked": len(told.clients)}


def of_client(client, shared, state):
    return shared["all"][client]


@dataclass(frozen=True, kw_only=True)
class Describes(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ("model", "counts")

    def work(self, name, ctx, carry):
        if name != "describe":
            return super().work(name, ctx, carry)
        if carry is not None or ctx.state is not None:
            raise AssertionError("a carry or a state of another exchange")
        counts = torch.bincount(ctx.train.take()["y"], minlength=10).float()
        return Reply(Update({"counts": counts}, len(ctx.train), {"loss": 1000.0}), {"a": "state"}, {"a": "carry"})


@dataclass(frozen=True)
class AsksForUpdates(Strategy):
    """FedAvg that also trains a round in each evaluation, and forgets it."""

    def step(self, state, mean, ctx):
        return state + mean, {}

    def evaluation(self, state, ctx):
        trained = yield Exchange(state, cohort=ctx.evaluated, free=True)
        return {"after": float((trained.value.compact()).norm())}


# -- laws -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("serial") / "run")


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory):
    return fl.run(PLAIN, out=tmp_path_factory.mktemp("fedavg") / "run")


def test_free_exchanges_cost_nothing_and_change_nothing(serial, fedavg):
    """The ledger, the model and all other metrics are FedAvg's: no byte, no state, no draw, no training loss."""
    assert serial.digest == fedavg.digest and serial.ledger.equals(fedavg.ledger)
    for ours, plain in zip(rows(serial), rows(fedavg), strict=True):
        assert {k: v for k, v in ours.items() if k in plain} == plain
        assert ours["asked"] == 5


@pytest.mark.parametrize("down", ["error_feedback", "delta"])
def test_codecs_remember_nothing_of_a_free_exchange(down, tmp_path):
    """Neither the residuals of server and clients, nor what clients last received."""
    codec = {"codec": {"down": [down, {"quantise": {"bits": 4}}], "up": ["error_feedback", {"top_k": {"ratio": 0.1}}]}}
    method = {"strategy": f"{__file__}:AsksForUpdates", "client": {"steps": 5, "batch": 16}}
    ours, plain = (fl.run(PLAIN | codec | more, out=tmp_path / f"{len(more)}", rounds=3) for more in (method, {}))
    assert ours.digest == plain.digest and ours.ledger.equals(plain.ledger)


def test_the_models_that_clients_are_evaluated_with(serial):
    """`own/val/loss` with torch: the saved model plus the logarithm of each client's counts."""
    setup = fl.simulation.build.set_up_run(fl.config.config.resolve(CONFIG))
    partition, data = setup.periods[0].partition, setup.dataset.training_tensors()
    weight, bias = (next(serial.model[n] for n in serial.model if serial.model[n].ndim == k) for k in (2, 1))
    total = count = 0
    for client in range(5):
        train, val = (torch.from_numpy(partition.view_rows(client, split)) for split in ("train", "val"))
        prior = (torch.bincount(data["y"][train], minlength=10) + 1).float().log()
        logits = data["x"][val].flatten(1) @ weight.T + bias + prior
        total += torch.nn.functional.cross_entropy(logits, data["y"][val], reduction="sum").item()
        count += len(val)
    assert serial.metrics[-1]["own/val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert serial.metrics[-1]["own/val/loss"] < serial.metrics[-1]["val/loss"]


def test_names_of_metrics_work_in_targets(tmp_path):
    target = {"stop.target": {"own/val/loss": 100.0}, "evaluation.select": "own/val/accuracy"}
    assert fl.run(CONFIG, out=tmp_path / "run", **target).reason.startswith("target reached")
    with pytest.raises(ConfigError, match="evaluation.select: 'own/val/los' is not .* Did you mean 'own/val/loss'"):
        fl.run(CONFIG, out=tmp_path / "wrong", **{"evaluation.select": "own/val/los"})


def test_a_resumed_run_has_the_same_bits(serial, tmp_path):
    check_resumed(CONFIG, serial, tmp_path)


@pytest.mark.ray
def test_ray_has_the_same_bits(serial, tmp_path):
    check_on_ray(CONFIG, serial, tmp_path)


def test_free_exchanges_take_no_virtual_time(tmp_path):
    system = {"system": traced_devices(tmp_path, [f"{c},1,1,1" for c in range(5)])}
    ours, plain = (fl.run(c | system, out=tmp_path / n) for n, c in (("ours", CONFIG), ("plain", PLAIN)))
    assert [r["simulated_seconds"] for r in ours.metrics] == [r["simulated_seconds"] for r in plain.metrics]


def test_an_asynchronous_server_evaluates_by_exchanges(tmp_path):
    system = traced_devices(tmp_path, [f"{c},1,1,1" for c in range(5)])
    server = {"system": system, "server": {"name": "buffered", "buffer": 2, "concurrency": 3}}
    ours, plain = (fl.run(c | server, out=tmp_path / n) for n, c in (("ours", CONFIG), ("plain", PLAIN)))
    assert ours.digest == plain.digest and ours.ledger.equals(plain.ledger) and "own/val/loss" in ours.metrics[-1]


def test_a_deployment_has_the_simulators_metrics(tmp_path, capsys):
    pytest.importorskip("flwr", minversion="1.22")
    from fl.flower import simulate
    from fl.flower.deploy import client_app, server_app

    config = CONFIG | {"rounds": 1}
    expected = fl.run(config, out=tmp_path / "here")
    simulate(server_app(config, out=tmp_path / "there"), client_app(config), 5, out=tmp_path / "grid")
    (row,) = fl.storage.run.read_metrics(tmp_path / "there")
    for name in ("val/loss", "own/val/loss", "own/clients/accuracy_mean", "asked"):
        assert row[name] == pytest.approx(expected.metrics[0][name], rel=1e-6)


# -- stages and splits ------------------------------------------------------------------------------------------------
def test_several_stages_in_one_run(fedavg, tmp_path):
    """The first stage has the bits and the names of a run with it alone; the other stands beside it."""
    both = fl.run(PLAIN, out=tmp_path / "both", **{"evaluation.stage": ["received", "trained"]})
    for ours, plain in zip(rows(both), rows(fedavg), strict=True):
        assert {k: v for k, v in ours.items() if not k.startswith("trained/")} == plain
    assert both.metrics[0]["trained/val/loss"] < both.metrics[0]["val/loss"]
    table = clients(both.directory, split="trained/test")
    assert table["accuracy"].mean() == pytest.approx(both.metrics[-1]["trained/clients/accuracy_mean"])
    target = {"evaluation.stage": ["received", "trained"], "stop.target": {"trained/val/accuracy": 0.0}}
    assert len(fl.run(PLAIN, out=tmp_path / "stops", **target).metrics) == 1


def test_training_rows(tmp_path):
    """Without a step, the mean loss on all training rows is the training loss of a full pass."""
    client = {"client": {"epochs": 1, "batch": "full", "lr": 0.0}, "cohort": {"size": 5}}
    result = fl.run(PLAIN | client, out=tmp_path / "run", **{"evaluation.splits": ["train"]})
    row = result.metrics[0]
    assert row["train_rows/loss"] == pytest.approx(row["train/loss"], rel=1e-6)
    assert not any(name.startswith(("val/", "clients/")) for name in row)


# -- metrics of one client --------------------------------------------------------------------------------------------
class RankOfTruth(ClientMetric):
    """The median rank of the true class, from 0."""

    def value(self, outputs, batch):
        own = outputs.gather(1, batch["y"][:, None])
        return float((outputs > own).sum(1).median())


@dataclass(frozen=True, kw_only=True)
class Ranked(Classification):
    def metrics(self):
        return {**super().metrics(), "rank": RankOfTruth()}


def test_a_metric_of_one_client_is_not_pooled(tmp_path):
    config = PLAIN | {"task": f"{__file__}:Ranked", "evaluation": {"server": True}}
    result = fl.run(config, out=tmp_path / "run", rounds=1)
    row, table = result.metrics[0], clients(result.directory)
    setup = fl.simulation.build.set_up_run(fl.config.config.resolve(config))
    partition, data = setup.periods[0].partition, setup.dataset.training_tensors()
    weight, bias = (next(result.model[n] for n in result.model if result.model[n].ndim == k) for k in (2, 1))
    expected = []
    for client in range(5):
        test = torch.from_numpy(partition.view_rows(client, "test"))
        logits = data["x"][test].flatten(1) @ weight.T + bias
        ranks = [int((own > own[y]).sum()) for own, y in zip(logits, data["y"][test])]
        expected.append(sorted(ranks)[(len(ranks) - 1) // 2])
    assert table["rank"].tolist() == expected
    assert row["clients/rank_mean"] == pytest.approx(np.mean(expected))
    assert not {"eval/rank", "val/rank"} & row.keys() and {"eval/loss", "val/loss", "val/rank_mean"} <= row.keys()
    with pytest.raises(ConfigError, match="'val/rank' is not a metric of this run"):
        fl.run(config, out=tmp_path / "wrong", **{"stop.target": {"val/rank": 1.0}})


# -- misuse -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wrong(Strategy):
    """FedAvg with a mistake."""

    how: str = ""

    def step(self, state, mean, ctx):
        return state + mean, {}

    def round(self, state, ctx):
        if self.how == "free round":
            yield Exchange(state, free=True)
        return (yield from super().round(state, ctx))

    def evaluation(self, state, ctx):
        if self.how == "costs":
            yield Exchange(state)
        if self.how == "transfer":
            yield Transfer({0: state}, "up")
        if self.how == "twice":
            yield EvaluateModel(state)
            yield EvaluateModel(state)
        yield ServerWork(len, ((),))
        return state if self.how == "no metrics" else {}


@pytest.mark.parametrize(
    "how, error, message",
    [
        ("free round", ValueError, r"Wrong: round yielded Exchange\(free=True\); only `evaluation` may"),
        (
            "costs",
            ValueError,
            r"Wrong: evaluation yielded an exchange that costs bytes; set Exchange",
        ),
        ("transfer", TypeError, "not an Exchange, ServerWork, Evaluate or EvaluateModel"),
        ("twice", ValueError, "Wrong: evaluation evaluated two models with the name ''"),
        (
            "no metrics",
            TypeError,
            r"Wrong: evaluation returned the metric '1.weight' as a tensor \(10, 64\), expected one number",
        ),
    ],
)
def test_misuse(how, error, message, tmp_path):
    with pytest.raises(error, match=message):
        fl.run(PLAIN | {"strategy": {"name": f"{__file__}:Wrong", "how": how}}, out=tmp_path / "run")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"evaluation.stage": []}, "evaluation.stage: an empty list"),
        ({"evaluation.stage": ["trained", "trained"]}, "names one twice"),
        ({"evaluation.stage": ["received", "adapted"]}, "stage 'adapted' needs a client algorithm"),
        ({"evaluation.stage": ["received", "best"]}, "evaluation.stage"),
        ({"evaluation.splits": ["all"]}, "evaluation.splits"),
    ],
)
def test_wrong_settings(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(PLAIN, out=tmp_path / "run", **settings)
