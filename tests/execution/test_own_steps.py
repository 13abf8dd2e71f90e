"""The hooks `step` and `trainings`: closed forms on a/2 (w - b)^2, and clients that train together are those alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import fl
from clients.apfl import APFL
from clients.ditto import Ditto
from clients.feddpa_lora import FedDPALoRA
from clients.per_fedavg import PerFedAvg
from clients.pfedme import PFedMe
from fl import LocalTraining, Params, Penalty
from fl.config.config import resolve
from fl.errors import ConfigError
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from fl.execution.training.flat import Flat
from fl.execution.training.kernels import LinearStack
from fl.execution.training.vmap import Vmap
from fl.method.optimiser import SGD, Adam
from fl.models.adapters.lora import LoRA
from fl.simulation.build import set_up_run
from fl.tensors.trees import named_leaves, row
from tests.execution.test_loop_batched import BATCH, TOLERANCE, like, make, mlp
from tests.strategies.test_personal_methods import LR, A, B, quadratic, sent

BACKENDS = (Compiled, LinearStack, Flat, Vmap)


@dataclass(frozen=True, kw_only=True)
class ExtraGradient(LocalTraining):
    """Look ahead and step back: w <- w - lr grad f(w - lr grad f(w)); keeps the mean of the looks ahead.

    Korpelevich 1976. On a/2 (w - b)^2 a step multiplies w - b by 1 - lr a + (lr a)^2.
    """

    def step_memory(self, at):
        return {"sum": fl.zeros_like(at.start), "last": {"w": at.start}}

    def step(self, step):
        ahead = step.params - step.rate * step.gradient(step.params)
        step.memory["sum"].add_(ahead)
        step.memory["last"]["w"].copy_(ahead)
        step.descend(step.gradient(ahead))

    def finish(self, end):
        return {"model": end.delta}, dict(end.memory)


@dataclass(frozen=True, kw_only=True)
class TwoBatches(LocalTraining):
    """Step along the mean of the gradients of two batches, and move a second model along each of them."""

    def step_memory(self, at):
        return {"slow": at.received["model"].select(at.phase.trains)}

    def step(self, step):
        one, other = (step.gradient(step.params, k) for k in (0, 1))
        step.descend(one, "slow", 0.5 * step.rate)
        step.descend(other, "slow", 0.5 * step.rate)
        step.descend((one + other) * 0.5)

    def finish(self, end):
        return {"model": end.delta}, end.memory["slow"]

    def gradients_per_step(self):
        return 2


@dataclass(frozen=True, kw_only=True)
class Chain(LocalTraining):
    """Three trainings: each starts where the one before ended, and is held there by a penalty of its own weight."""

    def start(self, inputs):
        return inputs.received["model"] if inputs.training == "train" else inputs.state

    def penalty(self, at):
        return (
            Penalty(float(at.training), at.received["model"].select(at.phase.trains))
            if at.training != "train"
            else None
        )

    def trainings(self, inputs):
        end = first = yield inputs
        for weight in ("0.5", "2"):
            end = yield replace(inputs, state=end.params, training=weight)
        return {"model": end.delta + first.delta}, end.params

    def metrics(self, end):
        return {"moved": fl.norm(end.delta)}

    def gradients_per_step(self):
        return 3


@dataclass(frozen=True, kw_only=True)
class Sometimes(LocalTraining):
    """Uses a further batch at steps 1 and 3 only, at the received model, at the start and at the present model."""

    def step(self, step):
        gradient = step.gradient(step.params)
        if step.t % 2:
            for params in (step.params, step.at.start, step.at.received["model"]):
                gradient.add_(step.gradient(params, 1), alpha=0.3)
        step.descend(gradient)


METHODS = {
    "sometimes": Sometimes(),
    "ditto": Ditto(lam=0.7),
    "apfl": APFL(alpha=0.3, adaptive=True),
    "pfedme": PFedMe(lam=3.0, inner_steps=3, inner_lr=0.05, lr=0.1),
    "per_fedavg": PerFedAvg(alpha=0.05),
    "per_fedavg hf": PerFedAvg(alpha=0.05, kind="hf", delta=0.05),
    "extra gradient": ExtraGradient(),
    "two batches": TwoBatches(),
    "chain": Chain(),
}
SETTINGS = {
    "plain": {},
    "clip, momentum": {"clip": 0.3, "optimiser": SGD(momentum=0.9)},
    "adam": {"optimiser": Adam(eps=0.05)},
    "rates, steps": {"rates": {"4.*": 3.0}, "steps": 5},
}


def close(together, alone) -> None:
    """Check tensors of two trees, relative to the largest parameter, which is about 0.3."""
    found, expected = dict(named_leaves(together)), dict(named_leaves(alone))
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        if leaf is None:
            assert found[name] is None
            continue
        pairs = zip(found[name].buffers, leaf.buffers) if isinstance(leaf, Params) else [(found[name], leaf)]
        for a, b in pairs:
            torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=TOLERANCE)


def agree(algorithm, backend, module, states=None) -> None:
    """Train clients alone and together; compare groups, states and metrics."""
    chunk, contexts = make(module, states=states)
    reply = batched.train(algorithm, chunk, backend)
    update, found = reply.update, reply.state
    for c, ctx in enumerate(contexts):
        one = algorithm.work("train", ctx, None)
        close(row(dict(update.groups), c), dict(one.update.groups))
        close(row(found, c), one.state)
        assert update.metrics.keys() == one.update.metrics.keys()
        for name, value in one.update.metrics.items():
            assert float(update.metrics[name][c]) == pytest.approx(float(value), rel=1e-4, abs=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", METHODS)
def test_clients_together_are_clients_alone(name, backend):
    for setting, dropout in [("plain", 0.3), ("clip, momentum", 0.0), ("adam", 0.0), ("rates, steps", 0.0)]:
        options = SETTINGS[setting]
        if name == "pfedme" and setting == "adam":
            continue  # rounding decides the direction of theta - w, which Adam turns into whole steps
        options = {"epochs": 2} | options if "steps" not in options else {"epochs": None, **options}
        agree(replace(METHODS[name], batch=BATCH, **options), backend, mlp(dropout))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_old_states_go_to_their_clients(backend):
    module = mlp()
    model = fl.Params.of(dict(module.named_parameters()))
    old = [None] + [like(model, f"state/{c}") for c in range(1, 5)]
    agree(replace(METHODS["ditto"], batch=BATCH, epochs=2), backend, module, old)
    alphas = [None] + [
        {"personal": p, "alpha": torch.tensor(0.2 * i, dtype=torch.float64)} for i, p in enumerate(old[1:])
    ]
    agree(replace(METHODS["apfl"], batch=BATCH, epochs=2), backend, module, alphas)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["extra gradient", "two batches", "chain"])
def test_with_frozen_parameters(name, backend):
    for trains in (("1.weight", "6.*"), ("4.*",)):
        agree(replace(METHODS[name], batch=BATCH, epochs=2, trains=trains), backend, mlp(0.3))


@pytest.mark.parametrize("backend", (Flat, Vmap))
def test_feddpa_trains_both_adapters_of_clients_together(backend):
    module = LoRA(rank=2, alpha=4).wrap(mlp())
    own = like(Params.of({n: p for n, p in module.named_parameters() if p.requires_grad}), "own", scale=0.3)
    agree(FedDPALoRA(weight=0.5, batch=BATCH, epochs=2, lr=0.3), backend, module, [None, own, None, 2 * own, own])


def test_two_steps_of_the_extra_gradient_by_hand():
    """w = 1, a = 2, b = 3, lr = .1: the look ahead is 1 + .4 = 1.4, w <- 1 + .1 * 2 * 1.6 = 1.32.

    Then the look ahead is 1.32 + .336 = 1.656, and w <- 1.32 + .2688 = 1.5888 = 3 - 2 (1 - .2 + .04)^2.
    """
    reply = ExtraGradient(steps=2, batch="full", lr=LR).work("train", quadratic(1.0), None)
    assert sent(reply)["weight"].item() == pytest.approx(0.5888)
    assert 3 - 2 * (1 - LR * A + (LR * A) ** 2) ** 2 == pytest.approx(1.5888)
    assert reply.state["sum"]["weight"].item() == pytest.approx(1.4 + 1.656)
    assert reply.state["last"]["w"]["weight"].item() == pytest.approx(1.656)


def test_two_steps_of_two_trainings_by_hand():
    """w = 1, lr = .1: the shared model goes 1 -> 1.4 -> 1.72. With lam = .5 the personal model goes

    0 -> 0 - .1 (2 (0 - 3) + .5 (0 - 1)) = .65 -> .65 - .1 (2 (.65 - 3) + .5 (.65 - 1)) = 1.1375.
    """
    reply = Ditto(lam=0.5, steps=2, batch="full", lr=LR).work("train", quadratic(1.0), None)
    assert sent(reply)["weight"].item() == pytest.approx(0.72)
    assert reply.state["weight"].item() == pytest.approx(1.1375)


def test_gradients_of_a_step_have_memory_of_their_own():
    """Two gradients at different parameters, both kept: a (w - b) at w = 1 and at w = 2."""

    class Both(LocalTraining):
        def step(self, step):
            one, other = step.gradient(step.params), step.gradient(step.params + 1.0)
            step.params.copy_(one + 100.0 * other)

    reply = Both(steps=1, batch="full", lr=LR).work("train", quadratic(1.0), None)
    assert sent(reply)["weight"].item() == pytest.approx(A * (1 - B) + 100 * A * (2 - B) - 1.0)


def test_gradients_at_the_received_model_by_hand():
    """w = 1, a = 2, b = 3, lr = .1: the gradients at 1 are -4, and with .3 of three more of them -7.6 at step 1.

    Step 0: w = 1.4.  Step 1: -3.2 + .3 (-3.2 - 4 - 4) = -6.56, so w = 2.056.
    """
    reply = Sometimes(steps=2, batch="full", lr=LR).work("train", quadratic(1.0), None)
    assert sent(reply)["weight"].item() == pytest.approx(1.056)


def test_the_default_step_is_one_gradient_and_one_step():
    """A method that spells the default out has FedAvg's bits."""

    class Spelled(LocalTraining):
        def step(self, step):
            LocalTraining.step(self, step)

        def trainings(self, inputs):
            return (yield from super().trainings(inputs))

    _, contexts = make(mlp(0.3))
    for optimiser in (SGD(), SGD(momentum=0.9, weight_decay=0.1), Adam()):
        settings = {"epochs": 2, "batch": BATCH, "lr": LR, "optimiser": optimiser}
        for ctx in contexts[:2]:
            one, other = (c(**settings).work("train", ctx, None) for c in (LocalTraining, Spelled))
            assert all(torch.equal(a, b) for a, b in zip(sent(one).buffers, sent(other).buffers))


# -- mistakes ---------------------------------------------------------------------------------------------------------
def broken(**hooks) -> LocalTraining:
    return type("Broken", (LocalTraining,), hooks)(steps=1, batch="full", lr=LR)


def wrong_type(self, inputs):
    yield 3


def returns_nothing(self, inputs):
    yield inputs


def yields_nothing(self, inputs):
    return {}, None
    yield


@pytest.mark.parametrize(
    "hooks, message",
    [
        (
            {"trainings": lambda self, inputs: ({}, None)},
            "trainings returned tuple; it has to yield the inputs of each",
        ),
        ({"trainings": wrong_type}, "trainings yielded int, expected TrainingInputs"),
        ({"trainings": returns_nothing}, r"trainings returned NoneType, expected \(groups, state\)"),
        ({"trainings": yields_nothing}, "trainings yielded nothing"),
        (
            {"step": lambda self, step: None, "step_memory": lambda self, at: 3},
            "step_memory returned int, expected a map",
        ),
    ],
)
def test_mistakes_are_named(hooks, message):
    algorithm = broken(**hooks)
    with pytest.raises(TypeError, match=message):
        algorithm.work("train", quadratic(1.0), None)
    with pytest.raises(TypeError, match=message):
        batched.train(algorithm, make(mlp())[0], Vmap)


def test_memory_needs_the_axis_of_the_clients():
    algorithm = broken(step=lambda self, step: None, step_memory=lambda self, at: {"alpha": torch.zeros(())})
    algorithm.work("train", quadratic(1.0), None)
    with pytest.raises(ValueError, match=r"tensor of shape \(\) for 5 clients that train together"):
        batched.train(algorithm, make(mlp())[0], Vmap)


def rebinds(self, step):
    step.params -= step.rate * step.gradient(step.params)


def replaces(self, step):
    step.memory["deep"]["v"] = step.gradient(step.params)


@pytest.mark.parametrize(
    "step, error, message",
    [
        (rebinds, AttributeError, r"client Broken: step.params = ... would not move the model; change it in place"),
        (replaces, TypeError, r"step.memory: entry 'v' cannot be replaced.*copy_"),
        (lambda self, step: step.memory.update(v=step.params), TypeError, "step.memory: entry 'v' cannot be replaced"),
    ],
)
def test_parameters_and_memory_change_in_place_only(step, error, message):
    algorithm = broken(step=step, step_memory=lambda self, at: {"deep": {"v": at.start}})
    with pytest.raises(error, match=message):
        algorithm.work("train", quadratic(1.0), None)
    with pytest.raises(error, match=message):
        batched.train(algorithm, make(mlp())[0], Vmap)


def test_a_tensor_of_the_memory_may_be_added_to():
    """`memory["n"] += 1` changes the tensor itself: n counts the steps (of 5 clients that train together)."""

    def step(self, step):
        step.memory["n"] += 1
        step.descend(step.gradient(step.params))

    hooks = {"step": step, "step_memory": lambda self, at: {"n": torch.zeros(5)}}
    algorithm = broken(**hooks, finish=lambda self, end: ({"model": end.delta}, {"n": end.memory["n"] - end.steps}))

    assert not algorithm.work("train", quadratic(1.0), None).state["n"].any()
    assert not batched.train(algorithm, make(mlp())[0], Vmap).state["n"].any()


def test_memory_of_an_optimiser_does_not_outlast_own_steps():
    with pytest.raises(ValueError, match=r"optimiser_state: 'kept'.*APFL has its own step\(\)"):
        APFL(optimiser=SGD(momentum=0.9), optimiser_state="kept")
    with pytest.raises(ValueError, match=r"Ditto has its own trainings\(\)"):
        Ditto(optimiser=SGD(momentum=0.9), optimiser_state="kept")


class OwnStep(LocalTraining):
    def step(self, step):
        step.descend(step.gradient(step.params))


class StepAndGradient(OwnStep):
    def gradient(self, grad, params, at):
        return 2.0 * grad


class SuperStepAndGradient(LocalTraining):
    def step(self, step):
        super().step(step)

    def gradient(self, grad, params, at):
        return 2.0 * grad


class TrainingsAndFinish(Chain):
    def finish(self, end):
        return {"model": end.delta}, None


class TrainingsThatFinish(LocalTraining):
    def trainings(self, inputs):
        return self.finish((yield inputs))

    def finish(self, end):
        return {"model": 2.0 * end.delta}, None


class OwnWork(LocalTraining):
    def work(self, name, ctx, carry):
        return None


class OwnWorkAndMetrics(OwnWork):
    def metrics(self, end):
        return {}


class OwnWorkThatTrains(LocalTraining):
    def work(self, name, ctx, carry):
        return ctx.training_loop(self, ctx)

    def metrics(self, end):
        return {}


class OwnWorkAndAnswer(OwnWorkThatTrains):
    def answer(self, name, ctx, carry):
        return None


class Misspelt(LocalTraining):
    def stepp(self, step):
        pass


class Plural(LocalTraining):
    def steps_memory(self, at):
        return {}


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            StepAndGradient,
            r"nothing calls StepAndGradient.gradient\(\), because OwnStep.step\(\) repl",
        ),
        (TrainingsAndFinish, r"nothing calls TrainingsAndFinish.finish\(\), because Chain.trainings\(\) replaces"),
        (OwnWorkAndMetrics, r"OwnWorkAndMetrics.metrics\(\), because OwnWork.work\(\) replaces .*call super\(\).work"),
        (OwnWorkAndAnswer, r"OwnWorkAndAnswer.answer\(\), because OwnWorkThatTrains.work\(\) replaces .*put its work"),
        (Misspelt, r"nothing calls Misspelt.stepp\(\); did you mean step\(\)\?"),
        (Plural, r"nothing calls Plural.steps_memory\(\); did you mean step_memory\(\)\?"),
    ],
)
def test_hooks_that_nothing_calls_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        kind()
    with pytest.raises(ConfigError, match=f"client: .*{message}"):
        resolve(CONFIG | {"client": kind})


def test_hooks_that_another_hook_calls_are_taken():
    """With twice the gradient, one step changes w by 2 * .4; with twice the update, too."""
    for kind in (SuperStepAndGradient, TrainingsThatFinish):
        reply = kind(steps=1, batch="full", lr=LR).work("train", quadratic(1.0), None)
        assert sent(reply)["weight"].item() == pytest.approx(0.8)
    assert OwnWork() == OwnWork()


class OwnReceived(LocalTraining):
    """The second training receives each client's own model in place of the server's, or its length beside it."""

    own: ClassVar[str] = "model"

    def trainings(self, inputs):
        end = yield inputs
        values = {"model": end.params, "length": fl.norm(end.delta)}
        yield replace(inputs, received={**inputs.received, self.own: values[self.own]})
        return {"model": end.delta}, None


class OwnNumber(OwnReceived):
    own = "length"


@pytest.mark.parametrize("kind", [OwnReceived, OwnNumber])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_of_each_client_do_not_belong_in_what_was_received(backend, kind):
    algorithm = kind(steps=1, batch="full", lr=LR)
    algorithm.work("train", quadratic(1.0), None)
    words = rf"trainings yielded received.{kind.own} with an axis of 5 clients.*state=\.\.\."
    with pytest.raises(ValueError, match=words):
        batched.train(algorithm, make(mlp())[0], backend)


def test_a_metric_of_its_own_is_not_the_loss():
    algorithm = broken(metrics=lambda self, end: {"loss": 0.0})
    message = "client Broken: metrics returned 'loss', which is the client's training loss"
    with pytest.raises(ValueError, match=message):
        algorithm.work("train", quadratic(1.0), None)
    with pytest.raises(ValueError, match=message):
        batched.train(algorithm, make(mlp())[0], Vmap)


# -- whole runs -------------------------------------------------------------------------------------------------------
OWN = '''
from dataclasses import dataclass
from fl import LocalTraining

@dataclass(frozen=True, kw_only=True)
class Ahead(LocalTraining):
    """Extragradient steps, which average what they saw ahead.

    Args:
        share: share of the step that looks ahead, at least 0.
    """

    share: float = 1.0

    def step_memory(self, at):
        return {"ahead": at.start}

    def step(self, step):
        step.memory["ahead"].copy_(step.params - self.share * step.rate * step.gradient(step.params))
        step.descend(step.gradient(step.memory["ahead"]))

    def gradients_per_step(self):
        return 2
'''


CONFIG = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 5},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [7]},
    "cohort": {"name": "uniform", "size": 3},
    "strategy": "fedavg",
    "evaluation": {"server": False},
    "execution": {"executor": "serial"},
}


def test_a_users_own_step_trains_together(tmp_path):
    """The plan is stacked; one client's run has the loop's numbers, and virtual time counts both gradients."""
    (tmp_path / "ahead.py").write_text(OWN)
    config = CONFIG | {"client": {"name": f"{tmp_path / 'ahead.py'}:Ahead", "epochs": 1, "batch": 8, "lr": 0.1}}
    assert plan_of(config) == "compiled"
    together = fl.run(config, out=tmp_path / "together")
    alone = fl.run(config, out=tmp_path / "alone", **{"execution.plan": "loop"})
    plain = fl.run(config, out=tmp_path / "plain", **{"client.share": 0.0})
    fedavg = fl.run({**config, "client": {"epochs": 1, "batch": 8, "lr": 0.1}}, out=tmp_path / "fedavg")
    for one, other in ((together, alone), (plain, fedavg)):
        close(one.model, other.model)
    with pytest.raises(AssertionError):
        close(together.model, fedavg.model)


def plan_of(config) -> str:
    return set_up_run(resolve(config)).plan.kind


@pytest.mark.parametrize("name, plan", [("ditto", "compiled"), ("apfl", "compiled"), ("pfedme", "compiled")])
def test_the_plan_that_auto_takes(name, plan):
    assert plan_of(CONFIG | {"strategy": name}) == plan
