"""GPFL: the valve, the conditions and the three terms on paper; traffic; decay; FedPer where the valve is closed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import fl
from clients.gpfl import EMBEDDINGS, GPFL, GPFLSample, Valve, WithValve, conditions
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.method.training_values import StepContext
from fl.models.binding import Initial
from fl.models.probe import ModuleFacts
from fl.tasks.supervised import Classification
from fl.tensors.params import Params

IN, HIDDEN, OUT = 6, 8, 4
BODY = IN * HIDDEN + HIDDEN
VALVE = OUT * HIDDEN + 2 * HIDDEN**2 + 6 * HIDDEN  # C h + 2 h^2 + 6 h
RUN = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": 5, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "strategy": "gpfl",
    "cohort": {"size": 5},
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}
HEAD = ["2.weight", "2.bias"]


def net() -> WithValve:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WithValve(nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT)), OUT)


def context(module, y, state=None) -> ClientContext:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        arrays = {"x": torch.randn(len(y), IN), "y": torch.tensor(y)}
    view, initial = View(arrays, np.arange(len(y))), Initial.of(module)
    shared = initial.trained.select([name for name in initial.trained if name not in HEAD])
    return ClientContext(
        client=0, seed=0, round=0, rounds=1, participation=0, received={"model": shared}, config={"private": HEAD},
        state=state, train=view, val=view, test=view, initial=initial, module=module, task=Classification(),
        training_loop=train, module_facts=ModuleFacts(outputs=OUT),
    )  # fmt: skip


# -- the terms --------------------------------------------------------------------------------------------------------
def test_the_valve_by_hand():
    """(gamma 1 + 1) f 2 + beta -3 = 1; and ReLU cuts negative values."""
    valve = Valve(1, 2)
    for layers, value in ((valve.scale, 1.0), (valve.shift, -3.0)):
        nn.init.zeros_(layers[2].weight)
        nn.init.constant_(layers[2].bias, value)
    assert valve(torch.tensor([[2.0], [1.0]]), torch.zeros(1)).tolist() == [[1.0], [0.0]]
    assert type(valve.scale[1]) is nn.ReLU  # the normalisation comes after it


def test_the_conditions_by_hand():
    """Counts (3, 1) and unit embeddings: p = (.75, .25), g = (.5, .5). Uniform counts: p = g."""
    received = Params.of({EMBEDDINGS: torch.eye(2)})
    for y, personal in (([0, 0, 1, 0], [0.75, 0.25]), ([1, 0], [0.5, 0.5]), ([0, 0], [1.0, 0.0]), ([], [0.0, 0.0])):
        view = View({"y": torch.tensor(y, dtype=torch.int64)}, np.arange(len(y)))
        p, g = conditions(received, GPFL().facts(view, Classification(), 2))
        assert p.tolist() == personal and g.tolist() == [0.5, 0.5]


def losses(client, scores, common, cosines, y, embeddings):
    at = StepContext(
        {"model": Params.of({EMBEDDINGS: embeddings})}, None, {}, None, Phase(SGD(), lr=0.1, batch=2), None
    )
    at = replace(at, facts=torch.full((len(embeddings),), 1 / len(embeddings)))
    batch = {"x": torch.zeros(len(y), 1), "y": torch.tensor(y)}
    return client.objective(lambda x, p, g: (scores, common, cosines), batch, at, Classification()).mean().item()


def test_the_distance_is_that_of_the_batch():
    """Features (1, 1), (1, 1) and embeddings 0: the norm over the batch is 2, the mean over samples 2 ** .5."""
    common, zeros = torch.ones(2, 2), torch.zeros(2, 2)
    for client, expected in ((GPFL, 2.0), (GPFLSample, 2**0.5)):
        found = [losses(client(lam=lam, angle=0.0), zeros, common, zeros, [0, 1], zeros) for lam in (0.0, 1.0)]
        assert found[1] - found[0] == pytest.approx(expected)


def test_the_cosines_bound_the_second_term():
    """Between log(1 + (C - 1) e^-2) = .796614 and log(1 + (C - 1) e^2) = 4.212149 for 10 classes."""
    zeros = torch.zeros(1, 10)
    best = 2 * F.one_hot(torch.tensor([0]), 10).float() - 1
    for cosines, expected in ((best, 0.796614), (-best, 4.212149)):
        found = losses(GPFL(lam=0.0), zeros, zeros, cosines, [0], torch.zeros(10, 10))
        assert found - math.log(10) == pytest.approx(expected, abs=1e-6)


def test_the_forward_pass_takes_both_routes():
    """Against the layers called one by one; cosines with the trained embeddings."""
    module, x = net(), torch.randn(3, IN)
    p, g = torch.randn(HIDDEN), torch.randn(HIDDEN)
    f, embeddings = module.get_submodule("1")(module.get_submodule("0")(x)), module.get_parameter(EMBEDDINGS)

    def out(condition):
        scale, shift = (module.get_submodule(f"gpfl.{name}")(condition) for name in ("scale", "shift"))
        return F.relu((scale + 1) * f + shift)

    scores, common, cosines = module(x, p, g)
    torch.testing.assert_close(scores, module.get_submodule("2")(out(p)))
    torch.testing.assert_close(common, out(g))
    torch.testing.assert_close(cosines, F.cosine_similarity(out(g)[:, None], embeddings, dim=-1))
    torch.testing.assert_close(module(x), module.get_submodule("2")(out(embeddings.mean(0))))


# -- training ---------------------------------------------------------------------------------------------------------
def test_one_step_by_autograd():
    """A full-batch step on all tensors; decay moves embeddings and valve alone; received embeddings are constant."""
    module = net()
    ctx = context(module, [0, 0, 1, 3])
    client = GPFL(lam=0.3, mu=0.2, steps=1, batch="full", lr=0.05)
    start = {name: tensor.clone() for name, tensor in ctx.initial.trained.items()}
    reply = client.work("train", ctx, None)
    leaf = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    fixed, batch = start[EMBEDDINGS], ctx.train.take()
    shares = torch.tensor([0.5, 0.25, 0.0, 0.25])
    scores, common, cosines = torch.func.functional_call(module, leaf, (batch["x"], shares @ fixed, fixed.mean(0)))
    loss = F.cross_entropy(scores, batch["y"]) + F.cross_entropy(cosines, batch["y"])
    (loss + 0.3 * (common - fixed[batch["y"]]).square().sum().sqrt()).backward()
    found = {**reply.update.groups["model"], **{n: t - start[n] for n, t in reply.state.items()}}
    assert (
        set(reply.state) == set(HEAD)
        and set(found) == set(start)
        and set(reply.update.groups["model"]).isdisjoint(HEAD)
    )
    for name, tensor in leaf.items():
        decay = 0.2 * start[name] if name.startswith("gpfl.") else 0.0
        torch.testing.assert_close(found[name], -0.05 * (tensor.grad + decay), rtol=1e-4, atol=1e-6)


def test_decay_alone_shrinks_the_embeddings():
    """Rate .05, mu .1: by .995 in a step; body and head do not move."""
    ctx = context(net(), [0, 1])
    params = ctx.initial.trained
    step = params - 0.05 * GPFL(mu=0.1).gradient(0.0 * params, params, None)
    torch.testing.assert_close(step[EMBEDDINGS], 0.995 * params[EMBEDDINGS])
    assert all(torch.equal(step[name], params[name]) for name in (*HEAD, "0.weight", "0.bias"))


def test_a_closed_valve_is_fedper(tmp_path):
    """lam = mu = angle = 0 and a frozen valve that returns 0: out(f, c) = ReLU(f), and f is behind a ReLU."""
    closed = {"model.init": str(tmp_path / "closed.safetensors"), "model.freeze": ["gpfl.scale.*", "gpfl.shift.*"]}
    module = fl.run(RUN, out=tmp_path / "first", rounds=1).model
    tensors = {n: t.clone() * (0 if n.startswith(("gpfl.scale", "gpfl.shift")) else 1) for n, t in module.items()}
    save_file(tensors, tmp_path / "closed.safetensors")
    off = {"client.lam": 0.0, "client.mu": 0.0, "client.angle": 0.0}
    gpfl = fl.run(RUN, out=tmp_path / "gpfl", **closed, **off)
    save_file({n: t for n, t in tensors.items() if "gpfl" not in n}, tmp_path / "plain.safetensors")
    plain = {"model.init": str(tmp_path / "plain.safetensors"), "strategy": "fedper"}
    fedper = fl.run(RUN, out=tmp_path / "fedper", **plain)
    for name in fedper.model:
        torch.testing.assert_close(gpfl.model[name], fedper.model[name], rtol=1e-5, atol=1e-6)
    assert gpfl.metrics[-1]["val/loss"] == pytest.approx(fedper.metrics[-1]["val/loss"], abs=1e-5)


def test_predictions_use_the_received_embeddings_and_leave_no_condition_behind():
    module = net()
    ctx = context(module, [0, 0, 1, 3], Params.of({"2.weight": torch.ones(OUT, HIDDEN), "2.bias": torch.zeros(OUT)}))
    x, start = torch.randn(3, IN), {**ctx.initial.trained}
    own = {**start, **ctx.state}
    personal = torch.tensor([0.5, 0.25, 0.0, 0.25]) @ start[EMBEDDINGS]
    none = replace(ctx, train=View(ctx.train.arrays, np.arange(0)), state=None)
    with torch.no_grad():
        expected = torch.func.functional_call(module, own, (x, personal))
        torch.testing.assert_close(GPFL().predictor(ctx)(x), expected)
        torch.testing.assert_close(module(x), torch.func.functional_call(module, own, (x,)))
        torch.testing.assert_close(GPFL().predictor(none)(x), torch.func.functional_call(module, start, (x,)))
    assert not GPFL().work("train", none, None).update.groups["model"].compact().any()  # no samples, no change


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, floats",
    [
        ({}, BODY + VALVE),
        (  # cnn_tiny on 1 x 8 x 8: 6,090 floats, of which the head has 10 (h + 1)
            {
                "data.shape": [1, 8, 8],
                "data.classes": 10,
                "model": "cnn_tiny",
                "client.steps": 1,
                "client.epochs": None,
            },
            None,
        ),
    ],
)
def test_bytes_are_those_of_body_embeddings_and_valve(settings, floats, tmp_path):
    result = fl.run(RUN, out=tmp_path / "run", **settings)
    if floats is None:
        h = result.model[EMBEDDINGS].shape[1]
        floats = 6090 - 10 * (h + 1) + 10 * h + 2 * h**2 + 6 * h
    rows = result.ledger.to_pylist()
    assert len(rows) == 2 * 2 * 5 and {(row["group"], row["payload_bytes"]) for row in rows} == {("model", 4 * floats)}


def test_the_sample_wise_form_trains_many_clients_together(tmp_path):
    """Clients with one sample, with one class and with less than a batch are among them."""
    owners = {"name": "file", "lists": [[0, 1, 2, 3, 4], [5], list(range(6, 40))]}
    data = {"name": "noise", "shape": [IN], "classes": OUT, "clients": 1, "samples": 80}
    more = {"data": data, "partition": owners, "cohort.size": 3, "client.name": "gpfl_sample", "splits": {"val": 0.0}}
    loop, vmap = (fl.run(RUN, out=tmp_path / p, **more, **{"execution.plan": p}) for p in ("loop", "vmap"))
    for name in loop.model:
        torch.testing.assert_close(vmap.model[name], loop.model[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"client.name": "partial"}, "strategy.name: gpfl needs gpfl.embeddings"),
        ({"strategy.private": ["gpfl.*"]}, "strategy.name: gpfl needs gpfl.embeddings"),
        ({"model.freeze": ["gpfl.*"]}, "strategy.name: gpfl needs gpfl.embeddings"),
        ({"client.lam": -1.0}, "client.lam: -1.0 is negative"),
        ({"execution.plan": "vmap"}, "'vmap' is not possible: GPFL sets loss_over_batch = True"),
        ({"execution.micro_batch": 4}, "micro_batch"),
    ],
)
def test_wrong_combinations_are_refused_before_round_0(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(RUN, out=tmp_path / "run", **settings)
