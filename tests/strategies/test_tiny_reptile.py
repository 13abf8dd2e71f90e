"""TinyReptile and related methods: online steps and the server's schedule in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.reptile import Reptile as ReptileClient
from clients.tiny_metafed import TinyMetaFed as TinyMetaFedClient
from clients.tiny_reptile import TinyReptile as TinyReptileClient
from fl.data.views import View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.strategy import ServerContext
from fl.models.binding import Initial, module_params
from fl.tasks.supervised import Regression
from fl.tensors import random
from fl.tensors.params import Params
from strategies.reptile import Reptile
from strategies.tiny_metafed import TinyMetaFed
from strategies.tiny_reptile import TinyReptile

LR = 0.05
CONFIG = {
    "rounds": 3,
    "data": {"name": "sine", "clients": 6, "samples": 12},
    "partition": "natural",
    "task": "regression",
    "splits": {"val": 0.0, "test": 0.5, "clients": 2},
    "model": {"name": "mlp", "hidden": [4]},
    "cohort": {"size": 1},
    "strategy": "tiny_reptile",
    "client": {"lr": 0.01},
    "evaluation": {"clients": "held_out", "stage": "adapted", "shots": 3},
    "execution": {"executor": "serial"},
}
ADAPT = {"name": "sgd", "batch": "full", "steps": 4, "lr": 0.1}
P = (1 + 1) * 4 + (4 + 1) * 1


def play(tmp_path, name="run", **overrides):
    return fl.run(CONFIG, out=tmp_path / name, **{"evaluation.adapt": ADAPT, **overrides})


def linear(n=7, **fields):
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    arrays = {"x": torch.randn(n, 2), "y": torch.randn(n, 1)}
    view, initial = View(arrays, np.arange(n)), Initial.of(module)
    own = {"config": {}, "state": None, "initial": initial, "module": module, "task": Regression()}
    own["training_loop"] = train
    ctx = ClientContext(3, 5, 0, 1, 2, {"model": module_params(module)}, train=view, val=view, test=view, **own)
    return replace(ctx, **fields), arrays


def online(ctx, arrays, order, train=("weight", "bias"), w=None):
    """w <- w - lr (w x + b - y) x, b <- b - lr (w x + b - y), sample by sample, in float64."""
    start = w or {n: ctx.received["model"][n].double().numpy() for n in ("weight", "bias")}
    weight, bias = start["weight"].copy().reshape(2), start["bias"].copy().reshape(())
    for i in order:
        x, y = arrays["x"][i].double().numpy(), float(arrays["y"][i])
        error = weight @ x + bias - y
        weight, bias = weight - LR * error * x * ("weight" in train), bias - LR * error * ("bias" in train)
    return weight, bias


# -- 5, 2, 3: the client ----------------------------------------------------------------------------------------------
def test_online_steps_of_a_linear_model_in_closed_form():
    ctx, arrays = linear()
    reply = TinyReptileClient(lr=LR).work("train", ctx, None)
    order = random.permutation(7, ctx.seed, ctx.client, ctx.participation, "shuffle", 0, 0)
    weight, bias = online(ctx, arrays, order)
    phi = ctx.received["model"] + reply.update.groups["model"]
    np.testing.assert_allclose(phi["weight"].reshape(2), weight, rtol=1e-5)
    np.testing.assert_allclose(phi["bias"].reshape(()), bias, rtol=1e-5)


def test_the_order_matters_and_is_the_clients_own():
    ctx, arrays = linear()
    assert not np.allclose(online(ctx, arrays, range(7))[0], online(ctx, arrays, reversed(range(7)))[0], rtol=1e-4)
    sent = [
        TinyReptileClient(lr=LR).work("train", replace(ctx, **other), None).update.groups["model"].compact()
        for other in ({}, {}, {"participation": 3}, {"client": 4}, {"seed": 6})
    ]
    assert torch.equal(sent[0], sent[1]) and all(not torch.equal(sent[0], s) for s in sent[2:])


def test_samples_are_a_single_pass_over_so_many():
    ctx, _ = linear()
    few = TinyReptileClient(lr=LR, samples=3).work("train", ctx, None).update
    assert few.num_examples == 3
    many = TinyReptileClient(lr=LR, samples=100).work("train", ctx, None).update
    assert torch.equal(
        many.groups["model"].compact(),
        TinyReptileClient(lr=LR).work("train", ctx, None).update.groups["model"].compact(),
    )


def test_stored_samples():
    ctx, _ = linear()
    peak = lambda client: client.work("train", ctx, None).update.metrics["peak_samples"]  # noqa: E731
    assert peak(TinyReptileClient()) == 1
    assert peak(ReptileClient(samples=5, batch="full", steps=2)) == 5 and peak(ReptileClient()) == 7


def test_reptiles_full_steps_in_closed_form():
    ctx, arrays = linear()
    reply = ReptileClient(batch="full", steps=3, lr=LR).work("train", ctx, None)
    x, y = np.c_[arrays["x"].double(), np.ones(7)], arrays["y"].double().numpy().reshape(7)
    w = w0 = np.r_[ctx.received["model"]["weight"].double().reshape(2), ctx.received["model"]["bias"].double()]
    for _ in range(3):
        w = w - LR * x.T @ (x @ w - y) / 7
    np.testing.assert_allclose(reply.update.groups["model"].compact(), w - w0, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("field, value", [("batch", 8), ("epochs", 2), ("steps", 3), ("samples", 0)])
def test_what_one_sample_at_a_time_rules_out(field, value):
    with pytest.raises(ValueError, match=f"{field}: {value} is not"):
        TinyReptileClient(**{field: value})


# -- 1, 6: the server -------------------------------------------------------------------------------------------------
def one(*w: float) -> Params:
    return Params.of({"w": torch.tensor(w)})


def at(round_, rounds):
    return ServerContext(0, round_, rounds, 4, np.arange(1), Regression(), nn.Identity())


def test_alpha_falls_linearly_to_zero():
    assert [TinyReptile(alpha=0.8).rate(t, 4) for t in range(5)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert TinyReptile(alpha=0.8, schedule="constant").rate(3, 4) == 0.8


def test_alpha_one_takes_what_comes_up_and_alpha_zero_nothing():
    phi, delta = one(1.0, 2.0), one(0.5, -3.0)
    assert TinyReptile().step(phi, delta, at(0, 4))[0].compact().tolist() == [1.5, -1.0]
    assert TinyReptile(alpha=0.0).step(phi, delta, at(0, 4))[0].compact().tolist() == [1.0, 2.0]
    assert TinyReptile().step(phi, delta, at(2, 4))[0].compact().tolist() == [1.25, 0.5]


def test_several_devices_are_fedavg_with_lr_alpha(tmp_path):
    settings = {"cohort.size": 3, "client": {"name": "sgd", "batch": 1, "lr": 0.01}}
    ours = play(tmp_path, "ours", strategy={"name": "reptile", "alpha": 0.3, "schedule": "constant"}, **settings)
    theirs = play(tmp_path, "theirs", strategy={"name": "fedavg", "lr": 0.3, "weights": "uniform"}, **settings)
    assert ours.digest == theirs.digest


# -- 4: traffic -------------------------------------------------------------------------------------------------------
def test_a_round_is_2p_floats(tmp_path):
    rows = play(tmp_path).metrics
    assert [(r["uplink_bytes"], r["downlink_bytes"]) for r in rows] == 3 * [(4 * P, 4 * P)]
    assert [r["train/peak_samples"] for r in rows] == [1, 1, 1]


# -- evaluation of held-out devices -----------------------------------------------------------------------------------
def test_held_out_devices_adapt_to_their_first_shots(tmp_path):
    """Full-batch steps on the first 3 training rows, then the error on the test rows, by autograd."""
    result = play(tmp_path, rounds=1)
    config = fl.config.config.resolve(fl.config.reading.read(tmp_path / "run" / "config.yaml"))
    dataset, (period,) = fl.simulation.build.load_data(config)
    errors = []
    for client in (4, 5):
        rows = {split: period.partition.view_rows(client, split) for split in ("train", "test")}
        x, y = torch.from_numpy(dataset.train["x"]), torch.from_numpy(dataset.train["y"])
        w = [result.model[n].clone().requires_grad_() for n in ("1.weight", "1.bias", "3.weight", "3.bias")]
        net = lambda x, w=w: torch.relu(x @ w[0].T + w[1]) @ w[2].T + w[3]  # noqa: E731
        support = rows["train"][:3]
        for _ in range(4):
            grads = torch.autograd.grad(0.5 * (net(x[support]) - y[support]).square().mean(), w)
            for tensor, grad in zip(w, grads):
                tensor.data -= 0.1 * grad
        errors.append(float((net(x[rows["test"]]) - y[rows["test"]]).square().mean().detach()))
    assert result.metrics[-1]["clients/mse_mean"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert result.metrics[-1]["clients/loss_mean"] == pytest.approx(np.mean(errors) / 2, rel=1e-4)


# -- TinyMetaFed ------------------------------------------------------------------------------------------------------
def test_metafed_rebuilds_then_learns_online_and_sends_the_largest():
    ctx, arrays = linear(config={"learnt": ("weight",), "share": 0.5})
    ctx = replace(ctx, received={"model": ctx.received["model"].select(["weight"])})
    update = TinyMetaFedClient(lr=LR, rebuild=3, rebuild_steps=2).work("train", ctx, None).update
    order = random.permutation(7, ctx.seed, ctx.client, ctx.participation, "samples")
    start = ctx.received["model"]["weight"].double().numpy().reshape(2)
    bias, few = float(ctx.initial.trained["bias"]), order[:3]
    for _ in range(2):  # only the local part, on the first three samples
        bias -= LR * float(
            (arrays["x"][few].double().numpy() @ start + bias - arrays["y"][few].double().numpy()[:, 0]).mean()
        )
    rest = order[3:][random.permutation(4, ctx.seed, ctx.client, ctx.participation, "shuffle", 0, 0)]
    weight, _ = online(ctx, arrays, rest, ("weight",), {"weight": start, "bias": np.array(bias)})
    largest = int(np.argmax(np.abs(weight - start)))
    sent = update.groups["model"]
    assert sent.positions.tolist() == [largest] and sent.size == 2
    np.testing.assert_allclose(sent.values, (weight - start)[[largest]], rtol=1e-4)
    assert update.metrics["peak_samples"] == 3 and update.num_examples == 7


def test_metafeds_local_part_never_travels(tmp_path):
    result = play(tmp_path, strategy={"name": "tiny_metafed", "local": ["3.*"], "share": 0.5}, **{"client.rebuild": 2})
    learnt = (1 + 1) * 4
    for row in result.metrics:  # 4 of 8 values, and a bitmap of 8 bits
        assert (row["downlink_bytes"], row["uplink_bytes"]) == (4 * learnt, 4 * learnt // 2 + 1)
    first = play(tmp_path, "none", **{"client.lr": 0.0})
    assert all(torch.equal(result.model[n], first.model[n]) for n in ("3.weight", "3.bias"))
    assert not torch.equal(result.model["1.weight"], first.model["1.weight"])


@pytest.mark.parametrize("local, message", [(("9.*",), "matches no parameter"), (("*",), "match all of")])
def test_metafed_needs_both_parts(local, message):
    with pytest.raises(ValueError, match=message):
        TinyMetaFed(local=local).init(one(1.0), None)


@pytest.mark.parametrize("rule", [lambda: Reptile(alpha=1.5), lambda: TinyMetaFed(local=("a",), share=0.0)])
def test_refusals(rule):
    with pytest.raises(ValueError, match="is not in"):
        rule()
