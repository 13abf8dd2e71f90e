"""Fits before training, of a chunk or of one client; expected values from autograd in float64."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.fedala import FedALA
from fl import Fit, LocalTraining
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from fl.execution.training.flat import Flat
from fl.execution.training.kernels import LinearStack
from fl.execution.training.prepared import preparation_of
from fl.models.dropout import Dropout
from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import row
from tests.execution.test_exchanges_together import CONFIG
from tests.execution.test_loop_batched import PARTICIPATION, SEED, like, make
from tests.execution.test_one_client import expected, network, networks

SIZES = np.array([7, 20, 1, 43, 0])
IDS = np.arange(len(SIZES)) + 3
COUNTS = np.array([5, 20, 1, 33, 0])


class Prepares(LocalTraining):
    """Has the hook that the engine asks for."""

    def prepare(self, ctx, inputs):
        return fl.prepare_alone(self, ctx, inputs)

    def prepare_together(self, clients, inputs):
        return None


def chosen(client: int, epoch: int) -> np.ndarray:
    """Return the positions of a client's samples in an epoch, as the module's docstring has it."""
    address = SEED, int(IDS[client]), PARTICIPATION
    samples = random.permutation(int(SIZES[client]), *address, "w/sample")[: COUNTS[client]]
    return samples[random.permutation(int(COUNTS[client]), *address, "w/shuffle", epoch)]


def fitted(module, task, how: Fit, client: int, names, others, contexts) -> tuple[dict, int]:
    """Return the last z of a client and its number of epochs, by autograd in float64."""
    z = {name: how.start[name][client].double() for name in names}
    losses = []
    for epoch in range(int(how.epochs[client]) if COUNTS[client] else 0):
        for first in range(0, COUNTS[client], 8):
            batch = contexts[client].train.take(chosen(client, epoch)[first : first + 8])
            at = {n: how.base[n][client].double() + z[n] * how.direction[n][client].double() for n in names}
            loss, gradient = expected(module, {**others, **at}, batch, task, names)
            for name in names:
                step = how.rate * gradient[name] * how.direction[name][client].double()
                z[name] = (z[name] - step).clamp(how.low, how.high)
        losses.append(loss / len(batch["x"]))
        if epoch >= how.window and np.std(losses[-how.window :]) < how.threshold:
            break
    return z, len(losses)


def case(model, names, **settings) -> Fit:
    """Return a fit of some tensors, with random numbers."""
    base, direction = (like(model, part, len(SIZES), scale=0.4).select(names) for part in ("base", "direction"))
    start = like(model, "start", len(SIZES), scale=0.4).select(names)
    return Fit(base=base, direction=direction, start=start, rate=0.7, epochs=np.array([3, 2, 0, 4, 5]), **settings)


@networks
@pytest.mark.parametrize("settings", [{}, {"low": -0.3, "high": 0.2, "threshold": 0.1}], ids=["plain", "bounds"])
def test_fits_of_a_chunk_are_those_of_autograd(module, task, settings):
    """In the last layer, in the two last ones, in one tensor of the second, and in all tensors; batches of 8."""
    chunk, contexts = make(module, sizes=SIZES, task=task, ids=IDS)
    preparation, names = preparation_of(Prepares(batch=8, lr=0.1), chunk, Compiled), list(chunk.initial.trained)
    linear = list(dict.fromkeys(name.split(".")[0] for name in names))
    layers = [[n for n in names if n.split(".")[0] in part] for part in (linear[-1:], linear[-2:], linear)]
    for k, some in enumerate([*layers, [f"{linear[1]}.weight"]]):
        received = chunk.received["model"]
        others = like(received, "others", scale=0.5) if k == 1 else received
        how = case(received, some, **settings)
        found, epochs = preparation.fit(how, "w", COUNTS, others)
        for client in range(len(SIZES)):
            z, taken = fitted(module, task, how, client, some, dict(others), contexts)
            assert epochs[client] == taken
            for name in some:
                torch.testing.assert_close(found[name][client].double(), z[name], rtol=2e-4, atol=2e-5)


def states(algorithm: FedALA, contexts) -> list:
    """Return states of clients that have trained 0, 1, 2, 3 and 1 times."""
    found = []
    for c, ctx in enumerate(contexts):
        model = ctx.received["model"]
        mixed = model.select(["5.*"] if algorithm.layers is None else algorithm.layers)
        weights = Params(mixed.layout, (like(mixed, f"weights/{c}", scale=0.4).buffers[0].abs().clamp(0, 1),))
        trainings = torch.tensor([0, 1, 2, 3, 1][c])
        own = {"personal": like(model, f"old/{c}", scale=0.5), "weights": weights, "trainings": trainings}
        found.append(own if trainings else None)
    return found


@pytest.mark.parametrize("layers", [None, ("*.weight",)])
@pytest.mark.parametrize("settings", [{"first_epochs": 5}, {"window": 2, "threshold": 0.05}, {"eta": 0.0}])
def test_clients_that_prepare_together_have_the_bits_of_each_alone(layers, settings):
    module = network(nn.ReLU())
    algorithm = FedALA(batch=8, lr=0.1, layers=layers, **settings)
    contexts = make(module, sizes=SIZES, ids=IDS)[1]
    given = states(algorithm, contexts)
    chunk, contexts = make(module, sizes=SIZES, ids=IDS, states=given)
    inputs = batched.with_preparation(algorithm, chunk, batched._inputs(algorithm, chunk), Compiled)
    for c, ctx in enumerate(contexts):
        alone = algorithm.inputs(replace(ctx, machine_code=True)).prepared
        for name in ("start", "weights"):
            assert torch.equal(row(inputs.prepared, c)[name].buffers[0], alone[name].buffers[0])


def test_a_fit_ends_when_its_losses_settle():
    """With a bound that all losses keep, it ends after `window` + 1 epochs, as a fit with this number of epochs."""
    module = network(nn.ReLU())
    chunk, contexts = make(module, sizes=SIZES, ids=IDS)
    received, preparation = chunk.received["model"], preparation_of(Prepares(batch=8, lr=0.1), chunk, Compiled)
    settles = case(received, ["5.*"], threshold=1e9, window=2)
    ends = replace(settles, threshold=0.0, epochs=np.minimum(settles.epochs, 3))
    one, other, all_ = (
        preparation.fit(how, "w", COUNTS, received) for how in (settles, ends, replace(settles, threshold=0.0))
    )
    assert torch.equal(one[0].buffers[0], other[0].buffers[0])
    assert not torch.equal(one[0].buffers[0], all_[0].buffers[0])
    assert one[1].tolist() == other[1].tolist() == [3, 2, 0, 3, 0] and all_[1].tolist() == [3, 2, 0, 4, 0]


def test_rows_that_do_not_fit_are_refused():
    model = make(network(nn.ReLU()), sizes=SIZES, ids=IDS)[0].received["model"]
    good = case(model, ["5.*"])
    for name, wrong in (("base", good.base.row(slice(3))), ("direction", good.direction.select(["5.bias"]))):
        with pytest.raises(ValueError, match=f"{name}: it holds"):
            replace(good, **{name: wrong})
    for settings in (
        *({"rate": -1.0}, {"rate": np.nan}, {"rate": np.inf}, {"window": 1}, {"threshold": -0.5}),
        *({"low": 1.0, "high": 0.5}, {"low": np.nan}, {"epochs": np.full(5, 1.5)}, {"epochs": [1] * 5}),
        *({"epochs": np.array([1, 2, -3, 1, 1])}, {"epochs": np.ones((5, 1), np.int64)}),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))}"):
            replace(good, **settings)


ARGUMENTS = {
    "float counts": ({"counts": np.array([3.0])}, "counts: float64 (1,) is not an int64 array with a number for"),
    "int32 counts": ({"counts": np.array([3], np.int32)}, "counts: int32 (1,) is not an int64 array with a number"),
    "a list of counts": ({"counts": [3]}, "counts: list is not an int64 array with a number for each client"),
    "two counts": ({"counts": np.array([3, 3])}, "counts: 2 numbers for 1 clients"),
    "negative counts": ({"counts": np.array([-1])}, "counts[0]: -1 is not at least 0"),
    "more than all samples": ({"counts": np.array([8])}, "counts[0]: 8 is more than the client's number of samples, 7"),
    "others of clients": ({"others": "batched"}, "others: the batch (1,), expected Params that are the same for all"),
    "a dict of others": ({"others": {}}, "others: dict, expected Params"),
    "another number of clients": ({"clients": 3}, "how: a fit of 3 clients for 1 clients"),
}


@pytest.mark.parametrize("together", [False, True], ids=["loop", "compiled"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments_of_a_fit_are_refused_alike(name, together):
    wrong, message = ARGUMENTS[name]

    class Fits(Prepares):
        def prepare_together(self, clients, inputs):
            received, n = inputs.received["model"], wrong.get("clients", 1)
            rows = received.select(["5.*"]).layout.zeros(n)
            how = Fit(base=rows, direction=rows, start=rows, rate=0.1, epochs=np.full(n, 2))
            others = wrong.get("others", received)
            others = received.layout.zeros(1) if others == "batched" else others
            return {"z": clients.fit(how, "w", wrong.get("counts", np.array([3])), others)[0]}

    algorithm, (chunk, contexts) = Fits(batch=8, lr=0.1), make(network(nn.ReLU()), sizes=SIZES[:1], ids=IDS[:1])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        batched.train(algorithm, chunk, Compiled) if together else algorithm.inputs(contexts[0])


def test_other_plans_and_models_prepare_one_client_at_a_time():
    algorithm = FedALA(batch=8, lr=0.1)
    plain, masked = (make(network(nn.ReLU(), *more), sizes=SIZES, ids=IDS)[0] for more in ((), (Dropout(0.5),)))
    assert preparation_of(algorithm, plain, Compiled) is not None
    assert preparation_of(algorithm, masked, Compiled) is None
    assert preparation_of(algorithm, plain, LinearStack) is None and preparation_of(algorithm, plain, Flat) is None
    assert preparation_of(LocalTraining(batch=8, lr=0.1), plain, Compiled) is None


def test_a_prepare_of_a_subclass_is_not_passed_over():
    class Own(FedALA):
        def prepare(self, ctx, inputs):
            return {"start": inputs.received["model"], "weights": inputs.state["weights"]}

    assert preparation_of(Own(batch=8, lr=0.1), make(network(nn.ReLU()), sizes=SIZES, ids=IDS)[0], Compiled) is None

    class Without(LocalTraining):
        def prepare_together(self, clients, inputs):
            return None

    with pytest.raises(ValueError, match="nothing calls Without.prepare_together\\(\\) for one client; define prepare"):
        Without(batch=8, lr=0.1)


def test_plans_end_where_the_loop_ends(tmp_path):
    runs = {
        plan: fl.run({**CONFIG, "strategy": "fedala", "rounds": 4}, out=tmp_path / plan, **{"execution.plan": plan})
        for plan in ("compiled", "stacked", "loop")
    }
    loop = runs.pop("loop").model
    for run in runs.values():
        for name, tensor in loop.items():
            torch.testing.assert_close(run.model[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_result_without_an_axis_of_clients_is_refused():
    class Wrong(Prepares):
        def prepare_together(self, clients, inputs):
            return {"loss": torch.zeros(2)}

    chunk = make(network(nn.ReLU()), sizes=SIZES, ids=IDS)[0]
    with pytest.raises(ValueError, match=r"together returned prepared.loss, Tensor of shape \(2,\), for 5 clients"):
        batched.train(Wrong(batch=8, lr=0.1), chunk, Compiled)


def test_a_label_that_is_no_class_ends_with_an_error():
    chunk = make(network(nn.ReLU()), sizes=SIZES, ids=IDS)[0]
    chunk = replace(chunk, arrays={**chunk.arrays, "y": torch.full_like(chunk.arrays["y"], 9)})
    preparation = preparation_of(Prepares(batch=8, lr=0.1), chunk, Compiled)
    with pytest.raises(IndexError, match="label 9 of sample [0-9]+ is not one of the model's 4 classes"):
        preparation.fit(case(chunk.received["model"], ["5.*"]), "w", COUNTS, chunk.received["model"])
