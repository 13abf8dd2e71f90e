"""SCAFFOLD and FedDyn: their server rules by hand, and the client drift that they remove.

Two clients have f_i(w) = a_i/2 (w - b_i)^2 with (a, b) = (1, 0) and (10, 1); the optimum of the mean is 10/11. K local
steps with learning rate r map w to b + q (w - b), q = (1 - r a)^K. FedAvg converges to the fixed point of the average
of both maps, which is not the optimum.
"""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn

from clients.feddyn import FedDyn as FedDynClient
from clients.fedprox import FedProx as FedProxClient
from clients.scaffold import Scaffold as ScaffoldClient
from clients.sgd import LocalSGD
from fl.data.views import View
from fl.execution.training import loop
from fl.method.context import ClientContext
from fl.method.fold import Fold
from fl.method.messages import Broadcast
from fl.method.optimiser import SGD, Adam, LRSchedule, Torch
from fl.method.reduction import Meta, Product, Reduction
from fl.method.requests import ExchangeResult
from fl.method.strategy import ServerContext
from fl.models.binding import Initial, module_params
from fl.tasks.supervised import Regression
from fl.tensors.params import Params
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fedprox import FedProx
from strategies.scaffold import Scaffold

CURVATURES, CENTRES, LR = (1.0, 10.0), (0.0, 1.0), 0.05
OPTIMUM = 10 / 11

# one sample per client: 1/2 (sqrt(a) w - sqrt(a) b)^2
ROOTS = torch.tensor([[sqrt(a)] for a in CURVATURES])
ARRAYS = {"x": ROOTS, "y": ROOTS * torch.tensor([[b] for b in CENTRES])}


def params(*w: float) -> Params:
    return Params.of({"weight": torch.tensor(w, dtype=torch.float32)})


def answer(strategy, state, population, round_, updates):
    """Perform a round with given updates, `updates(broadcast) -> [(client, num_examples, groups)]`."""
    ctx = ServerContext(0, round_, 1000, population, np.arange(population), Regression(), nn.Identity())
    rounds = strategy.round(state, ctx)
    exchange = next(rounds)
    answers = updates(Broadcast.of(exchange.broadcast))
    plain = isinstance(exchange.reduction, Reduction)
    reduction = Product({"model": exchange.reduction} if plain else exchange.reduction)
    fold = Fold(reduction, len(answers))
    for k, (client, n, groups) in enumerate(answers):
        fold.add(0, k, reduction.lift(groups, Meta(client, n)))
    value = fold.finish()
    clients, sizes = (np.array([a[i] for a in answers]) for i in (0, 1))
    try:
        rounds.send(ExchangeResult(value["model"] if plain and value else value, clients, sizes, {}))
    except StopIteration as end:
        return end.value[0]
    raise AssertionError("one exchange a round")


def federate(strategy, algorithm, rounds: int) -> float:
    """Train with both clients from w = 0 and return the model."""
    module = nn.Linear(1, 1, bias=False)
    kept = {}

    def train(client, received, config, round_):
        view = View(ARRAYS, np.array([client]))
        ctx = ClientContext(
            client=client,
            seed=0,
            round=round_,
            rounds=rounds,
            participation=round_,
            received=received,
            config=config,
            state=kept.get(client),
            train=view,
            val=view,
            test=view,
            initial=Initial.of(module),
            module=module,
            task=Regression(),
            training_loop=loop.train,
        )
        reply = algorithm.work("train", ctx, None)
        kept[client] = reply.state
        assert set(reply.update.groups) == set(algorithm.sends)
        return client, reply.update.num_examples, reply.update.groups

    state = strategy.init(0.0 * module_params(module), None)
    for r in range(rounds):
        state = answer(strategy, state, 2, r, lambda b: [train(c, b.shared, b.config, r) for c in (0, 1)])
    return strategy.model(state)["weight"].item()


# -- server rules by hand ---------------------------------------------------------------------------------------------
def test_scaffold_two_rounds_by_hand():
    rule, state = Scaffold(lr=0.5), Scaffold().init(params(1.0), None)

    def first(broadcast):
        assert broadcast.shared["control"]["weight"].item() == 0.0
        return [(0, 1, {"model": params(1), "control": params(3)}), (2, 9, {"model": params(3), "control": params(-1)})]

    def second(broadcast):
        assert (broadcast.shared["model"]["weight"].item(), broadcast.shared["control"]["weight"].item()) == (2.0, 0.5)
        return [(3, 1, {"model": params(-2), "control": params(-4)})]

    one = answer(rule, state, 4, 0, first)  # uniform mean dy = 2, sum dc = 2 of N = 4
    two = answer(rule, one, 4, 1, second)
    assert (two.model["weight"].item(), two.control["weight"].item()) == (1.0, -0.5)


def test_feddyn_two_rounds_by_hand():
    rule, state = FedDyn(alpha=0.5), FedDyn().init(params(1.0), None)

    def first(broadcast):
        assert broadcast.config == {"alpha": 0.5}
        return [(0, 1, {"model": params(1)}), (2, 9, {"model": params(3)})]

    one = answer(rule, state, 4, 0, first)  # h = -1/8 * 4 = -1/2; mean of w_k = 3; w = 3 + 1
    assert (one.h["weight"].item(), one.model["weight"].item()) == (-0.5, 4.0)
    two = answer(rule, one, 4, 1, lambda _: [(1, 5, {"model": params(-2)})])  # h = -1/2 + 1/4; w = 2 + 1/2
    assert (two.h["weight"].item(), two.model["weight"].item()) == (-0.25, 2.5)


@pytest.mark.parametrize("rule", [Scaffold(), FedDyn()])
def test_a_round_without_answers_changes_nothing(rule):
    state = rule.init(params(1.0), None)
    assert answer(rule, state, 4, 0, lambda _: []) is state


def test_feddyn_without_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha: 0.0 is not positive.*use fedavg"):
        FedDyn(alpha=0.0)


# -- drift ------------------------------------------------------------------------------------------------------------
def fedavg_fixed_point(steps: int, mu: float = 0.0) -> float:
    """Return the fixed point of the mean of the local maps: K steps from w towards (a b + mu w) / (a + mu)."""
    slope = offset = 0.0
    for a, b in zip(CURVATURES, CENTRES):
        q = (1 - LR * (a + mu)) ** steps
        pull = a / (a + mu)  # the local target is pull * b + (1 - pull) * w
        slope += (q + (1 - q) * (1 - pull)) / 2
        offset += (1 - q) * pull * b / 2
    return offset / (1 - slope)


def test_the_closed_form():
    assert fedavg_fixed_point(1) == pytest.approx(OPTIMUM)  # one step causes no drift
    assert fedavg_fixed_point(5) == pytest.approx(0.8107, abs=1e-4)
    assert fedavg_fixed_point(20) == pytest.approx(0.6092, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_fedavg_drifts(steps):
    reached = federate(FedAvg(), LocalSGD(batch="full", steps=steps, lr=LR), 40)
    assert reached == pytest.approx(fedavg_fixed_point(steps), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [0.0, 1.0, 5.0])
def test_fedprox_drifts_less(mu):
    reached = federate(FedProx(), FedProxClient(batch="full", steps=20, lr=LR, mu=mu), 60)
    assert reached == pytest.approx(fedavg_fixed_point(20, mu), abs=1e-5)
    assert reached >= fedavg_fixed_point(20) - 1e-5


# option 1 diverges with 20 steps: its controls are one round old, and learning rate * steps * curvature is 10
@pytest.mark.slow
@pytest.mark.parametrize("option, steps", [(1, 5), (1, 10), (2, 5), (2, 20)])
def test_scaffold_reaches_the_optimum(option, steps):
    algorithm = ScaffoldClient(batch="full", steps=steps, lr=LR, option=option)
    assert federate(Scaffold(), algorithm, 60) == pytest.approx(OPTIMUM, abs=1e-3)


MOMENTUM = {"momentum": SGD(momentum=0.9), "nesterov": SGD(momentum=0.9, nesterov=True)}
HALVING = LRSchedule(start=0.01, schedule="step", every=2, factor=0.5, by="step")


@pytest.mark.parametrize("optimiser, lr", [("momentum", 0.005), ("nesterov", 0.005), ("momentum", HALVING)])
def test_scaffold_with_momentum_reaches_the_optimum(optimiser, lr):
    """Divided by the plain sum of the learning rates, the control is too large, and the run diverges."""
    algorithm = ScaffoldClient(batch="full", steps=5, lr=lr, optimiser=MOMENTUM[optimiser])
    assert federate(Scaffold(), algorithm, 400) == pytest.approx(OPTIMUM, abs=1e-4)


@pytest.mark.parametrize("optimiser", [Adam(), Torch(cls="RMSprop")])
def test_scaffold_refuses_optimisers_that_rescale_gradients(optimiser):
    with pytest.raises(ValueError, match="optimiser: .* rescales gradients, .*`option: 1`"):
        ScaffoldClient(optimiser=optimiser)
    ScaffoldClient(optimiser=optimiser, option=1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, 20])
def test_feddyn_reaches_the_optimum(steps):
    algorithm = FedDynClient(batch="full", steps=steps, lr=LR)
    assert federate(FedDyn(alpha=2.0), algorithm, 60) == pytest.approx(OPTIMUM, abs=1e-3)


def test_scaffold_starts_as_fedavg():
    settings = {"batch": "full", "steps": 5, "lr": LR}
    assert federate(Scaffold(), ScaffoldClient(**settings), 1) == federate(FedAvg(), LocalSGD(**settings), 1)
