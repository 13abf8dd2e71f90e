"""Dropout masks: what they are, and that all plans train with the same ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clients.fedprox import FedProx
from clients.sgd import LocalSGD
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from fl.execution.training.kernels import LinearStack
from fl.method.optimiser import SGD, Adam
from fl.models.architectures.linear import MLP
from fl.models.dropout import HALVES, Dropout, DropoutDraws, draw_masks, scale, share_of_zeros
from fl.tasks.supervised import Classification, Regression
from fl.tensors import random
from tests.execution.test_loop_batched import BATCH, CLIENTS, SIZES, assert_engines_agree, make
from tests.execution.test_own_steps import METHODS, agree


def test_masks_are_halves_of_the_published_stream():
    """The first words of SplitMix64 with seed 1234567 are published: 6457827717110365317, 3203168211198807973."""
    halves = [half for word in (6457827717110365317, 3203168211198807973) for half in (word % 2**32, word // 2**32)]
    for p in (0.3, 0.5, 0.9):
        expected = [0.0 if half < p * 2**32 else 1 / (1 - p) for half in halves[:3]]
        found = draw_masks(np.array([1234567], np.uint64), 3, p)
        torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-6, atol=0)


def test_zeros_have_their_probability_and_the_mean_is_one():
    n = 400_000
    for p in (0.1, 0.5, 0.75):
        masks = draw_masks(np.array([3, 4], np.uint64), n, p)
        zeros = (masks == 0).double().mean(1)
        assert ((zeros - p).abs() < 5 * (p * (1 - p) / n) ** 0.5).all()
        both = float((masks == 0).all(0).double().mean())  # masks of two keys are independent
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / n) ** 0.5
    share = share_of_zeros(0.3)
    assert (1 - share / HALVES) * scale(share) == pytest.approx(1, abs=1e-15)
    assert share_of_zeros(0.0) == 0 and share_of_zeros(1 - 1e-16) == HALVES - 1


def test_a_mask_depends_on_its_address_only():
    """Batch 2 has the same masks whether or not batches before it drew any; each call and batch has its own."""
    layers = [Dropout(0.5), Dropout(0.5)]

    def masks(*numbers):
        draws = DropoutDraws(layers, (5, 3, 1, "dropout/0"), repeats=False)
        for number in numbers:
            draws.begin_batch(number)
            with draws.gradient():
                found = [layer.train()(torch.ones(40, 3)) for layer in layers]
        return found

    alone, after = masks(2), masks(0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(alone, after))
    assert not torch.equal(*alone) and not torch.equal(alone[0], masks(1)[0])


def stack(*layers) -> nn.Sequential:
    torch.manual_seed(0)
    sizes, built = iter([(12, 17), (17, 9), (9, 4)]), []
    for layer in layers:
        built.append(nn.Linear(*next(sizes)) if layer is nn.Linear else layer)
    return nn.Sequential(*built)


MODELS = {
    "two layers": stack(
        *(nn.Flatten(), nn.Linear, nn.ReLU(), Dropout(0.5), nn.Linear, nn.Tanh(), Dropout(0.2), nn.Linear)
    ),
    "on the inputs": stack(Dropout(0.25), nn.Flatten(), nn.Linear, nn.ReLU(), nn.Linear, nn.ReLU(), nn.Linear),
    "on everything": stack(
        *(nn.Flatten(), Dropout(0.1), nn.Linear, nn.Sigmoid(), Dropout(0.6), nn.Linear, Dropout(0.3), nn.Linear)
    ),
    "layers normalised": MLP(hidden=(17, 9), dropout=0.4, normalise="layer", bias=False, activation="tanh").build(
        (12,), 4
    ),
}
RULES = {
    "plain": LocalSGD(),
    "momentum": LocalSGD(optimiser=SGD(momentum=0.9), clip=0.3),
    "adam": LocalSGD(optimiser=Adam(eps=0.05)),
    "proximal": FedProx(mu=0.3),
}


@pytest.mark.parametrize("backend", [Compiled, LinearStack])
@pytest.mark.parametrize("name", MODELS)
def test_clients_together_have_the_masks_of_the_loop(name, backend):
    """Clients have short last batches, and less than one batch; three epochs, so that masks of more steps differ."""
    module = MODELS[name]
    assert Compiled.covers(LocalSGD(), module, Classification()) is None
    for rule in RULES.values():
        agree(replace(rule, lr=0.1, batch=BATCH, epochs=3), backend, module)
    agree(LocalSGD(lr=0.1, batch="full", steps=3), backend, module)
    assert_engines_agree(LocalSGD(lr=0.05, batch=BATCH), *make(module, task=Regression()), backend)


@pytest.mark.parametrize("name", ["pfedme", "per_fedavg", "apfl", "sometimes"])
def test_own_steps_have_the_masks_of_the_loop(name):
    """Recorded steps, and steps whose gradients come from machine code, on two batches of a step."""
    agree(replace(METHODS[name], batch=BATCH, epochs=2), Compiled, MODELS["on everything"])


def test_masks_do_not_depend_on_the_chunk():
    """A client's update has the same bits alone and in a chunk."""
    algorithm = LocalSGD(lr=0.1, batch=BATCH, epochs=2)
    together = batched.train(algorithm, make(MODELS["on everything"])[0], Compiled).update
    for c in range(len(CLIENTS)):
        chunk, _ = make(MODELS["on everything"])
        one = slice(c, c + 1)
        alone = batched.train(
            algorithm, replace(chunk, clients=CLIENTS[one], starts=chunk.starts[one], sizes=SIZES[one]), Compiled
        ).update
        assert torch.equal(together.groups["model"].buffers[0][c], alone.groups["model"].buffers[0][0])


def test_a_model_trains_with_one_mask_for_each_step_and_layer():
    """One linear layer with Dropout on its inputs and squared error, in NumPy: w <- w - lr (h w - y)^T h / B."""
    module = nn.Sequential(nn.Flatten(), Dropout(0.5), nn.Linear(12, 4, bias=False))
    chunk, _ = make(module, task=Regression())
    update = batched.train(LocalSGD(lr=0.1, batch="full", steps=2), chunk, Compiled).update
    start = module[2].weight.detach().double().numpy()
    for c, n in enumerate(SIZES.tolist()):
        w = start.copy()
        order = chunk.rows[chunk.starts[c] + np.arange(n)]
        for step in range(2):
            shuffled = order[
                random.permutation(n, chunk.seed, int(CLIENTS[c]), chunk.participation, "shuffle", 0, step)
            ]
            key = random.hash64(chunk.seed, int(CLIENTS[c]), chunk.participation, "dropout/0", step, 0)
            halves = random.random_words(np.atleast_1d(key), 0, 6 * n).view(np.uint32).reshape(n, 12)
            h = chunk.arrays["x"][shuffled].flatten(1).double().numpy() * np.where(halves < 2**31, 0, 2)
            w = w - 0.1 * (h @ w.T - chunk.arrays["y"][shuffled].double().numpy()).T @ h / n
        found = update.groups["model"].row(c)["2.weight"].double().numpy()
        np.testing.assert_allclose(found, w - start, rtol=1e-4, atol=1e-6)
