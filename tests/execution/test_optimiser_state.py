"""Memory of clients' optimisers across rounds (`client.optimiser_state`), against torch.optim and by hand."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.simulation.build import set_up_run

MODEL = 4 * (64 * 10 + 10)  # bytes of a softmax for digits
CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "iid", "clients": 2},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"batch": "full", "steps": 2, "lr": 0.05, "optimiser": {"name": "sgd", "momentum": 0.9}},
    "execution": {"executor": "serial"},
    "evaluation": {"every": 9},
}
ADAM = {"client.optimiser": {"name": "adam"}, "client.lr": 0.01}
OPTIMISERS = {
    "momentum": ({}, lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9)),
    "adam": (ADAM, lambda params: torch.optim.Adam(params, lr=0.01)),
}


def setup_of(**changes):
    return set_up_run(resolve(read(CONFIG, changes)))


def own_data(setup, client):
    """The client's training rows: inputs, labels."""
    rows = setup.periods[0].partition.view_rows(client, "train")
    return torch.tensor(setup.dataset.train["x"][rows]).flatten(1), torch.tensor(setup.dataset.train["y"][rows])


def first_model(setup):
    return [tensor.clone().requires_grad_() for tensor in (setup.model[name] for name in setup.model)]


def torch_steps(weights, optimiser, data, steps):
    """Take full-batch steps in torch; `weights`: weight (K, D) and bias (K,) in the order of the model's names."""
    x, y = data
    by_rank = {w.ndim: w for w in weights}
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(x @ by_rank[2].T + by_rank[1], y).backward()
        optimiser.step()


def distance(model, weights):
    return max(float((model[name] - w.detach()).abs().max()) for name, w in zip(model, weights))


@pytest.mark.parametrize("kind", ["kept", "averaged"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_one_client_that_keeps_its_memory_trains_as_without_rounds(kind, optimiser, tmp_path):
    changes, make = OPTIMISERS[optimiser]
    changes = {**changes, "partition.clients": 1, "cohort.size": 1}
    result = fl.run(CONFIG, out=tmp_path / "run", **changes, **{"client.optimiser_state": kind})
    setup = setup_of(**changes)
    weights = first_model(setup)
    torch_steps(weights, make(weights), own_data(setup, 0), steps=3 * 2)
    assert distance(result.model, weights) < 2e-6
    reset = fl.run(CONFIG, out=tmp_path / "reset", **changes)
    assert distance(reset.model, weights) > 1e-3


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("kind", ["kept", "averaged"])
def test_two_clients_and_the_bytes_of_their_memory(kind, optimiser, tmp_path):
    """The rounds in torch: each client's memory stays with it, or is replaced by the mean over clients."""
    changes, make = OPTIMISERS[optimiser]
    result = fl.run(CONFIG, out=tmp_path / "run", **changes, **{"client.optimiser_state": kind})
    setup = setup_of(**changes)
    sizes = np.array([len(own_data(setup, c)[0]) for c in range(2)])
    shares, server, memories = sizes / sizes.sum(), first_model(setup), [None, None]
    for _ in range(3):
        models = []
        for client in range(2):
            weights = [w.detach().clone().requires_grad_() for w in server]
            rule = make(weights)
            if memories[client] is not None:
                rule.load_state_dict(memories[client])
            torch_steps(weights, rule, own_data(setup, client), steps=2)
            memories[client] = rule.state_dict()
            models.append(weights)
        server = [sum(share * w.detach() for share, w in zip(shares, ws)) for ws in zip(*models)]
        if kind == "averaged":
            for index, entry in memories[0]["state"].items():
                other = memories[1]["state"][index]
                mean = {name: shares[0] * value + shares[1] * other[name] for name, value in entry.items()}
                memories[0]["state"][index] = mean
                memories[1]["state"][index] = {name: value.clone() for name, value in mean.items()}
    assert distance(result.model, server) < 5e-6
    memory = {"momentum": MODEL, "adam": 2 * MODEL}[optimiser] + 8 if kind == "averaged" else 0  # an int64 of steps
    rows = [(row["uplink_bytes"], row["downlink_bytes"]) for row in result.metrics]
    assert rows == [(2 * (MODEL + memory), 2 * (MODEL + memory * later)) for later in (0, 1, 1)]


@pytest.mark.parametrize("kind", ["kept", "averaged"])
def test_a_resumed_run_has_the_same_bits(kind, tmp_path):
    changes = {**ADAM, "client.optimiser_state": kind, "client.batch": 32, "partition.clients": 4}
    whole = fl.run(CONFIG, out=tmp_path / "whole", **changes)
    fl.run(CONFIG, out=tmp_path / "two", **changes, rounds=2)
    assert fl.resume(tmp_path / "two", rounds="+1").digest == whole.digest
    assert whole.digest != fl.run(CONFIG, out=tmp_path / "reset", **ADAM, **{"client.batch": 32}).digest


def test_kept_memory_stays_beside_other_state(tmp_path):
    """Both kinds of state of one client: SCAFFOLD-like error feedback beside the optimiser's memory."""
    changes = {"client.optimiser_state": "kept", "codec.up": ["error_feedback", {"top_k": {"ratio": 1.0}}]}
    all_kept = fl.run(CONFIG, out=tmp_path / "a", **changes)
    assert all_kept.digest == fl.run(CONFIG, out=tmp_path / "b", **{"client.optimiser_state": "kept"}).digest


def test_momentum_averages_through_a_lossy_codec(tmp_path):
    changes = {"client.optimiser_state": "averaged", "codec.up": {"quantise": {"bits": 8}}, "strategy": "fedprox"}
    result = fl.run(CONFIG, out=tmp_path / "run", **changes)
    up = result.ledger.to_pylist()
    sent = {(row["direction"], row["group"]): row["encoded_bytes"] for row in up}
    assert sent["up", "optimiser"] < MODEL / 3 and sent["down", "optimiser"] == MODEL + 8


def test_every_strategy_that_averages_models_takes_it(tmp_path):
    fl.run(CONFIG, out=tmp_path / "a", **{"client.optimiser_state": "averaged", "strategy": "fedadam"})
    fl.run(CONFIG, out=tmp_path / "b", **{"client.optimiser_state": "kept", "strategy": "fednova"})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"client.optimiser": "sgd"}, "client.*optimiser_state: 'kept' is not possible: SGD.*has no memory.*momentum"),
        (
            {"client.optimiser": {"name": "torch", "cls": "RMSprop"}},
            "the memory of Torch holds other values than tensor",
        ),
        ({"strategy": "scaffold", "client.optimiser_state": "keep"}, "is not 'reset', 'kept' or 'averaged'"),
        ({"execution.plan": "flat"}, "execution.*'flat' is not possible: optimisers are kept between rounds.*loop"),
        (
            {
                "evaluation": {
                    "stage": "adapted",
                    "adapt": {"name": "sgd", **CONFIG["client"], "optimiser_state": "kept"},
                }
            },
            "evaluation.adapt.optimiser_state: 'kept' is not possible: evaluations keep nothing",
        ),
        ({"client.optimiser_state": "averaged", "strategy": "local"}, "needs a strategy that reduces the clients' mod"),
        (
            {"client.optimiser_state": "averaged", **ADAM, "codec.up": {"quantise": {"bits": 8}}},
            "a lossy codec.up with",
        ),
        (
            {
                "client.optimiser_state": "averaged",
                "system": {"devices": {"identical": {}}},
                "server": {"name": "buffered", "concurrency": 2, "buffer": 1},
            },
            "an asynchronous server; use server: sync",
        ),
    ],
)
def test_what_is_not_possible_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "a", **{"client.optimiser_state": "kept", **changes})
