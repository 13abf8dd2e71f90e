"""Gradients of one client in machine code, as `LocalSteps` takes them; expected values from autograd in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fl
from fl import LocalSteps, LocalTraining, LossOfOutputs
from fl.models.dropout import Dropout
from fl.models.normalise import FeatureNorm, SampleNorm
from fl.tasks.supervised import Classification, Regression
from tests.execution.test_exchanges_together import CONFIG
from tests.execution.test_loop_batched import like, make

SIZES = [43, 20, 1]


def network(*between: nn.Module, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = (nn.Linear(12, 17, bias=bias), *between, nn.Linear(17, 9, bias=bias), nn.Tanh())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(9, 4, bias=bias))


def contexts(module: nn.Module, task=Classification()):
    sizes = np.array(SIZES)
    found = make(module, sizes=sizes, task=task, ids=np.arange(len(sizes)))[1]
    return [replace(ctx, machine_code=True) for ctx in found]


def expected(module, tensors, batch, task, names):
    """Return the sum of the losses and the gradient of their mean in the tensors `names`."""
    exact = copy.deepcopy(module).double().eval()
    values = {name: tensor.detach().double().requires_grad_(name in names) for name, tensor in tensors.items()}
    outputs = torch.func.functional_call(exact, values, (batch["x"].double(),))
    y = batch["y"] if isinstance(task, Classification) else batch["y"].double()
    losses = task.loss(outputs, {"y": y})
    return float(losses.detach().sum()), dict(
        zip(names, torch.autograd.grad(losses.mean(), [values[name] for name in names]))
    )


networks = pytest.mark.parametrize(
    "module, task",
    [
        (network(nn.ReLU()), Classification()),
        (network(nn.ReLU(), FeatureNorm(), bias=False), Classification()),
        (network(nn.Sigmoid(), SampleNorm()), Regression()),
    ],
    ids=["relu", "fn", "ln"],
)


@networks
def test_gradients_in_all_or_some_tensors_are_those_of_autograd(module, task):
    """Batches of 20, 20 and 3 samples, of 20, and of 1; the others change, and so does the part that is trained."""
    everything = [name for name, _ in module.named_parameters()]
    last = [name for name in everything if name.startswith(everything[-1].split(".")[0])]
    for ctx in contexts(module, task):
        steps = LocalSteps(LocalTraining(batch=20, lr=0.1), ctx)
        assert steps.machine_code is not None
        model, total, taken = ctx.received["model"], 0.0, 0
        for batch in steps:
            for k, names in enumerate((last, everything, last, everything[:1], last)):
                others = like(model, f"others/{k // 2}", scale=0.5)
                own = like(model, f"own/{k}", scale=0.5).select(names)
                found = steps.gradient(own, others)
                whole = others.replace(own)
                loss, gradient = expected(module, whole, batch, task, names)
                assert float(steps.last) == pytest.approx(loss, rel=1e-5)
                total, taken = total + loss * (k == 0), taken + (k == 0)
                for name in names:
                    torch.testing.assert_close(found[name].double(), gradient[name], rtol=1e-4, atol=1e-6)
        assert taken == steps.taken and steps.loss == pytest.approx(total / len(ctx.train), rel=1e-5)


def test_others_that_are_missing_are_initial_and_those_that_are_written_count_anew():
    module = network(nn.ReLU())
    ctx = contexts(module)[1]
    others, task = like(ctx.received["model"], "others", scale=0.5), ctx.task
    steps, names = LocalSteps(LocalTraining(batch=20, lr=0.1), ctx), ["5.weight", "5.bias"]
    own = others.select(names)
    for batch in steps:
        for given in (None, others, others.select(["1.weight"]), others):
            tensors = ctx.initial.trained if given is None else ctx.initial.trained.replace(given)
            for name, expect in expected(module, tensors.replace(own), batch, task, names)[1].items():
                torch.testing.assert_close(steps.gradient(own, given)[name].double(), expect, rtol=1e-4, atol=1e-6)
            if given is others:
                others["1.bias"].add_(1.0)


def test_gradients_do_not_depend_on_those_before():
    """A client has the same bits before and after another one, whose numbers are left in the memory."""
    first, second, _ = contexts(network(nn.ReLU()))

    def gradients(ctx):
        steps, own = LocalSteps(LocalTraining(batch=20, lr=0.1), ctx), ctx.received["model"].select(["5.*"])
        return [steps.gradient(own, ctx.received["model"]) for _ in steps]

    alone = gradients(second)
    gradients(first)
    for one, other in zip(alone, gradients(second), strict=True):
        assert torch.equal(one.buffers[0], other.buffers[0])


def test_a_label_that_is_no_class_ends_with_an_error():
    ctx = contexts(network(nn.ReLU()))[1]
    steps = LocalSteps(LocalTraining(batch=20, lr=0.1), ctx, batches=[{**ctx.train.take(), "y": torch.full((20,), 9)}])
    for _ in steps:
        with pytest.raises(IndexError, match="label 9 of sample 0 is not one of the model's 4 classes"):
            steps.gradient(ctx.received["model"])


def test_a_bound_module_may_change_the_tensors_that_are_not_trained():
    """As torch.optim does; that raises no version of the parameters."""
    ctx, found = contexts(network(nn.ReLU()))[0], []
    for machine_code in (True, False):
        steps = LocalSteps(LocalTraining(batch=20, lr=0.1), replace(ctx, machine_code=machine_code))
        body = ctx.received["model"].clone()
        own = body.select(["5.*"]).clone()
        for _ in steps:
            steps.gradient(own, body)
            steps.bind(body)
            with torch.no_grad():
                for parameter in ctx.module.parameters():
                    parameter.mul_(2.0)
            gradient = steps.gradient(own, body)
        found.append(gradient.buffers[0])
    torch.testing.assert_close(*found)


BATCHES = {
    "strided": lambda x, y: (x.repeat_interleave(2, 1)[:, ::2], y.repeat_interleave(2)[::2]),
    "soft labels": lambda x, y: (x, torch.eye(4)[y] * 0.9 + 0.025),
    "no label": lambda x, y: (x, torch.where(torch.arange(len(y)) < 2, -100, y)),
}


@pytest.mark.parametrize("form", BATCHES)
def test_other_batches_that_torch_takes_have_autograds_gradients(form):
    ctx, found = contexts(network(nn.ReLU()))[1], []
    batch = ctx.train.take()
    batch = {**batch, **dict(zip("xy", BATCHES[form](batch["x"], batch["y"])))}
    for machine_code in (True, False):
        steps = LocalSteps(LocalTraining(batch=20, lr=0.1), replace(ctx, machine_code=machine_code), batches=[batch])
        found += [steps.gradient(ctx.received["model"]).buffers[0] for _ in steps]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name, rows", [("x", (20, 8)), ("x", (20, 20)), ("y", (10,)), ("y", (40,))])
def test_batches_that_do_not_fit_are_refused_by_torch(name, rows):
    ctx = contexts(network(nn.ReLU()))[1]
    batch = ctx.train.take()
    wrong = {**batch, name: torch.zeros(rows, dtype=batch[name].dtype)}
    for _ in (steps := LocalSteps(LocalTraining(batch=20, lr=0.1), ctx, batches=[wrong])):
        with pytest.raises((RuntimeError, ValueError)):
            steps.gradient(ctx.received["model"])


class OfOutputs(LossOfOutputs):
    """Has a loss of the outputs."""

    def sample_losses(self, own, constants, batch, config, task):
        return own.outputs.square().sum(-1)


class Squared(LocalTraining):
    """Has an objective of its own."""

    def objective(self, net, batch, at, task):
        return net(batch["x"]).square().sum(-1)


def test_dropout_an_own_objective_and_other_models_take_autograd():
    plain = contexts(network(nn.ReLU()))[0]
    masked = contexts(network(nn.ReLU(), Dropout(0.5)))[0]
    convolution = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(8, 4))
    other = contexts(convolution)[0]
    algorithm = LocalTraining(batch=20, lr=0.1)
    assert LocalSteps(Squared(batch=20, lr=0.1), plain).machine_code is None
    assert LocalSteps(OfOutputs(batch=20, lr=0.1), plain).machine_code is None
    assert LocalSteps(algorithm, masked).machine_code is None and LocalSteps(algorithm, other).machine_code is None
    assert LocalSteps(algorithm, masked, training=False).machine_code is not None
    assert LocalSteps(algorithm, replace(plain, machine_code=False)).machine_code is None


def test_fedala_has_the_same_bits_whatever_the_chunk(tmp_path):
    runs = [
        fl.run({**CONFIG, "strategy": "fedala"}, out=tmp_path / str(chunk), **{"execution.chunk": chunk})
        for chunk in (1, 4)
    ]
    assert torch.equal(runs[0].model.buffers[0], runs[1].model.buffers[0])
