"""What a user's part keeps outside of its state stops the run in round 0; caches of values do not."""

import collections
import functools
import itertools
import random
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fl
from fl import LocalTraining, Strategy, zeros_like
from fl.errors import ClientError, ConfigError
from fl.execution.hidden_state import HiddenState, HiddenStateWatch
from fl.method.sampler import CohortSampler
from fl.method.transform import Transform
from fl.tasks.supervised import Classification
from tests.test_bad_configs import GOOD

CONFIG = {**GOOD, "rounds": 2, "evaluation": {"server": False}}
COUNT, SEEN = 0, []


class Rule(Strategy):
    """The mean."""

    def step(self, state, mean, ctx):
        self.remember(mean, ctx)
        return state + mean, {}

    def remember(self, mean, ctx):
        pass


# -- hidden state -----------------------------------------------------------------------------------------------------
class Attribute(Rule):
    v = 0.0

    def remember(self, mean, ctx):
        self.v = 0.9 * self.v + mean


class NewAttribute(Rule):
    def remember(self, mean, ctx):
        self.last = mean


@dataclass(frozen=True)
class ListInFrozenDataclass(Rule):
    memory: list = field(default_factory=list)

    def remember(self, mean, ctx):
        self.memory.append(1)


class DictOfParams(Rule):
    def __init__(self):
        self.velocity = {}

    def init(self, model, ctx):
        self.velocity["v"] = zeros_like(model)
        return model

    def remember(self, mean, ctx):
        self.velocity["v"].add_(mean)


class ParamsInPlace(Rule):
    def init(self, model, ctx):
        self.v = zeros_like(model)
        return model

    def remember(self, mean, ctx):
        self.v.add_(mean)


class ArrayInPlace(Rule):
    def __init__(self):
        self.counts = np.zeros(3)

    def remember(self, mean, ctx):
        self.counts += 1


class LargeArray(ArrayInPlace):
    def __init__(self):
        self.counts = np.zeros((300, 300))


class LargeTensor(ArrayInPlace):
    def __init__(self):
        self.counts = torch.zeros(300, 300, dtype=torch.bfloat16)


class Slots(Rule):
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0

    def remember(self, mean, ctx):
        self.n += 1


class ClassAttribute(Rule):
    n = 0

    def remember(self, mean, ctx):
        ClassAttribute.n += 1


class Global(Rule):
    def remember(self, mean, ctx):
        global COUNT
        COUNT += 1


class GlobalList(Rule):
    def remember(self, mean, ctx):
        append(1)


def append(value):
    SEEN.append(value)


class DefaultArgument(Rule):
    def remember(self, mean, ctx, seen=[]):  # noqa: B006
        seen.append(1)


def closure():
    seen = []

    class Closure(Rule):
        def remember(self, mean, ctx):
            seen.append(1)

    return Closure


class Memory:
    def __init__(self):
        self.n = 0


class OwnObject(Rule):
    def __init__(self):
        self.memory = [Memory()]

    def remember(self, mean, ctx):
        self.memory[0].n += 1


class Module(Rule):
    def __init__(self):
        self.net = nn.Sequential(nn.Linear(1, 1))

    def remember(self, mean, ctx):
        nn.init.constant_(self.net[0].bias, 7.0)


class Queue(Rule):
    def __init__(self):
        self.last = collections.deque(maxlen=2)

    def remember(self, mean, ctx):
        self.last.append(1)


class Counter(Rule):
    def __init__(self, ids):
        self.ids = ids

    def remember(self, mean, ctx):
        next(self.ids)


class Generators(Rule):
    def __init__(self, generator):
        self.generator = generator

    def remember(self, mean, ctx):
        if isinstance(self.generator, torch.Generator):
            torch.rand((), generator=self.generator)
        else:
            self.generator.random()


class Broadcasts(Rule):
    def broadcast(self, state, ctx):
        self.sent = ctx.round
        return state


class Draws(Strategy):
    def step(self, state, mean, ctx):
        return state + np.random.rand() * mean, {}


HIDDEN = {
    "attribute": (Attribute(), "self.v"),
    "new attribute": (NewAttribute(), "self.last"),
    "list in a frozen dataclass": (ListInFrozenDataclass(), "self.memory"),
    "dict of Params": (DictOfParams(), "self.velocity"),
    "Params in place": (ParamsInPlace(), "self.v"),
    "array in place": (ArrayInPlace(), "self.counts"),
    "large array": (LargeArray(), "self.counts"),
    "large tensor": (LargeTensor(), "self.counts"),
    "slots": (Slots(), "self.n"),
    "class attribute": (ClassAttribute(), "ClassAttribute.n"),
    "global": (Global(), "the global COUNT"),
    "global list, by a function": (GlobalList(), "the global SEEN"),
    "default argument": (DefaultArgument(), "a default argument of remember"),
    "closure": (closure()(), "the variable seen around remember"),
    "own object": (OwnObject(), r"self.memory\[0\].n"),
    "weights of a module": (Module(), "self.net.0.bias"),
    "queue": (Queue(), "self.last"),
    "counter": (Counter(itertools.count()), "self.ids"),
    "cycle": (Counter(itertools.cycle("ab")), "self.ids"),
    "torch generator": (Generators(torch.Generator()), "self.generator"),
    "NumPy generator": (Generators(np.random.default_rng(0)), "self.generator"),
    "Python generator": (Generators(random.Random(0)), "self.generator"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_rule_with_hidden_state_is_caught_in_round_0(kind, tmp_path):
    rule, name = HIDDEN[kind]
    said = rf"strategy .*test_hidden_state.py:{type(rule).__name__} changed {name} in round 0\..*init\(\) and step\(\)"
    with pytest.raises(HiddenState, match=said):
        fl.run({**CONFIG, "strategy": rule}, out=tmp_path / "run")


def test_what_broadcast_remembers_is_caught(tmp_path):
    with pytest.raises(HiddenState, match="changed self.sent in .*round 0"):
        fl.run({**CONFIG, "strategy": Broadcasts()}, out=tmp_path / "run")


def test_draws_from_global_generators_repeat_and_leave_them_alone(tmp_path):
    config = {**CONFIG, "strategy": f"{__file__}:Draws", "rounds": 3}
    np.random.seed(1)
    expected = np.random.RandomState(1).rand()
    first = fl.run(config, out=tmp_path / "first")
    assert np.random.rand() == expected
    fl.run({**config, "rounds": 1}, out=tmp_path / "second")
    assert fl.resume(tmp_path / "second", rounds=3).digest == first.digest


def test_a_helper_beside_the_file_is_watched(tmp_path):
    (tmp_path / "helper.py").write_text("COUNT = 0\n")
    (tmp_path / "rule.py").write_text(
        "import helper\nfrom fl import Strategy\nclass Mine(Strategy):\n"
        "    def step(self, state, mean, ctx):\n        helper.COUNT += 1\n        return state + mean, {}\n"
    )
    with pytest.raises(HiddenState, match="rule.py:Mine changed helper.COUNT in round 0"):
        fl.run({**CONFIG, "strategy": f"{tmp_path}/rule.py:Mine"}, out=tmp_path / "run")


# -- other parts ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sampler(CohortSampler):
    seen: list = field(default_factory=list)

    def sample(self, state, round_, seed, sizes):
        self.seen.append(round_)
        return state, np.arange(2)


@dataclass(frozen=True)
class Remembers(Transform):
    seen: list = field(default_factory=list)

    def client(self, groups, ctx):
        self.seen.append(1)
        return groups


@dataclass(frozen=True, kw_only=True)
class Counts(Classification):
    calls: ClassVar[list] = []

    def loss(self, outputs, batch):
        self.calls.append(1)
        return super().loss(outputs, batch)


@dataclass(frozen=True, kw_only=True)
class Gossips(LocalTraining):
    heard: ClassVar[list[Any]] = []

    def finish(self, end):
        self.heard.append(end.delta)
        return {"model": end.delta}, None


@dataclass(frozen=True, kw_only=True)
class Works(LocalTraining):
    heard: list = field(default_factory=list)

    def work(self, name, ctx, carry):
        self.heard.append(ctx.client)
        return super().work(name, ctx, carry)


@pytest.mark.parametrize(
    "key, part, error, said",
    [
        ("cohort", Sampler(), HiddenState, "cohort .*Sampler changed self.seen in round 0.* init.. and sample"),
        ("transforms", [Remembers()], ClientError, "transform .*Remembers changed self.seen in round 0"),
        ("task", Counts(), ClientError, "task .*Counts changed Counts.calls in round 0"),
        ("client", Works(), ClientError, r"client \d+, round 0, stage 'train': .*client .*Works changed self.heard"),
        ("client", Gossips(), ConfigError, "client: client .*Gossips changed Gossips.heard in a first training"),
    ],
)
def test_other_parts(key, part, error, said, tmp_path):
    with pytest.raises(error, match=said):
        fl.run({**CONFIG, key: part}, out=tmp_path / "run")


@pytest.mark.ray
def test_on_ray_workers(tmp_path):
    ray = {**CONFIG, "client": Works(), "execution": {"executor": "ray", "workers": 2}}
    with pytest.raises(ClientError, match="HiddenState: client .*Works changed self.heard in round 0"):
        fl.run(ray, out=tmp_path / "run")


# -- no hidden state --------------------------------------------------------------------------------------------------
class Caches(Rule):
    """What it keeps can be computed again, or is set once for each start of a run."""

    def __init__(self):
        self.scale = 1.0

    def init(self, model, ctx):
        self.names = list(model)
        return model

    @functools.cached_property
    def half(self):
        return 0.5

    @functools.cache
    def power(self, n):
        return self.half**n

    def remember(self, mean, ctx):
        assert self.names and self.power(ctx.round) <= 1

    def step(self, state, mean, ctx):
        super().step(state, mean, ctx)
        return state + self.half * mean, {}


def test_caches_are_taken_and_resume_to_the_same_bits(tmp_path):
    config = {**CONFIG, "strategy": {"name": f"{__name__}:Caches"}}
    whole = fl.run(config, out=tmp_path / "whole")
    fl.run(config, out=tmp_path / "parts", interrupt=lambda: True)
    assert fl.resume(tmp_path / "parts").digest == whole.digest


def test_parts_of_this_project_are_not_watched():
    watch = HiddenStateWatch({"client": LocalTraining(), "task": [Classification()], "cohort": None})
    assert watch.places == [] and watch.changes("round 0") is None


def test_an_own_part_inside_a_registered_one_is_watched(tmp_path):
    @dataclass(frozen=True)
    class Outer:
        inner: Any

    Outer.__module__ = "fl.communication.chain"
    memory = Memory()
    watch = HiddenStateWatch({"codec": Outer([memory])})
    assert watch.changes("round 0") is None
    memory.n += 1
    assert "codec" in watch.changes("round 3") and "changed self.n in round 3" in watch.changes("round 3")
