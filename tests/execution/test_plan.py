"""The kind of training that a run gets, and its chunks if the configuration has none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clients.sgd import LocalSGD
from fl.execution.section import Execution
from fl.execution.training.plan import make_plan
from fl.models.binding import module_params
from fl.tasks.supervised import Classification


def chunk(parameters, cohort):
    """Return the chunk size for a linear model with `parameters` parameters (a multiple of 10) and a cohort size."""
    module = nn.Sequential(nn.Linear(parameters // 10 - 1, 10))
    x = torch.zeros(2, parameters // 10 - 1)
    return make_plan(LocalSGD(), module, module_params(module), Classification(), x, Execution(), cohort).chunk


@given(parameters=st.integers(2, 30_000).map(lambda n: 10 * n), cohort=st.integers(1, 20_000))
def test_every_worker_has_work(parameters, cohort):
    size = chunk(parameters, cohort)
    assert size & (size - 1) == 0
    assert size * parameters <= 1 << 21 or size == 1  # fits in the caches
    tasks = -(-cohort // size)
    assert (
        tasks >= 2 or cohort == 1 or cohort * parameters <= 1 << 19
    )  # at least two tasks, unless one task trains the whole cohort
    assert (
        tasks >= min(8, cohort // 16) or size * parameters <= 1 << 19
    )  # at least eight tasks, unless the cost of calls exceeds the gain


@pytest.mark.parametrize(
    "parameters, cohort, expected",
    [
        (610, 1_000, 512),  # half of the cohort
        (610, 10_000, 1_024),  # the maximum
        (610, 50, 256),  # the whole cohort at once
        (25_000, 100, 16),  # 2^19 / 25,000 = 21 clients make calls cheap
        (209_660, 100, 8),  # 2^21 / 209,660 = 10 clients fit in the caches
        (209_660, 2, 1),
    ],
)
def test_by_hand(parameters, cohort, expected):
    assert chunk(parameters, cohort) == expected


class OwnObjective(LocalSGD):
    def objective(self, net, batch, at, task):
        return 2 * super().objective(net, batch, at, task)


class Hooked(LocalSGD):
    def gradient(self, grad, params, at):
        return 2.0 * grad


class OwnWork(LocalSGD):
    def work(self, name, ctx, carry):
        return super().work(name, ctx, carry)


LINEAR = nn.Sequential(nn.Linear(4, 3))
NORMED = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 3))
RECURRENT = nn.LSTM(4, 3)
# convolutions with many activations per sample are faster in the loop: 2 layers of 8 x 60 x 60
IMAGES = nn.Sequential(nn.Conv2d(4, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 56 * 56, 3))


def plan(algorithm, module, plan="auto", x=None, augmented=False, **execution):
    given = algorithm, module, module_params(module), Classification(), torch.zeros(2, 4) if x is None else x
    return make_plan(*given, Execution(plan=plan, **execution), None, augmented)


@pytest.mark.parametrize(
    "algorithm, module, settings, kind, why",
    [
        (LocalSGD(), LINEAR, {}, "compiled", "a stack of linear layers"),
        (LocalSGD(clip=1.0), LINEAR, {}, "compiled", "a stack of linear layers"),
        (Hooked(), LINEAR, {}, "stacked", "but Hooked has its own gradient()"),
        (LocalSGD(), LINEAR, {"augmented": True}, "stacked", "but training batches are augmented"),
        (LocalSGD(), LINEAR, {"precision": "bf16"}, "flat", "bf16 needs autocast"),
        (LocalSGD(), NORMED, {}, "flat", "the model has a LayerNorm layer, but its layers can be stacked"),
        (LocalSGD(trains=("0.*",)), NORMED, {}, "flat", "the model has a LayerNorm layer, but its layers can be"),
        (LocalSGD(trains=("0.bias",)), LINEAR, {}, "compiled", "a stack of linear layers"),
        (LocalSGD(), IMAGES, {"x": torch.zeros(2, 4, 60, 60)}, "loop", "its convolutions are faster one client at a"),
        (OwnObjective(), LINEAR, {}, "loop", "OwnObjective has its own objective"),
        (OwnObjective(), LINEAR, {"plan": "vmap"}, "vmap", "asked for"),
        (OwnWork(), LINEAR, {}, "loop", "OwnWork has its own work()"),
        (LocalSGD(), RECURRENT, {}, "loop", "LSTM is one fused kernel"),
        (LocalSGD(), LINEAR, {"micro_batch": 2}, "loop", "micro batches exist in the loop only"),
        (LocalSGD(), LINEAR, {"plan": "loop"}, "loop", "asked for"),
    ],
)
def test_the_first_candidate_without_obstacle_is_taken(algorithm, module, settings, kind, why):
    made = plan(algorithm, module, **settings)
    assert made.kind == kind and why in made.why


@pytest.mark.parametrize(
    "algorithm, module, kind, said",
    [
        (
            Hooked(),
            LINEAR,
            "compiled",
            r"has its own gradient\(\). Use 'stacked', 'flat', 'loop', 'vmap' or 'auto'",
        ),
        (LocalSGD(), NORMED, "compiled", "the model has a LayerNorm layer. Use 'flat', 'loop', 'vmap' or 'auto'"),
        (LocalSGD(), NORMED, "stacked", "the model has a LayerNorm layer. Use 'flat', 'loop', 'vmap' or 'auto'"),
        (OwnObjective(), LINEAR, "flat", "has its own objective. Use 'loop', 'vmap' or 'auto'"),
        (OwnWork(), LINEAR, "vmap", r"has its own work\(\). Use 'loop' or 'auto'"),
    ],
)
def test_an_impossible_plan_is_refused_with_the_possible_ones(algorithm, module, kind, said):
    with pytest.raises(ValueError, match=f"plan: '{kind}' is not possible: .*{said}"):
        plan(algorithm, module, kind)
