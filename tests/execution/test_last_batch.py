"""Short last batches and fractions of epochs: batches written down by hand, and every engine takes them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fl
from clients.sgd import LocalSGD
from fl.execution.section import Execution
from fl.execution.training import batched
from fl.execution.training.client_batches import batches
from fl.execution.training.compiled import Compiled
from fl.execution.training.plan import make_plan
from fl.models.binding import module_params
from fl.tasks.supervised import Classification
from fl.tensors import random
from fl.tensors.trees import row
from tests.execution.test_loop_batched import (
    BACKENDS,
    PARTICIPATION,
    SEED,
    TOLERANCE,
    assert_close,
    assert_engines_agree,
    make,
    mlp,
)

# samples of a client -> sizes of the batches of one epoch, with batches of 4
BY_HAND = {
    "keep": {0: [], 1: [1], 3: [3], 4: [4], 5: [4, 1], 6: [4, 2], 8: [4, 4], 9: [4, 4, 1], 11: [4, 4, 3]},
    "drop": {0: [], 1: [1], 3: [3], 4: [4], 5: [4], 6: [4], 8: [4, 4], 9: [4, 4], 11: [4, 4]},
    "merge": {0: [], 1: [1], 3: [3], 4: [4], 5: [5], 6: [6], 8: [4, 4], 9: [4, 5], 11: [4, 7]},
    "merge_one": {0: [], 1: [1], 3: [3], 4: [4], 5: [5], 6: [4, 2], 8: [4, 4], 9: [4, 5], 11: [4, 4, 3]},
}
CASES = [(rule, n) for rule, sizes in BY_HAND.items() for n in sizes]
SIZES = np.array([0, 1, 3, 4, 5, 6, 8, 9, 11, 41])
CLIENTS = np.array([2, 4, 5, 7, 11, 12, 30, 31, 50, 77])


def phase(**settings):
    return LocalSGD(**settings).phases(0, 1)[0]


@pytest.mark.parametrize("rule, n", CASES)
def test_batches_are_those_written_down(rule, n):
    """In both epochs the batches are consecutive parts of that epoch's shuffle."""
    expected = BY_HAND[rule][n]
    trains = phase(batch=4, epochs=2, last_batch=rule)
    found = list(batches(trains, n, SEED, 3, PARTICIPATION, 0))
    assert [len(batch) for batch in found] == expected * 2
    for epoch in range(2 if n else 0):
        order = random.permutation(n, SEED, 3, PARTICIPATION, "shuffle", 0, epoch)
        of_epoch = np.concatenate(found[epoch * len(expected) : (epoch + 1) * len(expected)])
        np.testing.assert_array_equal(of_epoch, order[: sum(expected)])
    assert trains.num_steps(np.array([n])).tolist() == [2 * len(expected)]
    assert trains.num_samples(np.array([n])).tolist() == [2 * sum(expected)]
    assert trains.smallest_batch(np.array([n])).tolist() == [min(expected, default=0)]


@pytest.mark.parametrize("rule", BY_HAND)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_of_a_number_of_steps(rule, steps):
    for n, sizes in BY_HAND[rule].items():
        seen = sum((sizes * steps)[:steps])
        assert phase(batch=4, steps=steps, last_batch=rule).num_samples(np.array([n])).tolist() == [seen]


@pytest.mark.parametrize("rule", BY_HAND)
def test_a_full_batch_is_never_short(rule):
    assert phase(batch="full", last_batch=rule).num_steps(np.array([0, 1, 7])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "epochs, steps",
    # 5 batches of 4 in 18 samples; a half is rounded up; 0.6 and 1.2 are 3 and 6 batches although 0.6 * 5 is inexact
    [(0.01, 1), (0.1, 1), (0.29, 1), (0.3, 2), (0.5, 3), (0.6, 3), (1, 5), (1.0, 5), (1.2, 6), (1.5, 8), (2, 10)],
)
def test_a_fraction_of_an_epoch(epochs, steps):
    trains = phase(batch=4, epochs=epochs)
    assert trains.num_steps(np.array([0, 18])).tolist() == [0, steps]
    found = list(batches(trains, 18, SEED, 3, PARTICIPATION, 0))
    assert [len(batch) for batch in found] == ([4, 4, 4, 4, 2] * 2)[:steps]
    assert trains.num_samples(np.array([18])).tolist() == [sum(map(len, found))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [{"epochs": 2}, {"epochs": 1.5}, {"steps": 7}], ids=str)
@pytest.mark.parametrize("rule", BY_HAND)
def test_engines_agree(rule, budget, backend):
    algorithm = LocalSGD(lr=0.1, batch=4, last_batch=rule, **budget)
    assert_engines_agree(algorithm, *make(mlp(), sizes=SIZES, ids=CLIENTS), backend)


@pytest.mark.parametrize("rule", BY_HAND)
def test_training_is_plain_torch_on_these_batches(rule):
    sizes = np.array(list(BY_HAND[rule]))
    module, algorithm = mlp(), LocalSGD(lr=0.1, batch=4, last_batch=rule)
    chunk, contexts = make(module, sizes=sizes, ids=np.arange(len(sizes)))
    together = [batched.train(algorithm, chunk, backend).update for backend in BACKENDS]
    received = chunk.received["model"]
    for c, ctx in enumerate(contexts):
        net = mlp()
        step, view, at, losses = torch.optim.SGD(net.parameters(), lr=0.1), ctx.train, 0, []
        order = random.permutation(len(view), SEED, c, PARTICIPATION, "shuffle", 0, 0)
        for size in BY_HAND[rule][len(view)]:
            rows = torch.from_numpy(view.rows[order[at : at + size]])
            each = F.cross_entropy(net(view.arrays["x"][rows]), view.arrays["y"][rows], reduction="none")
            step.zero_grad()
            each.mean().backward()
            step.step()
            at, losses = at + size, losses + each.tolist()
        expected = module_params(net)
        alone = algorithm.work("train", ctx, None).update
        assert_close(received + alone.groups["model"], expected, expected)
        for update in together:
            assert_close(received + row(update.groups["model"], c), expected, expected)
            assert float(update.metrics["loss"][c]) == pytest.approx(np.mean(losses or [0.0]), rel=TOLERANCE)


@pytest.mark.parametrize(
    "rule, kind", [(None, "compiled"), ("keep", "compiled"), ("drop", "compiled"), ("merge", "stacked")]
)
def test_the_plan(rule, kind):
    module = mlp()
    x = torch.zeros(4, 3, 4)
    algorithm = LocalSGD(last_batch=rule)
    plan = make_plan(algorithm, module, module_params(module), Classification(), x, Execution(executor="serial"))
    assert plan.kind == kind and (kind == "compiled" or "last batches are merged" in plan.why)
    with_batches = make(module, sizes=SIZES, ids=CLIENTS)[0]
    assert Compiled.trains_whole(algorithm, with_batches, algorithm.phases(0, 1)) == (kind == "compiled")


CONFIG = {
    "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 4, "samples": 11},
    "partition": "natural",
    "splits": {"val": 0},
    "model": "softmax",
    "rounds": 1,
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "execution": {"executor": "serial"},
    "evaluation": {"server": False},
}


@pytest.mark.parametrize(
    "client, message",
    [
        ({"epochs": 2, "steps": 5}, r"client.steps: 5 beside epochs: 2; they are two budgets .* Leave one out"),
        ({"epochs": 1, "steps": 5}, r"client.steps: 5 beside epochs: 1"),
        ({"epochs": 0}, r"client.epochs: 0 is not positive"),
        ({"epochs": float("inf")}, r"client.epochs: inf is not in \(0, inf\)"),
        ({"last_batch": "skip"}, r"client.last_batch: 'skip' is not"),
    ],
)
def test_refused(client, message, tmp_path):
    with pytest.raises(fl.ConfigError, match=message):
        fl.run(CONFIG | {"client": client}, out=tmp_path)


@pytest.mark.parametrize("client", [{"steps": 3}, {"steps": 3, "epochs": None}, {"epochs": 0.5}, {"epochs": 2}, {}])
def test_the_resolved_configuration_gives_the_same_run(client, tmp_path):
    first = fl.run(CONFIG | {"client": client | {"batch": 4}}, out=tmp_path / "a")
    again = fl.run(tmp_path / "a" / "config.yaml", out=tmp_path / "b")
    for name, tensor in first.model.items():
        assert torch.equal(tensor, again.model[name])
