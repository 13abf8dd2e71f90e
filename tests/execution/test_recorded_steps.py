"""Steps recorded for machine code: what can be recorded, and that it trains as the steps taken one by one do."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from clients.apfl import APFL
from clients.per_fedavg import PerFedAvg
from clients.pfedme import PFedMe
from fl import LocalTraining, LRSchedule, dot
from fl.execution.training.compiled import Compiled
from fl.execution.training.recorded_steps import record
from fl.method.optimiser import SGD
from fl.method.training_values import StepContext
from fl.tensors.combination import NotKnown
from fl.tensors.params import Params
from fl.tensors.trees import stack
from tests.execution.test_loop_batched import BATCH, make, mlp
from tests.execution.test_own_steps import METHODS, ExtraGradient, TwoBatches, agree
from tests.test_combination import EVERY_USE, LAYOUT, USES, result_of, same, some


@dataclass(frozen=True, kw_only=True)
class Everything(LocalTraining):
    """A step with every operation that is recorded: long sums, a gradient that is used twice, one that is not."""

    def step_memory(self, at):
        return {"a": at.start, "b": [at.start], "share": 0.5 * at.state}

    def step(self, step):
        w, a, b, share = step.params, step.memory["a"], step.memory["b"][0], step.memory["share"]
        g = step.gradient(w)
        h = step.gradient(0.5 * a + w / 2, 1)
        step.gradient(b, 2)
        a.add_(g, alpha=-0.1).sub_(0.02 * (h - b)).mul_(1.01)
        b.copy_(-(-w) + share * (a - w) + 0.01 * g - 0.02 * h)
        rate = step.rate / (1 + step.t)
        step.descend(g.clone().add_(h), rate=rate)
        step.descend(0.05 * (w - a + b) + 0.02 * h + step.gradient(w), rate=rate)

    def first_state(self, inputs):
        return torch.tensor(0.6)

    def finish(self, end):
        return {"model": end.delta}, {"a": end.memory["a"], "b": end.memory["b"][0]}


def found(algorithm, steps=2, clients=3, state=None):
    """Return what `record` returns for clients with states."""
    chunk, _ = make(mlp())
    phase, model = algorithm.phases(0, 1)[0], chunk.received["model"]
    at = StepContext(chunk.received, state, {}, chunk.initial, phase=phase, start=model)
    return record(algorithm, at, algorithm.step_memory(at), steps, clients)


def test_programs_train_as_the_loop():
    for batch in (BATCH, "full"):
        agree(Everything(batch=batch, epochs=2), Compiled, mlp())
        agree(replace(METHODS["apfl"], adaptive=False, batch=batch, epochs=2), Compiled, mlp())
    for trains in (("1.weight", "6.*"), ("4.*",)):
        agree(Everything(batch=BATCH, epochs=2, trains=trains), Compiled, mlp())
    assert found(Everything(), state=torch.full((3,), 0.6)).slots > 3


def test_pfedme_is_one_operation_for_each_gradient():
    programs = found(PFedMe(lam=3.0, inner_steps=2, inner_lr=0.1, lr=0.25))
    # theta <- (1 - .3) theta + .3 w - .1 g, twice; w <- (1 - .75) w + .75 theta; slot 0 is w, slot 1 is theta
    assert programs.firsts.tolist() == [0, 3] and programs.slots == 2 and programs.batches == [0]
    inner, outer = programs.operations[0], programs.operations[2]
    assert inner.tolist() == [1, 1, 0, 1, 2, 1, 0, 0] and programs.operations[1].tolist() == [1, 1, 0, 0, 2, 1, 0, 0]
    assert outer[:2].tolist() == [0, -1] and outer[4:7].tolist() == [2, 0, 1]
    assert programs.factors[:, :, 0].tolist() == [
        pytest.approx([-0.1, 0.7, 0.3, 0.0]),
        pytest.approx([-0.1, 0.7, 0.3, 0.0]),
        pytest.approx([0.0, 0.25, 0.75, 0.0]),
    ]


def test_each_client_has_its_own_weight_of_the_mixture():
    algorithm = APFL(alpha=0.3, lr=0.1)
    model = make(mlp())[1][0].received["model"]
    alphas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    programs = found(algorithm, state={"personal": stack([model] * 3), "alpha": alphas})
    # mixture <- alpha v + (1 - alpha) w; w <- w - lr g(w); v <- v - lr alpha g(mixture)
    assert programs.operations[:, :2].tolist() == [[2, -1], [0, 0], [1, 2]]
    assert programs.factors[0, 1].tolist() == [0, 0.5, 1] and programs.factors[0, 2].tolist() == [1, 0.5, 0]
    assert programs.factors[2, 0].tolist() == pytest.approx([0, -0.05, -0.1])


@pytest.mark.parametrize("kind", ["fo", "hf"])
def test_per_fedavg_is_recorded(kind):
    assert found(PerFedAvg(kind=kind)).batches == ([0, 1] if kind == "fo" else [0, 1, 2])


@dataclass(frozen=True, kw_only=True)
class Reads(LocalTraining):
    """Looks at the numbers of a gradient."""

    def step(self, step):
        gradient = step.gradient(step.params)
        step.descend(gradient * (1 / dot(gradient, gradient)))


@dataclass(frozen=True, kw_only=True)
class Late(LocalTraining):
    """Uses the parameters before the step after it."""

    def step(self, step):
        before = 1.0 * step.params
        step.descend(step.gradient(step.params))
        step.params.sub_(0.1 * before)


@dataclass(frozen=True, kw_only=True)
class Counts(LocalTraining):
    """Changes a number at each step."""

    def step_memory(self, at):
        return {"n": torch.ones(3)}

    def step(self, step):
        step.descend(step.gradient(step.params) * step.memory["n"])
        step.memory["n"].add_(1.0)


@dataclass(frozen=True, kw_only=True)
class Draws(LocalTraining):
    """Scales each step by a number of a generator of its own."""

    generator: torch.Generator = field(default_factory=torch.Generator)

    def step(self, step):
        step.descend(step.gradient(step.params), rate=float(torch.rand((), generator=self.generator)))


@dataclass(frozen=True, kw_only=True)
class Remembers(LocalTraining):
    """Uses the gradient of the first step in all steps."""

    gradients: list = field(default_factory=list)

    def step(self, step):
        self.gradients.append(step.gradient(step.params))
        step.descend(self.gradients[0])


@pytest.mark.parametrize(
    "algorithm",
    [
        Reads(),
        Late(),
        Counts(),
        Draws(),
        Remembers(),
        ExtraGradient(optimiser=SGD(momentum=0.9)),
        TwoBatches(clip=1.0),
        METHODS["sometimes"],
    ],
)
def test_other_steps_are_taken_one_by_one(algorithm):
    assert found(algorithm) is None


def test_the_rates_of_a_schedule_are_those_of_the_steps():
    lr = LRSchedule(start=0.1, schedule="step", factor=0.5, by="step")
    programs = found(ExtraGradient(lr=lr), steps=3)
    last = programs.firsts[1:] - 1  # each step ends with w <- w - lr g
    assert programs.factors[last, 0, 0].tolist() == pytest.approx([-0.1, -0.05, -0.025])


@dataclass(frozen=True, kw_only=True)
class Uses(LocalTraining):
    """Uses its vectors in one way, and keeps the result if it is a vector."""

    use: object
    results: list = field(default_factory=list)

    def step_memory(self, at):
        return {"q": some(5, 2), "result": at.start}

    def step(self, step):
        self.results[:] = [result_of(self.use, step.params, step.memory["q"])]
        if isinstance(self.results[0], BaseException):
            raise self.results[0]
        if isinstance(self.results[0], Params) and self.results[0].layout is step.params.layout:
            step.memory["result"].copy_(self.results[0])


def programs_of(algorithm):
    """Return the programs of one step on two clients."""
    chunk, _ = make(mlp())
    at = StepContext({}, None, {}, chunk.initial, phase=algorithm.phases(0, 1)[0], start=some(0, 2))
    return record(algorithm, at, algorithm.step_memory(at), 1, 2)


@pytest.mark.parametrize("name", "__add__ __sub__ __rsub__ __neg__ clone copy_ add_ sub_ mul_ select added".split())
def test_linear_uses_are_recorded(name):
    assert programs_of(Uses(use=USES[name][0])) is not None


@pytest.mark.parametrize("use", EVERY_USE)
def test_every_use_of_vectors_is_recorded_with_its_numbers_or_needs_numbers(use):
    """Programs run by hand give what the use gives; `result` is written if that is a vector."""
    slots, algorithm = [some(0, 2), some(5, 2), some(0, 2)], Uses(use=use)
    programs = programs_of(algorithm)
    p, q = some(0, 2), some(5, 2)
    wanted = result_of(use, p, q)
    if programs is None:
        assert isinstance(algorithm.results[0], (NotKnown, Params, type(wanted)))
        return
    for operation, factors in zip(programs.operations.tolist(), torch.from_numpy(programs.factors)):
        assert operation[1] == -1
        terms = [slots[slot] * factor for slot, factor in zip(operation[5 : 5 + operation[4]], factors[1:])]
        slots[operation[0]] = sum(terms[1:], terms[0])
    same(slots[0], p)
    same(slots[1], q)
    if isinstance(wanted, Params) and wanted.layout is LAYOUT:
        same(slots[2], wanted)
    elif not isinstance(wanted, Params):
        same(algorithm.results[0], wanted)
