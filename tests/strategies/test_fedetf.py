"""FedETF: the frame's geometry, the loss on paper, traffic, a frame that never changes, turns before predictions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.fedetf import FRAME, TEMPERATURE, FedETF, FedETFBalanced, Frame, WithFrame
from fl import simplex
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.method.training_values import StepContext
from fl.models.binding import Initial
from fl.models.probe import ModuleFacts
from fl.simulation.build import set_up_run
from fl.tasks.supervised import Classification
from fl.tensors.params import Params

IN, HIDDEN, OUT = 6, 8, 4
RUN = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": 5},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "strategy": "fedetf",
    "cohort": {"size": 3},
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))


def context(algorithm, classes, **more) -> ClientContext:
    """Return a context with 12 samples of `classes`, on the extended model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        module = algorithm.extend(mlp(), (IN,), OUT)
        arrays = {"x": torch.randn(12, IN), "y": torch.tensor(classes).repeat(12 // len(classes))}
    view, initial = View(arrays, np.arange(12)), Initial.of(module)
    place = dict(client=3, seed=5, round=0, rounds=9, participation=0, config={"private": [FRAME]})
    shared = {"model": initial.trained.select([n for n in initial.trained if n != FRAME])}
    settings = dict(task=Classification(), training_loop=train, module_facts=ModuleFacts(outputs=OUT))
    views = dict(train=view, val=view, test=view)
    return ClientContext(
        **{**place, **views, **more}, received=shared, state=None, initial=initial, module=module, **settings
    )


# -- the frame --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dimensions, classes", [(10, 10), (64, 10), (2, 2), (7, 3)])
def test_a_frame_has_unit_columns_at_equal_angles(dimensions, classes):
    """E^T E = C / (C - 1) (I - 1 1^T / C)."""
    frame = simplex(dimensions, classes, generator()).double()
    product = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(frame.T @ frame, product, rtol=0, atol=1e-6)
    torch.testing.assert_close(frame.sum(1), torch.zeros(dimensions, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.linalg.matrix_rank(frame, tol=1e-4) == classes - 1
    if classes == 2:
        torch.testing.assert_close(frame[:, 0], -frame[:, 1])


def test_a_frame_comes_from_the_seed_and_has_both_signs():
    one, same, other = (simplex(20, 5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert ((one > 0).any(0) & (one < 0).any(0)).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(simplex(20, 5), one)
    for wrong in ((4, 5), (5, 1)):
        with pytest.raises(ValueError, match="is not at least"):
            simplex(*wrong)


# -- the loss ---------------------------------------------------------------------------------------------------------
def scores_of(frame: torch.Tensor, t: float, z: torch.Tensor) -> torch.Tensor:
    head = Frame(*frame.shape, t)
    head.frame.weight.data.copy_(frame.T)
    return head(z)


@pytest.mark.parametrize("t, floor", [(1.0, 1.37694), (10.0, 1.3450e-4)])
def test_the_loss_has_a_floor(t, floor):
    """log(1 + (C - 1) exp(-t C / (C - 1))), reached at z = column y."""
    frame, y = simplex(10, 10, generator()), torch.arange(10)
    assert floor == pytest.approx(math.log1p(9 * math.exp(-t * 10 / 9)), rel=1e-4)
    at_columns = F.cross_entropy(scores_of(frame.double(), t, frame.T).double(), y, reduction="none")
    torch.testing.assert_close(at_columns, torch.full((10,), floor, dtype=torch.float64), rtol=2e-3, atol=1e-6)
    elsewhere = F.cross_entropy(scores_of(frame, t, torch.randn(200, 10, generator=generator())), y.repeat(20))
    assert elsewhere > floor


def test_scale_zero_and_names_of_classes():
    """The length of z does not matter, z = 0 has scores 0, and other names of classes are other columns."""
    frame, z = simplex(6, 4, generator()), torch.randn(5, 6, generator=generator(1))
    scores = scores_of(frame, 10.0, z)
    torch.testing.assert_close(scores_of(frame, 10.0, 7.0 * z), scores)
    assert torch.equal(scores_of(frame, 10.0, torch.zeros(1, 6)), torch.zeros(1, 4))
    order = [2, 0, 3, 1]
    torch.testing.assert_close(scores_of(frame[:, order], 10.0, z), scores[:, order])


def test_a_rare_class_costs_log_10_with_balanced_softmax():
    """Counts (9, 1), equal outputs; and without a sample of a class its count is 1."""
    view = View({"y": torch.tensor([0] * 9 + [1])}, np.arange(10))
    client = FedETFBalanced()
    for classes, expected in ((2, [math.log(10 / 9), math.log(10)]), (3, [math.log(11 / 9), math.log(11)])):
        facts = client.facts(view, Classification(), classes)
        at = StepContext({}, None, {}, None, Phase(SGD(), lr=0.1, batch=2), None, facts=facts)
        batch = {"x": torch.zeros(2, 1), "y": torch.tensor([0, 1])}
        losses = client.objective(lambda x, k=classes: torch.zeros(2, k), batch, at, Classification())
        assert losses.tolist() == pytest.approx(expected)


def test_balanced_softmax_with_equal_counts_has_the_plain_gradient():
    plain, balanced = FedETF(epochs=2, batch=4), FedETFBalanced(epochs=2, batch=4)
    one, other = (c.work("train", context(c, [0, 1, 2, 3]), None).update.groups["model"] for c in (plain, balanced))
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)


# -- the temperature --------------------------------------------------------------------------------------------------
def test_the_temperature_stays_positive_in_the_forward_pass_and_gets_a_gradient():
    head, z = Frame(4, 4, 1.0), torch.randn(3, 4, generator=generator())
    unit = head(z)
    for value, used in ((2.0, 2.0), (-3.0, 0.01)):
        head.temperature.data.fill_(value)
        torch.testing.assert_close(head(z), used * unit, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(head(z).square().sum() / 2, head.temperature)
        torch.testing.assert_close(gradient.squeeze(), used * unit.square().sum(), rtol=1e-5, atol=1e-6)


def test_decay_leaves_the_temperature_out():
    client = FedETF(decay=0.5)
    params = Params.of({"0.weight": torch.tensor([2.0]), TEMPERATURE: torch.tensor([[10.0]])})
    found = client.gradient(params * 0.0, params, None)
    assert found["0.weight"].item() == 1.0 and found[TEMPERATURE].item() == 0.0
    with pytest.raises(ValueError, match="client.decay: 0.1"):
        FedETF(optimiser=SGD(weight_decay=0.1))


# -- the model --------------------------------------------------------------------------------------------------------
def test_the_last_layer_becomes_the_projection():
    original = mlp()
    x = torch.randn(3, IN)
    z, names = original(x), [name for name, _ in original.named_parameters()]
    same, wider = WithFrame(mlp(), OUT, None, 10.0), WithFrame(mlp(), OUT, 5, 10.0)
    torch.testing.assert_close(same(x), 10 * F.normalize(z, dim=-1) @ same.get_parameter(FRAME).T)
    for net, k in ((same, OUT), (wider, 5)):
        assert [name for name, _ in net.named_parameters()] == [*names, TEMPERATURE, FRAME]
        assert net.get_parameter("2.weight").shape == (k, HIDDEN) and net.get_parameter(FRAME).shape == (OUT, k)
    with pytest.raises(ValueError, match="has 4 outputs, and the task has 5"):
        WithFrame(mlp(), 5, None, 1.0)
    with pytest.raises(ValueError, match="single linear layer"):
        WithFrame(nn.Linear(IN, OUT), OUT, None, 1.0)


MLP = IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT  # floats that FedAvg sends


@pytest.mark.parametrize(
    "settings, floats",
    [
        ({}, MLP + 1),
        ({"client.dimensions": 7}, MLP + 3 * (HIDDEN + 1) + 1),
        ({"client.name": "fedetf_balanced", "data.shape": [1, 8, 8], "data.classes": 10, "model": "cnn_tiny"}, 6091),
    ],
)
def test_bytes_are_those_of_fedavg_and_one_number(settings, floats, tmp_path):
    """|phi| + h k + k + 1 floats; E is in no message and keeps the values that the seed gives."""
    result = fl.run(RUN, out=tmp_path / "run", **settings)
    assert {row["payload_bytes"] for row in result.ledger.to_pylist()} == {4 * floats}
    frame = result.model[FRAME].double()
    classes, k = frame.shape
    centred = classes / (classes - 1) * (torch.eye(classes) - 1 / classes)
    torch.testing.assert_close(frame @ frame.T, centred.double(), rtol=0, atol=1e-6)
    first = fl.run(RUN, out=tmp_path / "first", **settings, **{"rounds": 1}).model
    assert torch.equal(first[FRAME], result.model[FRAME]) and not torch.equal(
        first[TEMPERATURE], result.model[TEMPERATURE]
    )
    assert k == settings.get("client.dimensions", classes)


def test_clients_train_together_and_as_in_the_loop(tmp_path):
    """The (1, 1) temperature lies flat; so do clients with one sample and with less than a batch."""
    owners = [[0, 1, 2, 3, 4], [5], list(range(6, 40))]
    data = {"name": "noise", "shape": [IN], "classes": OUT, "clients": 1, "samples": 80}
    more = {"data": data, "partition": {"name": "file", "lists": owners}, "cohort.size": 3, "splits": {"val": 0.0}}
    assert set_up_run(resolve(read(RUN, {**more, "execution.plan": "auto"}))).plan.kind == "flat"
    loop, flat = (fl.run(RUN, out=tmp_path / p, **more, **{"execution.plan": p}) for p in ("loop", "flat"))
    for name in loop.model:
        torch.testing.assert_close(flat.model[name], loop.model[name], rtol=1e-5, atol=1e-6)


def test_turns_train_copies_of_the_frame_and_the_projection_before_predictions():
    """By autograd: full-batch steps on E, then on (W, b), twice; the body and the temperature do not move."""
    settings = {"turn_epochs": 1, "frame_lr": 0.3, "projection_lr": 0.2, "batch": "full"}
    client = FedETF(alternations=2, **settings)
    ctx = context(client, [0, 1])
    start, batch = {**ctx.initial.trained}, ctx.train.take()
    w = {name: tensor.clone() for name, tensor in start.items()}
    for trains, lr in 2 * (((FRAME,), 0.3), (("2.weight", "2.bias"), 0.2)):
        leaves = {name: tensor.clone().requires_grad_(name in trains) for name, tensor in w.items()}
        z = F.relu(batch["x"] @ leaves["0.weight"].T + leaves["0.bias"]) @ leaves["2.weight"].T + leaves["2.bias"]
        F.cross_entropy(10 * F.normalize(z, dim=-1) @ leaves[FRAME].T, batch["y"]).backward()
        w |= {name: (leaves[name] - lr * leaves[name].grad).detach() for name in trains}
    tuned = dict(client.predictor(ctx).named_parameters())
    for name, expected in w.items():
        torch.testing.assert_close(tuned[name].detach(), expected, rtol=1e-5, atol=1e-6)
    untuned = dict(FedETF(**settings).predictor(ctx).named_parameters())
    assert all(torch.equal(untuned[name], tensor) for name, tensor in start.items())
    server = replace(ctx, train=View(ctx.train.arrays, np.arange(0)))
    assert all(torch.equal(dict(client.predictor(server).named_parameters())[n], t) for n, t in start.items())
    assert not client.work("train", server, None).update.groups["model"].compact().any()  # no samples, no change


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"client.name": "sgd"}, "strategy.name: fedetf needs the frame"),
        ({"model.freeze": ["etf.*"]}, "strategy.name: fedetf needs the frame"),
        ({"client.dimensions": 3}, "client: .*dimensions: 3 is not at least 4"),
        ({"task": "regression"}, "task: client FedETF needs a class for each sample, and Regression is no"),
        ({"client.temperature": 0.0}, "client.temperature: 0.0 is not at least 0.01"),
        ({"client": {"name": "fedetf_balanced", "balance": 0.0}}, "client.balance: 0.0 is not positive"),
    ],
)
def test_wrong_combinations_are_refused_before_round_0(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(RUN, out=tmp_path / "run", **settings)
