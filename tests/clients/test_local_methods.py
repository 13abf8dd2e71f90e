"""Gradients, updates and states of FedProx, SCAFFOLD and FedDyn clients, computed by hand.

One client, one sample, loss 1/2 (w - 4)^2, received w = 0, learning rate 1/2.
"""

import numpy as np
import pytest
import torch
from torch import nn

from clients.feddyn import FedDyn
from clients.fedprox import FedProx
from clients.scaffold import Scaffold
from clients.sgd import LocalSGD
from fl import registry
from fl.data.views import View
from fl.execution.training import loop
from fl.method.context import ClientContext
from fl.models.binding import Initial
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import NOTHING, Params

SETTINGS = {"batch": "full", "steps": 2, "lr": 0.5}


def params(w: float) -> Params:
    return Params.of({"weight": torch.tensor([[w]])})


def train(algorithm, state=None, config=None, **received: Params):
    view = View({"x": torch.tensor([[1.0]]), "y": torch.tensor([[4.0]])}, np.array([0]))
    ctx = ClientContext(
        client=0,
        seed=0,
        round=0,
        rounds=1,
        participation=0,
        received={"model": params(0.0), **received},
        config=config or {},
        state=state,
        train=view,
        val=view,
        test=view,
        initial=Initial(params(0.0), NOTHING),
        module=nn.Linear(1, 1, bias=False),
        task=Regression(),
        training_loop=loop.train,
    )
    reply = algorithm.work("train", ctx, None)
    return {name: p["weight"].item() for name, p in reply.update.groups.items()}, reply.state


def test_local_sgd():
    groups, state = train(LocalSGD(**SETTINGS))
    assert groups == {"model": 3.0} and state is None  # 0 -> 2 -> 3


def test_fedprox_by_hand():
    # gradients w - 4 + w: 0 -> 2 -> 2 - 1/2 (-2 + 2)
    assert train(FedProx(mu=1.0, **SETTINGS))[0] == {"model": 2.0}


def test_fedprox_without_the_term_is_local_sgd():
    assert train(FedProx(mu=0.0, **SETTINGS)) == train(LocalSGD(**SETTINGS))


@pytest.mark.parametrize("option, new", [(1, -4.0), (2, -3.0)])
def test_scaffold_first_time(option, new):
    """Controls zero: 0 -> 2 -> 3. Option 1: the gradient at 0; option 2: 0 - 0 - 3 / (1/2 + 1/2)."""
    groups, state = train(Scaffold(option=option, **SETTINGS), control=params(0.0))
    assert groups == {"model": 3.0, "control": new}
    assert state["weight"].item() == new


@pytest.mark.parametrize("option, new", [(1, -4.0), (2, -2.5)])
def test_scaffold_steps_along_g_minus_own_plus_global_control(option, new):
    """c_i = 1, c = -1: gradients w - 4 - 2, so 0 -> 3 -> 4.5. Option 2: c_i+ = 1 + 1 - 4.5 / 1 = -2.5."""
    groups, state = train(Scaffold(option=option, **SETTINGS), state=params(1.0), control=params(-1.0))
    assert groups == {"model": 4.5, "control": new - 1.0}
    assert state["weight"].item() == new


def test_feddyn_by_hand():
    """g = 1, alpha = 1: gradients w - 4 - 1 + w, so 0 -> 2.5 -> 2.5 and g+ = 1 - 2.5."""
    groups, state = train(FedDyn(**SETTINGS), state=params(1.0), config={"alpha": 1.0})
    assert groups == {"model": 2.5}
    assert state["weight"].item() == -1.5


def test_feddyn_exact_minimum_keeps_the_gradient_there():
    """At the exact local minimum, the first-order condition holds: the new g_k is the gradient of the loss there."""
    groups, state = train(FedDyn(batch="full", steps=200, lr=0.3), config={"alpha": 0.5})
    assert state["weight"].item() == pytest.approx(groups["model"] - 4.0, abs=1e-5)


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: FedProx(mu=-1.0), "mu: -1.0"),
        (lambda: Scaffold(option=3), "option: 3"),
        (lambda: LocalSGD(lr=-1), "lr: -1"),
    ],
)
def test_impossible_values_are_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


CLASSES_ONLY = [
    name for name in registry.names("client") if getattr(registry.lookup("client", name), "classes_only", False)
]


@pytest.mark.parametrize("name", CLASSES_ONLY)
def test_methods_that_need_classes_refuse_other_tasks(name):
    client = registry.lookup("client", name)()
    client.check_task(Classification())
    with pytest.raises(
        ValueError, match="needs a class for each sample, and Regression is no classification; use task:"
    ):
        client.check_task(Regression())
