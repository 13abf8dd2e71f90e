"""Rates per group of parameters: every plan is torch.optim with param groups."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clients.fednova
import clients.q_fedavg
import clients.scaffold
import clients.sgd
import fl
from fl.execution.training import batched
from fl.method.local_training import LocalTraining
from fl.method.optimiser import SGD, Adam, Torch
from fl.method.phase import Phase
from fl.models.binding import module_params
from fl.tensors import random
from fl.tensors.trees import row
from tests.execution.test_loop_batched import BACKENDS, BATCH, PARTICIPATION, SEED, assert_close, make, mlp

LR = 0.05
RATES = {"4.weight": 0.25, "?.bia[!x]": 3.0, "6.weight": 10.0}  # patterns: the biases of all layers have one factor
OPTIMISERS = {
    "sgd": (SGD(), torch.optim.SGD, {}),
    "nesterov": (
        SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adamw": (Adam(eps=1e-3, weight_decay=0.1), torch.optim.AdamW, {"eps": 1e-3, "weight_decay": 0.1}),
}


def factor(name: str) -> float:
    """The factor that RATES gives, written by hand."""
    return {"4.weight": 0.25, "6.weight": 10.0, "1.weight": 1.0}.get(name, 3.0)


def param_groups(module, ctx, optimiser, options, clip, epochs=2):
    """Train with torch.optim, one param group for each tensor; only the addresses of shuffles are shared."""
    module = copy.deepcopy(module).train()
    groups = [{"params": [p], "lr": LR * factor(name)} for name, p in module.named_parameters()]
    step, rows = optimiser(groups, lr=LR, **options), ctx.train.rows
    for epoch in range(epochs):
        order = random.permutation(len(rows), SEED, ctx.client, PARTICIPATION, "shuffle", 0, epoch)
        for a in range(0, len(rows), BATCH):
            at = torch.from_numpy(rows[order[a : a + BATCH]])
            step.zero_grad()
            F.cross_entropy(module(ctx.train.arrays["x"][at]), ctx.train.arrays["y"][at]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            step.step()
    return module_params(module)


@pytest.mark.parametrize(
    "name, clip", [("sgd", None), ("sgd", 0.3), ("nesterov", None), ("nesterov", 0.3), ("adamw", None)]
)
def test_every_plan_is_torch_with_param_groups(name, clip):
    ours, theirs, options = OPTIMISERS[name]
    module = mlp()
    algorithm = clients.sgd.LocalSGD(lr=LR, batch=BATCH, epochs=2, optimiser=ours, clip=clip, rates=RATES)
    chunk, contexts = make(module)
    received = chunk.received["model"]
    together = [batched.train(algorithm, chunk, backend).update for backend in BACKENDS]
    for c, ctx in enumerate(contexts):
        expected = param_groups(module, ctx, theirs, options, clip)
        assert_close(received + algorithm.work("train", ctx, None).update.groups["model"], expected, expected)
        for update in together:
            assert_close(received + row(update.groups["model"], c), expected, expected)


def test_an_optimiser_of_torch_takes_rates():
    module = mlp()
    _, contexts = make(module)
    algorithm = clients.sgd.LocalSGD(lr=LR, batch=BATCH, epochs=2, optimiser=Torch(cls="RMSprop"), rates=RATES)
    expected = param_groups(module, contexts[0], torch.optim.RMSprop, {}, None)
    trained = contexts[0].received["model"] + algorithm.work("train", contexts[0], None).update.groups["model"]
    assert_close(trained, expected, expected)


class TwoPhases(clients.sgd.LocalSGD):
    """The head at ten times the rate, then all at one rate."""

    def phases(self, round_, rounds):
        settings = {"optimiser": self.optimiser, "lr": LR, "batch": self.batch}
        return Phase(**settings, rates={"6.*": 10.0}), Phase(**settings)


def test_phases_have_their_own_rates():
    """One full-batch step of each phase is two steps of gradient descent by autograd."""
    module = mlp()
    chunk, contexts = make(module)
    algorithm, ctx = TwoPhases(batch="full"), contexts[1]
    x, y = (ctx.train.take()[name] for name in ("x", "y"))
    expected = copy.deepcopy(module)
    for head in (10.0, 1.0):
        named = dict(expected.named_parameters())
        gradients = torch.autograd.grad(F.cross_entropy(expected(x), y), list(named.values()))
        with torch.no_grad():
            for (name, p), g in zip(named.items(), gradients):
                p -= LR * (head if name.startswith("6.") else 1.0) * g
    want, received = module_params(expected), ctx.received["model"]
    assert_close(received + algorithm.work("train", ctx, None).update.groups["model"], want, want)
    together = batched.train(algorithm, chunk, BACKENDS[1]).update
    assert_close(received + row(together.groups["model"], 1), want, want)


# -- runs -------------------------------------------------------------------------------------------------------------
RUN = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"batch": 64, "optimiser": {"name": "sgd", "momentum": 0.9}},
    "execution": {"executor": "serial"},
}


def run(out, **overrides):
    return fl.run(RUN, out=out, **overrides)


@pytest.mark.parametrize("plan", ["loop", "stacked", "flat", "vmap"])
def test_rates_of_one_change_no_bit(plan, tmp_path):
    """Grouping alone does nothing; a model without rates trains as before."""
    settings = {"execution.plan": plan, "client.optimiser": {"name": "adam", "weight_decay": 0.1}}
    plain = run(tmp_path / "plain", **settings).model
    ones = run(tmp_path / "ones", **settings, **{"client.rates": {"*.weight": 1.0, "1.bias": 1.0}}).model
    assert all(torch.equal(plain[name], ones[name]) for name in plain)


def test_resumed_rates_are_uninterrupted_rates(tmp_path):
    rates = {"client.rates": {"3.*": 10.0}}
    whole = run(tmp_path / "whole", **rates).model
    run(tmp_path / "parts", **rates, rounds=1)
    resumed = fl.resume(tmp_path / "parts", rounds=2).model
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = run(tmp_path / "other").model
    assert not torch.equal(whole["3.weight"], other["3.weight"])


@pytest.mark.ray
def test_workers_of_ray_give_the_same_bits(tmp_path):
    rates = {"client.rates": {"3.*": 10.0}}
    serial = run(tmp_path / "serial", **rates).model
    ray = run(tmp_path / "ray", **rates, **{"execution.executor": "ray", "execution.workers": 2}).model
    assert all(torch.equal(serial[name], ray[name]) for name in serial)


def test_machine_code_knows_one_rate(tmp_path):
    settings = {"client": {"batch": 64, "rates": {"3.*": 10.0}}, "execution.plan": "compiled"}
    with pytest.raises(fl.ConfigError, match="parameters have different learning rates"):
        run(tmp_path / "a", **settings)


@pytest.mark.parametrize(
    "client, message",
    [
        ({"rates": {"head.*": 10.0}}, r"client.rates: pattern 'head.\*' matches no parameter; the parameters are \['1"),
        ({"rates": {"3.*": 10.0, "*.bias": 2.0}}, r"client.rates: '3.\*' and '\*.bias' both match '3.bias'"),
        ({"rates": {"3.*": 0.0}}, r"client.rates: 0.0 is not positive; it is the factor of '3.\*'; `trains` leaves"),
        ({"rates": {"3.*": "fast"}}, "client.rates: .* is not"),
        ({"rates": 10.0}, "client.rates: 10.0 is not"),
    ],
)
def test_misuse_is_an_error_before_round_0(client, message, tmp_path):
    with pytest.raises(fl.ConfigError, match=message):
        run(tmp_path / "run", client=client)


def test_the_algorithm_of_adaptation_is_checked_too(tmp_path):
    adapt = {"stage": "adapted", "adapt": {"name": "sgd", "rates": {"head.*": 2.0}}}
    with pytest.raises(fl.ConfigError, match=r"evaluation.adapt.rates: pattern 'head.\*' matches no parameter"):
        run(tmp_path / "run", evaluation=adapt)


@pytest.mark.parametrize(
    "cls, arguments",
    [(clients.scaffold.Scaffold, {}), (clients.q_fedavg.QFedAvg, {}), (clients.fednova.FedNova, {"mu": 0.1})],
)
def test_methods_that_compute_with_one_rate_refuse_rates(cls: type[LocalTraining], arguments):
    cls(**arguments)
    with pytest.raises(ValueError, match=r"^rates: "):
        cls(**arguments, rates={"*": 2.0})
