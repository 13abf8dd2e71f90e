"""PeFLL and pFedHN: gradients by hand and by autograd, three exchanges, traffic, clients that never train."""

import math
import os
import signal
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.pefll import PeFLL as Client
from clients.pefll import descriptor
from fl import Optimiser, Params, PseudoGradient, ServerContext
from fl.check.bench import own, with_methods
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.reduction import Meta
from fl.method.requests import ExchangeResult
from fl.models.architectures.linear import MLP
from fl.models.binding import Initial, module_params
from fl.registry import lookup
from fl.simulation.simulation import Simulation
from fl.tasks.supervised import Classification
from strategies.hypernetwork import PullBack, State, first_hypernetwork, generate
from strategies.pefll import LabelledInputs, PeFLL
from strategies.pfedhn import PFedHN
from tests.interfaces.laws import check_resumed, rows

SMALL = {"name": "mlp", "hidden": [7]}
METHOD = {"name": "pefll", "descriptor": 3, "hidden": [8], "embedding": SMALL}
CONFIG = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 8, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.0, "test": 0.3, "clients": 2},
    "model": {"name": "mlp", "hidden": [5]},
    "cohort": {"size": 3},
    "strategy": METHOD,
    "client": {"steps": 3, "batch": 8, "lr": 0.1, "clip": None, "optimiser": "sgd"},
    "evaluation": {"clients": "held_out", "server": False},
    "execution": {"executor": "serial"},
}
LABELS = 4


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_gradients_by_hand():
    """h = A v, v = B s with A = 2, B = 3, s = 1: theta = 6; the client answers 5.5."""
    hyper = Params.of({"hyper.heads.w.weight": torch.tensor([[2.0]]), "hyper.heads.w.bias": torch.zeros(1)})
    v = torch.tensor([3.0])
    theta = generate(hyper, v)
    assert theta["w"].tolist() == [6.0]
    pulled = PullBack(hyper, {9: v}).lift(Params.of({"w": torch.tensor([5.5])}) - theta, Meta(9, 1))
    assert pulled.hyper["hyper.heads.w.weight"].tolist() == [[1.5]] and pulled.descriptors[9].tolist() == [1.0]
    embedding, ones = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    (of_b,) = torch.autograd.grad(embedding(ones).mean(0), embedding.weight, pulled.descriptors[9])
    assert of_b.tolist() == [[1.0]]


def context(module, received, rows, initial, client=0) -> ClientContext:
    generator = torch.Generator().manual_seed(3)
    arrays = {"x": torch.randn(9, 6, generator=generator), "y": torch.randint(0, LABELS, (9,), generator=generator)}
    view = View(arrays, np.asarray(rows, np.int64))
    own = {"config": {}, "state": None, "initial": initial, "module": module, "task": Classification()}
    own["training_loop"] = train
    return ClientContext(client, 0, 0, 1, 0, received, train=view, val=view, test=view, **own)


@pytest.fixture(scope="module")
def networks():
    """A target model, an embedding network with tanh, and a hypernetwork for them."""
    torch.manual_seed(0)
    target = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, LABELS))
    inner = nn.Sequential(nn.Linear(6 + LABELS, 7), nn.Tanh(), nn.Linear(7, 3))
    model = module_params(target).clone()
    hyper = first_hypernetwork(model, 3, (8, 8), torch.Generator().manual_seed(1))
    return target, LabelledInputs(inner, LABELS, planes=False), hyper, model


ONE_STEP = Client(steps=1, batch="full", lr=0.1, clip=None, optimiser=fl.SGD())


@pytest.mark.parametrize("standardise", [False, True])
def test_one_local_step_gives_the_gradient_of_the_whole_chain(networks, standardise):
    """With one plain step, the three exchanges compute lr times the gradient of L(h(v(S))) in eta_v and eta_h."""
    target, embedding, hyper, _ = networks
    eta, initial = Params.of(dict(embedding.named_parameters())), Initial.of(target)
    told = ONE_STEP.work("describe", context(embedding, {"embedding": eta}, range(9), initial), None)
    v = told.update.groups["descriptor"]
    theta = generate(hyper, v, standardise)
    trained = ONE_STEP.work("train", context(target, {"model": theta}, range(9), initial), None)
    pulled = PullBack(hyper, {0: v}, standardise).lift(trained.update.groups["model"], Meta(0, 9))
    ctx = context(embedding, {"gradient": pulled.descriptors[0]}, range(9), initial)
    passed = ONE_STEP.work("backward", ctx, told.carry).update.groups["embedding"]

    batch, leaves = ctx.train.take(), {n: t.clone().requires_grad_() for n, t in {**eta, **hyper}.items()}
    z = torch.func.functional_call(embedding, {n: leaves[n] for n in eta}, (batch["x"], batch["y"])).mean(0)
    if standardise:
        z = (z - z.mean()) / (z.std(correction=0) + 1e-6)
    for k in range(2):
        z = F.relu(leaves[f"hyper.hidden.{k}.weight"] @ z + leaves[f"hyper.hidden.{k}.bias"])
    model = {n: leaves[f"hyper.heads.{n}.weight"] @ z + leaves[f"hyper.heads.{n}.bias"] for n in theta}
    loss = F.cross_entropy(torch.func.functional_call(target, model, (batch["x"],)), batch["y"])
    loss.backward()
    for ours in (passed, pulled.hyper):
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, 0.1 * leaves[name].grad, rtol=2e-5, atol=2e-7)


def test_descriptors(networks):
    """They do not depend on the order of a batch, nor on its size; equal data give equal models."""
    target, embedding, hyper, _ = networks
    eta, initial = {"embedding": Params.of(dict(embedding.named_parameters()))}, Initial.of(target)

    def told(rows, client=0, **settings):
        rule = replace(ONE_STEP, **settings)
        return rule.work("describe", context(embedding, eta, rows, initial, client), None)

    whole = told(range(9)).update.groups["descriptor"]
    torch.testing.assert_close(told(range(8, -1, -1)).update.groups["descriptor"], whole, rtol=1e-6, atol=1e-7)
    twice = told([*range(9), *range(9)]).update.groups["descriptor"]  # a mean, not a sum
    torch.testing.assert_close(twice, whole, rtol=1e-6, atol=1e-7)
    assert torch.equal(told(range(9), client=5, batch=32).update.groups["descriptor"], whole)
    drawn = told(range(9), batch=4).carry["rows"]
    assert len(set(drawn.tolist())) == 4
    empty = told([])
    assert empty.update.num_examples == 0 and empty.update.groups["descriptor"].tolist() == [0, 0, 0]


def test_the_first_models_are_near_the_runs_first_model(networks):
    _, _, hyper, model = networks
    first = generate(hyper, torch.tensor([1.0, -1.0, 0.5]))
    assert first.layout is model.layout
    assert 0 < float((first - model).compact().abs().max()) < 0.1
    zeroed = hyper.replace(
        {n: torch.zeros_like(t) for n, t in hyper.items() if ".heads." in n and n.endswith(".weight")}
    )
    assert torch.equal(generate(zeroed, torch.ones(3))["0.weight"], model["0.weight"])


def test_labels_as_planes():
    seen = []
    module = LabelledInputs(nn.Sequential(nn.Flatten(), nn.Linear(5 * 4, 2)), 3, planes=True)
    module.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.arange(16.0).view(2, 2, 2, 2)
    descriptor(module, dict(module.named_parameters()), {"x": x, "y": torch.tensor([2, 0])})
    assert torch.equal(seen[0][:, :2], x)
    assert seen[0][0, 2:].flatten(1).tolist() == [[0] * 4, [0] * 4, [1] * 4]


# -- runs -------------------------------------------------------------------------------------------------------------
def d_of(*widths: int) -> int:
    return sum((a + 1) * b for a, b in zip(widths, widths[1:]))


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("serial") / "run")


def groups(result):
    return {
        (row["exchange"], row["direction"], row["group"]): row["payload_bytes"] for row in result.ledger.to_pylist()
    }


@pytest.mark.parametrize("hidden, inner", [(5, 7), (9, 4)])
def test_the_ledger_has_the_closed_form(serial, tmp_path, hidden, inner):
    """4 (d_v + d + l) bytes each way; the hypernetwork, which is larger than any message, is in none."""
    change = {"model.hidden": [hidden], "strategy.embedding.hidden": [inner], "rounds": 1}
    result = serial if (hidden, inner) == (5, 7) else fl.run(CONFIG, out=tmp_path / "run", **change)
    d, d_v, length = d_of(6, hidden, 4), d_of(6 + 4, inner, 3), 3
    for row in result.metrics:
        assert row["uplink_bytes"] == row["downlink_bytes"] == 3 * 4 * (d_v + d + length)
    assert groups(result) == {
        (0, "down", "embedding"): 4 * d_v,
        (0, "up", "descriptor"): 4 * length,
        (1, "down", "model"): 4 * d,
        (1, "up", "model"): 4 * d,
        (2, "down", "gradient"): 4 * length,
        (2, "up", "embedding"): 4 * d_v,
    }


def test_a_convolution_describes_images(tmp_path):
    """With labels as planes, d_v counts 1 + 10 planes in and l numbers out."""
    images = {"data": "digits", "partition": {"name": "iid", "clients": 6}, "model": {"name": "cnn_tiny"}, "rounds": 1}
    method = METHOD | {"labels": "planes", "embedding": {"name": "cnn_tiny"}}
    result = fl.run(CONFIG | images | {"strategy": method}, out=tmp_path / "run")
    build = lookup("model", "cnn_tiny")().build
    d, d_v = (module_params(build(shape, outputs)).numel for shape, outputs in (((1, 8, 8), 10), ((11, 8, 8), 3)))
    assert result.metrics[0]["uplink_bytes"] == result.metrics[0]["downlink_bytes"] == 3 * 4 * (d_v + d + 3)


def test_a_resumed_run_has_the_same_bits(serial, tmp_path):
    check_resumed(CONFIG, serial, tmp_path)


def test_clients_that_never_train_are_asked_first(serial, tmp_path):
    """They get models of their own; their rows are in no gradient, and evaluating them changes no bit."""
    seldom = fl.run(CONFIG, out=tmp_path / "seldom", **{"evaluation.every": 3})
    assert seldom.digest == serial.digest and seldom.ledger.equals(serial.ledger)
    assert not [row for row in serial.ledger.to_pylist() if row["client"] >= 6]
    assert serial.metrics[-1]["clients/loss_std"] > 0


def test_learning_rate_0_moves_nothing(tmp_path):
    one, two = (fl.run(CONFIG, out=tmp_path / str(r), **{"client.lr": 0.0, "rounds": r}) for r in (1, 2))
    assert one.digest == two.digest and one.metrics[0]["gradient_norm"] == 0


@pytest.fixture(scope="module")
def pfedhn(tmp_path_factory):
    more = {"strategy": {"name": "pfedhn", "descriptor": 3, "hidden": [8]}}
    return fl.run(CONFIG | more, out=tmp_path_factory.mktemp("pfedhn") / "run")


def test_pfedhn_sends_models_alone(pfedhn):
    d = d_of(6, 5, 4)
    assert groups(pfedhn) == {(0, "down", "model"): 4 * d, (0, "up", "model"): 4 * d}
    assert all(row["uplink_bytes"] == row["downlink_bytes"] == 3 * 4 * d for row in pfedhn.metrics)


def test_pfedhn_by_hand():
    """One client of three trains: h(e) = A e, A = 2, e = 3; its answer is 5.5, and plain steps have the rate 1."""
    rule = PFedHN(descriptor=1, hidden=(), clip=None, server_optimiser=PseudoGradient(optimiser=fl.SGD()))
    networks = {"hyper.heads.w.weight": [[2.0]], "hyper.heads.w.bias": [0.0], "embeddings": [[7.0], [3.0], [8.0]]}
    networks = Params.of({name: torch.tensor(values) for name, values in networks.items()})
    state = State(networks, rule.server_optimiser.init(networks))
    ctx = ServerContext(0, 0, 1, 3, np.array([1]), Classification(), nn.Identity())
    broadcast = rule.broadcast(state, ctx)
    assert broadcast.groups_for(1, None)["model"]["w"].tolist() == [6.0]
    assert broadcast.names == {"model"}
    reduction = rule.reduction(state, ctx)["model"]
    pulled = reduction.finish(reduction.lift(Params.of({"w": torch.tensor([-0.5])}), Meta(1, 4)))
    after, metrics = rule.step(state, {"model": pulled}, ctx)
    assert after.networks["embeddings"].flatten().tolist() == [7.0, 2.0, 8.0]  # 3 - 2 * .5
    assert after.networks["hyper.heads.w.weight"].item() == 0.5  # 2 - 3 * .5
    assert after.networks["hyper.heads.w.bias"].item() == -0.5
    assert metrics["gradient_norm"] == pytest.approx(math.sqrt(1.5**2 + 0.5**2 + 1.0**2))
    clipped, _ = replace(rule, clip=0.5).step(state, {"model": pulled}, ctx)
    assert float(fl.norm(clipped.networks - networks)) == pytest.approx(0.5)
    decayed, _ = replace(rule, decay=0.1).step(state, {"model": pulled}, ctx)
    assert decayed.networks["embeddings"].flatten().tolist() == pytest.approx([6.3, 1.7, 7.2])


def test_a_client_that_fails_in_the_second_exchange_is_left_out(tmp_path):
    """It gets no third message, and the mean is over the others, as if it had not been drawn."""
    settings = {"rounds": 1, "cohort": {"name": "fixed", "clients": [0, 1, 4]}, "execution.on_client_error": "drop"}
    failing = fl.run(CONFIG, out=tmp_path / "failing", client=f"{__file__}:FailsToTrain", **settings)
    without = fl.run(CONFIG, out=tmp_path / "without", **settings | {"cohort.clients": [0, 4]})
    assert failing.digest == without.digest and failing.metrics[0]["dropped"] == 1
    assert {row["client"] for row in failing.ledger.to_pylist() if row["exchange"] == 2} == {0, 4}


def test_rounds_in_which_all_clients_drop_out_after_the_first_exchange(tmp_path):
    devices = {"lognormal": {"ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5}}
    system = {"devices": devices, "dropout": 0.7}
    result = fl.run(CONFIG, out=tmp_path / "run", rounds=6, system=system, cohort={"size": 2})
    exchanges = [{row["exchange"] for row in result.ledger.to_pylist() if row["round"] == r} for r in range(6)]
    assert {0} in exchanges and {0, 1, 2} in exchanges  # the cohort of the second exchange is empty in a round


@dataclass(frozen=True, kw_only=True)
class FailsToTrain(Client):
    """Client 1 fails in its training."""

    steps: int | None = 3
    batch: int = 8
    lr: float = 0.1
    clip: float | None = None
    optimiser: Optimiser = field(default_factory=fl.SGD)

    def work(self, name, ctx, carry):
        if name == "train" and ctx.client == 1:
            raise RuntimeError("out of battery")
        return super().work(name, ctx, carry)


def test_clients_without_samples_are_left_out():
    """In evaluations such a client gets the model of the descriptor 0."""
    rule = PeFLL(descriptor=2, hidden=(), embedding=MLP(hidden=()))
    ctx = ServerContext(0, 0, 1, 3, np.arange(3), Classification(), nn.Identity(), sample_shape=(6,), outputs=4)
    ctx = replace(ctx, evaluated=np.arange(3))
    state = rule.init(Params.of({"w": torch.zeros(2)}), ctx)
    told = [(torch.ones(2) * c, Meta(c, 0 if c == 1 else 5)) for c in range(3)]
    told = ExchangeResult({"descriptor": told}, np.arange(3), np.array([5, 0, 5]), {})
    exchanges = rule.round(state, ctx)
    assert next(exchanges).cohort is None and exchanges.send(told).cohort == [0, 2]
    requests = rule.evaluation(state, ctx)
    assert next(requests).free
    descriptors = requests.send(told).broadcast.shared["descriptors"]
    assert {c: v.tolist() for c, v in descriptors.items()} == {0: [0.0, 0.0], 1: [0.0, 0.0], 2: [2.0, 2.0]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"strategy.labels": "planes"}, r"strategy.labels: planes are for images .* x is \(6,\); use vector"),
        ({"strategy.descriptor": 0}, "strategy.descriptor: 0 is not at least 1"),
        ({"strategy.hidden": [0]}, "strategy.hidden: .* has a width that is not positive"),
        ({"strategy.standardise": "all"}, "strategy.standardise: 'all' is not 'each' or 'none'"),
        ({"client.epochs": 1}, "client.steps: 3 beside epochs: 1"),
    ],
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "run", **change)


class Normalised:
    """An architecture with running statistics."""

    def build(self, shape, outputs):
        return nn.BatchNorm2d(shape[0])


def test_networks_with_buffers_are_refused():
    shape = (3, 16, 16)
    images = ServerContext(0, 0, 1, 3, np.array([1]), Classification(), nn.Identity(), sample_shape=shape, outputs=10)
    with pytest.raises(ValueError, match="are no parameters, so no message holds them"):
        PeFLL(labels="planes", embedding=Normalised()).network(images)


# -- Ray --------------------------------------------------------------------------------------------------------------
@pytest.mark.ray
def test_workers_killed_between_exchanges_change_nothing(serial, tmp_path):
    """In round 1 one worker is killed before the second exchange and the other before the third."""
    killed = []

    def round_(self, state, ctx):
        inner, answer, count = own(self).round(self, state, ctx), None, 0
        while True:
            try:
                request = inner.send(answer)
            except StopIteration as end:
                return end.value
            if ctx.round == 1 and count:
                victim = simulation.executor.members[count - 1]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)
            answer, count = (yield request), count + 1

    ray = {"execution.executor": "ray", "execution.workers": 2, "execution.chunk": 1}
    config = resolve(read(CONFIG, ray))
    config = replace(config, strategy=with_methods(config.strategy, round=round_))
    with Simulation(config, tmp_path / "run") as simulation:
        result = simulation.run()
    assert len(set(killed)) == 2

    def without(rows):
        return [{k: v for k, v in row.items() if k != "retried"} for row in rows]

    assert result.digest == serial.digest and result.ledger.to_pylist() == serial.ledger.to_pylist()
    assert without(rows(result)) == without(rows(serial))


def test_an_embedding_network_that_does_not_take_the_inputs_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(
        fl.ConfigError, match=r"strategy.embedding: it does not take .*labels: vector .*strategy.labels"
    ):
        fl.run(CONFIG, out=tmp_path / "run", **{"strategy.embedding": "resnet8"})
