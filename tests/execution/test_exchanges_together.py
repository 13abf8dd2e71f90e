"""Methods that do more than train: their training is batched, and other exchanges are answered client by client."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fl
from fl import Exchange, LocalTraining, Reply, Sum, Update
from fl.config.config import resolve
from fl.errors import ClientError, ConfigError
from fl.execution.training import batched
from fl.execution.training.all_samples import mean_squares_together
from fl.execution.training.compiled import Compiled
from fl.execution.training.fisher import fisher
from fl.execution.training.flat import Flat
from fl.execution.training.kernels import LinearStack
from fl.execution.training.vmap import Vmap
from fl.models.normalise import SampleNorm
from fl.tasks.supervised import Classification, Regression
from strategies.fedavg import FedAvg
from tests.execution.test_loop_batched import BATCH, like, make, mlp
from tests.execution.test_users_training import config, plan_of

CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 5, "alpha": 1.0},
    "splits": {"val": 0, "test": 0.5},
    "model": {"name": "mlp", "hidden": [16]},
    "cohort": {"size": 4},
    "client": {"batch": 10, "lr": 0.1},
    "execution": {"executor": "serial"},
    "evaluation": {"every": 9},
}
STREAM = {"rounds": None, "stream": {"name": "permuted", "tasks": 2, "rounds": 1}}


@pytest.mark.parametrize(
    "strategy, plan, changes",
    [
        ("fedala", "compiled", {"client.first_epochs": 1}),
        ("fedcurv", "compiled", {}),
        ("fedcurv", "flat", {}),
        ("q_fedavg", "stacked", {}),
        ("fot", "compiled", STREAM),
        ("fedgpm", "compiled", STREAM),
        ("fedewc", "compiled", STREAM),
    ],
)
def test_clients_that_train_together_end_as_those_that_train_alone(strategy, plan, changes, tmp_path):
    """Over several rounds, with states, carries and further exchanges."""
    config = {**CONFIG, **{key: value for key, value in changes.items() if "." not in key}, "strategy": strategy}
    config = {key: value for key, value in config.items() if value is not None}
    dotted = {key: value for key, value in changes.items() if "." in key}
    found = [fl.run(config, out=tmp_path / kind, **dotted, **{"execution.plan": kind}) for kind in ("loop", plan)]
    alone, together = (result.model for result in found)
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=0, atol=1e-5 * float(alone[name].abs().max()))


# -- Fisher information -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", [Compiled, LinearStack, Flat, Vmap])
def test_fisher_information_is_the_mean_square_of_single_gradients(backend):
    """Compared with autograd, sample by sample. One of the clients has no samples."""

    class Squares(LocalTraining):
        sends = ("model", "squares")

        def finish(self, end):
            return {"model": end.delta, "squares": end.fisher(end.start)}, None

    module = mlp()
    chunk, contexts = make(module)
    algorithm = Squares(batch=BATCH, lr=0.1)
    groups = batched.train(algorithm, chunk, backend).update.groups
    for client, ctx in enumerate(contexts):
        model = {name: tensor.clone().requires_grad_() for name, tensor in ctx.received["model"].items()}
        sums = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
        for s in range(len(ctx.train)):
            batch = ctx.train.take(slice(s, s + 1))
            outputs = torch.func.functional_call(ctx.module.eval(), model, (batch["x"],))
            loss = torch.nn.functional.cross_entropy(outputs, batch["y"])
            for name, grad in zip(model, torch.autograd.grad(loss, list(model.values()))):
                sums[name] += grad.square()
        alone = algorithm.work("train", ctx, None).update.groups["squares"]
        for name in model:
            expected = sums[name] / max(len(ctx.train), 1)
            for found in (groups["squares"].row(client), alone, fisher(ctx, ctx.received["model"])):
                torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", [Compiled, LinearStack])
@pytest.mark.parametrize("task, norms", [(Classification(), ()), (Regression(), (SampleNorm(),))], ids=["ce", "ln"])
def test_fisher_information_of_more_samples_than_machine_code_takes_at_once(backend, task, norms):
    """33 to 70 samples, at parameters of each client; compared with autograd in float64."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False), nn.ReLU(), *norms, nn.Linear(7, 4))
    sizes = np.array([70, 0, 32, 33])
    chunk, contexts = make(module, sizes=sizes, task=task, ids=np.arange(4))
    params = like(contexts[0].received["model"], "at", 4, scale=0.5)
    found = mean_squares_together(LocalTraining(lr=0.1), chunk, params, backend)
    exact = copy.deepcopy(module).double()
    for client, ctx in enumerate(contexts):
        values = {name: tensor.double().requires_grad_() for name, tensor in params.row(client).items()}
        sums = [torch.zeros_like(value) for value in values.values()]
        batch = ctx.train.take()
        y = batch["y"] if isinstance(task, Classification) else batch["y"].double()
        outputs = torch.func.functional_call(exact, values, (batch["x"].double(),))
        losses = task.loss(outputs, {"y": y}) if len(y) else []
        for loss in losses:
            for total, grad in zip(sums, torch.autograd.grad(loss, list(values.values()), retain_graph=True)):
                total += grad.square() / len(losses)
        for name, total in zip(values, sums):
            torch.testing.assert_close(found.row(client)[name].double(), total, rtol=1e-4, atol=1e-8)


# -- a user's method: see tests/execution/test_users_training.py for the data -----------------------------------------
class Prepares(LocalTraining):
    """Starts at a tenth of the mean label, which each client prepares."""

    def prepare(self, ctx, inputs):
        y = ctx.train.take()["y"]
        return {"start": inputs.received["model"] + (float(y.mean()) / 10 if len(y) else 0.0)}

    def start(self, inputs):
        return inputs.prepared["start"]


class Ragged(LocalTraining):
    """What it prepares has another shape for each client."""

    def prepare(self, ctx, inputs):
        return torch.zeros(int(ctx.train.take()["y"].max()) if len(ctx.train) else 1)


class Carries(LocalTraining):
    """Answers the question of `Asks` from what it has carried."""

    sends = ("model", "count")

    def carry(self, end):
        return {"n": torch.as_tensor(end.num_examples)}

    def answer(self, name, ctx, carry):
        return Reply(Update({"count": carry["n"].float()}, len(ctx.train)))


class Asks(FedAvg):
    """FedAvg that asks for the number of samples after each round."""

    def round(self, state, ctx):
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        counted = yield Exchange(self.broadcast(state, ctx), {"count": Sum()}, work="count")
        state, metrics = self.step(state, outcome.value, ctx)
        return state, {**metrics, "counted": float(counted.value["count"])}


@pytest.mark.parametrize("plan", ["auto", "loop"])
def test_a_client_starts_from_what_it_has_prepared(plan, tmp_path):
    """From 1 and 2 a step with lr .1 goes to 1 + .9 and 2 + 1.8; the changes have weights 2 and 4."""
    result = fl.run(config(Prepares, **{"execution.plan": plan}), out=tmp_path / "run")
    assert result.model["w.weight"].item() == pytest.approx((2 * 0.9 + 4 * 1.8) / 6)
    assert plan_of(Prepares).kind != "loop"


def test_what_clients_prepare_needs_one_shape(tmp_path):
    wanted = r"prepare of Ragged returned prepare \(20,\) for client 1 and prepare \(10,\) for client 0"
    with pytest.raises(ClientError, match=wanted):
        fl.run(config(Ragged, **{"execution.plan": "flat", "execution.chunk": 2}), out=tmp_path / "run")


class PreparesNumber(LocalTraining):
    def prepare(self, ctx, inputs):
        return {"many": len(ctx.train) > 2}


class PreparesOtherNames(LocalTraining):
    def prepare(self, ctx, inputs):
        return {"few" if len(ctx.train) < 3 else "many": torch.ones(1)}


@pytest.mark.parametrize(
    "kind, wanted",
    [
        (PreparesNumber, "prepare.many of PreparesNumber is a bool; what prepare returns holds tensors only"),
        (PreparesOtherNames, r"returned prepare.many \(1,\) for client \d and prepare.few \(1,\) for client \d"),
    ],
)
def test_what_clients_prepare_are_tensors_of_the_same_names(kind, wanted, tmp_path):
    """Clients that train together would all get the number of the first one."""
    with pytest.raises((ClientError, ConfigError), match=wanted):
        fl.run(config(kind, **{"execution.plan": "flat", "execution.chunk": 2}), out=tmp_path / "run")


class Halves(LocalTraining):
    """Halves what a client learns, in every exchange."""

    def work(self, name, ctx, carry):
        reply = super().work(name, ctx, carry)
        return replace(reply, update=replace(reply.update, groups={"model": reply.update.groups["model"] * 0.5}))


class Warm(FedAvg):
    """FedAvg whose exchange has another name."""

    def round(self, state, ctx):
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx), work="warm")
        return self.step(state, outcome.value, ctx)


def test_a_work_that_calls_the_default_is_applied_once(tmp_path):
    """A step with lr .1 goes from 0 to .1 c for client c's target c; half of it, with weights 2 and 4."""
    result = fl.run(config(Halves, **{"strategy": Warm()}), out=tmp_path / "run")
    plain = fl.run(config(LocalTraining, **{"strategy": Warm()}), out=tmp_path / "plain")
    assert result.model["w.weight"].item() == pytest.approx(plain.model["w.weight"].item() / 2)
    assert plain.model["w.weight"].item() != 0


class AnswersNothing(Carries):
    def answer(self, name, ctx, carry):
        return None


class AnswersTraining(LocalTraining):
    sends = ("model", "count")


@pytest.mark.parametrize(
    "kind, wanted",
    [
        (AnswersNothing, "client AnswersNothing: answer returned NoneType, expected Reply"),
        (AnswersTraining, r"without 'count'; .* The exchange's work is 'count': define answer\(\)"),
    ],
)
def test_a_wrong_answer_is_blamed_on_its_hook(kind, wanted, tmp_path):
    with pytest.raises(ClientError, match=wanted):
        fl.run(config(kind, **{"strategy": Asks()}), out=tmp_path / "run")


class Misdeclared(LocalTraining):
    def prepare(self, inputs):
        return None


def test_hooks_with_other_arguments_are_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"prepare\(self, inputs\) has other arguments than prepare\(self, ctx, inp"):
        resolve(config(Misdeclared))


@pytest.mark.parametrize("plan", ["auto", "loop"])
def test_a_client_answers_with_what_it_has_carried(plan, tmp_path):
    result = fl.run(config(Carries, **{"strategy": Asks(), "execution.plan": plan}), out=tmp_path / "run")
    assert result.metrics[0]["counted"] == 6 and result.model["w.weight"].item() == pytest.approx(10 / 6)
    assert plan_of(Carries, strategy=Asks()).kind != "loop"
