"""Whatever a `finish` returns by mistake, one sentence names the class, the hook, what came and what is allowed.

The loop, plans that train clients together, and machine code say the same, before the server has seen an update.
"""

from typing import ClassVar

import pytest
import torch

import fl
from fl import LocalTraining, Params
from fl.errors import ClientError, ConfigError
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from fl.execution.training.kernels import LinearStack
from fl.execution.update_checks import check_stacked
from tests.execution.test_loop_batched import BATCH, make, mlp

PAIR = r'expected \(groups, state\), as in `return {"model": end.delta}, None`'


CONFIG = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "evaluation": {"server": False},
    "execution": {"executor": "serial", "chunk": 2, "workers": 1},
}


class Mine(LocalTraining):
    """Returns what a test asks for."""

    made: ClassVar = staticmethod(lambda end: ({"model": end.delta}, None))

    def finish(self, end):
        return type(self).made(end)


MISTAKES = {
    "nothing": (lambda end: None, f"client Mine: finish returned NoneType, {PAIR}"),
    "no pair": (lambda end: end.delta, f"client Mine: finish returned Params, {PAIR}"),
    "list": (lambda end: [{"model": end.delta}, None], f"client Mine: finish returned list, {PAIR}"),
    "three": (lambda end: ({"model": end.delta}, None, {}), f"client Mine: finish returned a tuple of 3, {PAIR}"),
    "no mapping": (lambda end: (None, None), f"client Mine: finish returned NoneType as groups, {PAIR}"),
    "parameters": (lambda end: (end.delta, None), f"client Mine: finish returned Params as groups, {PAIR}"),
    "no group": (
        lambda end: ({}, None),
        r"client Mine: finish returned the groups \[\] for client \d, without 'model'; expected \['model'\]",
    ),
    "another group": (
        lambda end: ({"model": end.delta, "more": end.delta}, None),
        r"client Mine: finish returned the group 'more' for client \d; sends: \['model'\]",
    ),
    "misspelt group": (
        lambda end: ({"modle": end.delta}, None),
        r"client Mine: finish returned the group 'modle' for client \d; sends: \['model'\]",
    ),
    "no value": (
        lambda end: ({"model": None}, None),
        r"client Mine: finish returned NoneType in the group 'model' for client \d; expected Params or tensors",
    ),
    "a number": (
        lambda end: ({"model": 1.5}, None),
        r"client Mine: finish returned float in the group 'model' for client \d; expected Params or tensors",
    ),
    "an array": (
        lambda end: ({"model": {"w": torch.ones(2).numpy()}}, None),
        r"client Mine: finish returned ndarray in the group 'model' for client \d; expected Params or tensors",
    ),
    "a tensor": (
        lambda end: ({"model": torch.ones(torch.as_tensor(end.num_examples).shape)}, None),
        r"client Mine: finish returned a tensor of shape \(2?,?\) in the group 'model' for client \d; expected Params",
    ),
    "a tensor of another name": (
        lambda end: ({"model": renamed(end.delta)}, None),
        r"client Mine: finish returned the tensor 'mine' in the group 'model' for client \d; it received \['1.bias', ",
    ),
}


def renamed(params: Params) -> Params:
    """Return parameters of one or several clients, of which one tensor has another name."""
    layout = Params.of({"mine": torch.zeros(3)}).layout
    return layout.zeros(*params.batch)


@pytest.mark.parametrize("plan", ["loop", "compiled", "stacked", "flat"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_return_value_is_named(name, plan, tmp_path, monkeypatch):
    made, message = MISTAKES[name]
    monkeypatch.setattr(Mine, "made", staticmethod(made))
    config = {**CONFIG, "client": Mine(batch="full", steps=1, lr=0.1)}
    # such a class trains once before round 0, which shows some of the mistakes
    with pytest.raises((ClientError, ConfigError), match=message):
        fl.run(config, out=tmp_path, **{"execution.plan": plan})


class Measures(LocalTraining):
    made: ClassVar = None

    def metrics(self, end):
        return type(self).made


@pytest.mark.parametrize("plan", ["loop", "stacked"])
@pytest.mark.parametrize(
    "made, message",
    [
        (3.0, "client Measures: metrics returned float, expected a mapping by name"),
        ({"a": None}, "metric 'a' is None, not a number"),
        ({"a": torch.ones(3)}, r"metric 'a' is tensor\(\[1., 1., 1.\]\), not a number"),
    ],
)
def test_wrong_metrics_are_named(made, message, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(Measures, "made", made)
    with pytest.raises((ClientError, ConfigError), match=message):
        fl.run({**CONFIG, "client": Measures(batch="full", steps=1, lr=0.1)}, out=tmp_path, **{"execution.plan": plan})


class Counts(LocalTraining):
    """Weakens the updates of a client by the number of its rounds, a plain value in its state."""

    def first_state(self, inputs):
        return {"rounds": 0}

    def finish(self, end):
        return {"model": end.delta * (1 / (1 + end.state["rounds"]))}, {"rounds": end.state["rounds"] + 1}


def test_plain_values_of_a_mixed_cohort_keep_clients_apart(tmp_path):
    """Half of the clients take part in a round, so a chunk holds new and old ones."""
    changes = {"rounds": 3, "cohort": {"size": 2}, "client": Counts(batch="full", steps=1, lr=0.1)}
    plans = ("auto", "loop")
    found = [fl.run({**CONFIG, **changes}, out=tmp_path / plan, **{"execution.plan": plan}).model for plan in plans]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", [Compiled, LinearStack])
def test_parameters_with_as_many_rows_as_clients_have_no_axis_of_clients(backend):
    """The first tensor of the model has 16 rows. So many clients do not make it one row for each of them."""

    class Sends(LocalTraining):
        def finish(self, end):
            return {"model": end.delta}, {"first": Params(end.start.layout, end.start.buffers), "n": end.num_examples}

    sizes = torch.full((16,), 3).numpy()
    chunk, _ = make(mlp(), sizes=sizes, ids=torch.arange(16).numpy())
    with pytest.raises(
        ValueError, match=r"client Sends: finish returned state.first.* for 16 clients that train togeth"
    ):
        batched.train(Sends(batch=BATCH), chunk, backend)


def test_a_received_tensor_with_as_many_rows_as_clients_has_no_axis_of_clients():
    received = {"prototypes": torch.ones(3, 5)}
    check_stacked({"a": torch.ones(3, 5)}, None, None, 3, "Mine", "finish", received)
    for sent in (received["prototypes"], received["prototypes"][:, :2]):
        with pytest.raises(ValueError, match=r"client Mine: finish returned a with shape \(3, \d\) for 3 clients"):
            check_stacked({"a": sent}, None, None, 3, "Mine", "finish", received)
