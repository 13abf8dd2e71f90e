"""FedAsync, FedBuff, FedAT: schedules computed by hand, and models compared with a NumPy version."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.noise import RandomData
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation
from strategies.fedasync import FedAsync
from strategies.fedat import tier_weights
from strategies.fedbuff import FedBuff
from strategies.staleness import damping

CLIENTS, SAMPLES, LR, MU = 3, 5, 0.5, 0.3
# seconds of a round trip of clients 0, 1, 2; arrivals at  1.0  1.6  2.0  2.7  3.0  3.2  4.0  4.8  5.0  5.4
SECONDS = (1.0, 1.6, 2.7)
ARRIVE = (0, 1, 0, 2, 0, 1, 0, 1, 0, 2)


def begun(tmp_path, **more):
    (tmp_path / "devices.csv").write_text("ms_per_sample\n" + "\n".join(str(1000 * s / SAMPLES) for s in SECONDS))
    config = {
        "rounds": 6,
        "data": {"name": "noise", "shape": [4], "classes": 3, "clients": CLIENTS, "samples": SAMPLES},
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "client": {"epochs": 1, "batch": "full", "lr": LR},
        "system": {"devices": {"name": "trace", "path": str(tmp_path / "devices.csv")}},
        "execution": {"executor": "serial", "plan": "loop"},
        "evaluation": {"server": False, "clients": 0},
    }
    return Simulation(resolve(read(config | more)), tmp_path / "run")


def followed(tmp_path, **more):
    """Run; return the first and last models, (outputs, features + 1) with biases in the last column, and the result."""
    with begun(tmp_path, **more) as simulation:
        first, result = simulation.run_setup.model, simulation.run()
    flat = lambda p: np.c_[p["1.weight"].numpy(), p["1.bias"].numpy()].astype(np.float64)  # noqa: E731
    return flat(first), flat(result.model), result


def descended(w, client, mu=0.0):
    """Take one gradient step on the mean cross-entropy of a client's samples.

    mu does not change it, because the proximal term has zero gradient at the start.
    """
    data = RandomData(shape=(4,), classes=3, clients=CLIENTS, samples=SAMPLES).load()
    mine = np.flatnonzero(data.clients == client)
    x, y = np.c_[data.train["x"][mine], np.ones(len(mine))].astype(np.float64), data.train["y"][mine]
    scores = x @ w.T
    p = np.exp(scores - scores.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    return w - LR * p.T @ x / len(mine)


# -- staleness --------------------------------------------------------------------------------------------------------
def test_staleness_by_hand():
    assert [damping("constant", t, 9.0, 0) for t in (0, 7)] == [1.0, 1.0]
    assert [damping("polynomial", t, 0.5, 0) for t in (0, 3, 8)] == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert [damping("hinge", t, 10.0, 4) for t in (0, 4, 5, 6)] == pytest.approx([1.0, 1.0, 1 / 11, 1 / 21])


@pytest.mark.parametrize(
    "wrong",
    [{"staleness": "linear"}, {"a": -1.0}, {"b": -1}, {"alpha": 0.0}, {"alpha": 1.5}],
    ids=lambda w: next(iter(w)),
)
def test_refusals(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FedAsync(**wrong)
    if "alpha" not in wrong:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FedBuff(**wrong)


# -- FedAsync ---------------------------------------------------------------------------------------------------------
def test_fedasync_alone_is_a_chain(tmp_path):
    """With alpha=1 and one client in flight, each client starts from the last client's model."""
    settings = {"strategy": {"name": "fedasync", "alpha": 1.0}, "server": {"name": "async", "concurrency": 1}}
    model, last, result = followed(tmp_path, **settings)
    rows = pq.read_table(result.directory / "clients.parquet").to_pylist()
    chain = [row["client"] for row in rows if row["split"] == "train"]
    assert len(chain) == 6 and len(set(chain)) > 1
    for client in chain:
        model = descended(model, client)
    np.testing.assert_allclose(last, model, rtol=0, atol=1e-6)


# (client, version of its start) of each arrival; all three are always in flight, so the client that arrives is the
# one that starts
BEGAN = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 3), (1, 2))
STALENESS = (0, 1, 1, 3, 1, 3)


@pytest.mark.parametrize("kind, s", [("constant", lambda t: 1.0), ("polynomial", lambda t: (1 + t) ** -0.5)])
def test_fedasync_mixes_in_order_of_arrival(tmp_path, kind, s):
    settings = {"strategy": {"name": "fedasync", "alpha": 0.6, "staleness": kind}, "client": {"mu": MU}}
    settings["client"] |= {"epochs": 1, "batch": "full", "lr": LR}
    first, last, result = followed(tmp_path, server={"name": "async", "concurrency": 3}, **settings)
    versions = [first]
    for (client, version), tau in zip(BEGAN, STALENESS):
        assert len(versions) - 1 - version == tau
        weight = 0.6 * s(tau)
        versions.append((1 - weight) * versions[-1] + weight * descended(versions[version], client))
    np.testing.assert_allclose(last, versions[-1], rtol=0, atol=1e-6)
    assert [row["staleness"] for row in result.metrics] == list(STALENESS)


def test_several_models_of_a_step_are_mixed_one_after_another(tmp_path):
    """A synchronous round mixes in order of sample counts, then ids; here the counts are equal."""
    first, last, _ = followed(tmp_path, strategy={"name": "fedasync", "alpha": 0.25}, rounds=1, cohort={"size": 3})
    model = first
    for client in range(3):
        model = 0.75 * model + 0.25 * descended(first, client)
    np.testing.assert_allclose(last, model, rtol=0, atol=1e-6)


def test_a_term_holds_clients_near(tmp_path):
    """In the second of two steps, the gradient of mu/2 |w - received|^2 is mu times the first step."""
    settings = {
        "strategy": {"name": "fedasync", "alpha": 1.0},
        "server": {"name": "async", "concurrency": 1},
        "rounds": 1,
    }
    client = {"steps": 2, "batch": "full", "lr": LR, "mu": MU}
    first, last, result = followed(tmp_path, client=client, **settings)
    who = pq.read_table(result.directory / "clients.parquet").to_pylist()[0]["client"]
    one = descended(first, who)
    np.testing.assert_allclose(last, descended(one, who) - LR * MU * (one - first), rtol=0, atol=1e-6)


# -- FedBuff ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_fedbuff_weights_from_a_schedule(tmp_path, beta):
    """Buffers of two. A client starts again when it arrives; if it fills the buffer, it starts from the new model."""
    steps = (  # (client, version of its start), staleness
        (((0, 0), 0), ((1, 0), 0)),  # 1.0 1.6
        (((0, 0), 1), ((2, 0), 1)),  # 2.0 2.7
        (((0, 1), 1), ((1, 1), 1)),  # 3.0 3.2
        (((0, 2), 1), ((1, 3), 0)),  # 4.0 4.8
        (((0, 3), 1), ((2, 2), 2)),  # 5.0 5.4
    )
    strategy = {"name": "fedbuff", "lr": 0.7, "server_optimiser": {"name": "momentum", "beta": beta}}
    server = {"name": "buffered", "concurrency": 3, "buffer": 2}
    first, last, result = followed(tmp_path, strategy=strategy, server=server, rounds=5)
    versions, velocity = [first], np.zeros_like(first)
    for step in steps:
        mean = np.zeros_like(first)
        for (client, version), tau in step:
            mean += (descended(versions[version], client) - versions[version]) / math.sqrt(1 + tau) / 2
        velocity = beta * velocity + mean
        versions.append(versions[-1] + 0.7 * velocity)
    np.testing.assert_allclose(last, versions[-1], rtol=0, atol=1e-6)
    assert [row["staleness"] for row in result.metrics] == [0.0, 1.0, 1.0, 0.5, 1.5]


def test_fedbuff_by_samples_is_fedavg(tmp_path):
    """With a synchronous server and weights by samples it is FedAvg, with equal bits."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    settings = {"rounds": 3, "cohort": {"size": 2}}
    one = followed(tmp_path / "one", strategy={"name": "fedbuff", "weights": "examples"}, **settings)[2]
    two = followed(tmp_path / "two", strategy="fedavg", **settings)[2]
    assert one.digest == two.digest


# -- FedAT ------------------------------------------------------------------------------------------------------------
def test_tier_weights_by_hand():
    assert tier_weights((3, 2, 1)) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert tier_weights((1, 0)) == [0.0, 1.0]


def test_fedat_weighs_tiers_by_the_counts_of_the_others(tmp_path):
    """Three tiers of one client each: arrivals are those of FedAsync, and each tier counts with its newest model."""
    weights = (
        (0, 0, 1),
        (0, 1 / 2, 1 / 2),
        (0, 1 / 3, 2 / 3),
        (1 / 4, 1 / 4, 2 / 4),
        (1 / 5, 1 / 5, 3 / 5),
        (1 / 6, 2 / 6, 3 / 6),
    )
    server = {"name": "tiered", "tiers": 3, "clients": 1}
    first, last, result = followed(tmp_path, strategy="fedat", server=server)
    versions, tiers = [first], [first] * 3
    for (client, version), row in zip(BEGAN, weights):
        tiers[client] = descended(versions[version], client)
        versions.append(sum(w * tier for w, tier in zip(row, tiers)))
    np.testing.assert_allclose(last, versions[-1], rtol=0, atol=1e-6)
    assert [[row[f"tier{m}"] for m in range(3)] for row in result.metrics] == [pytest.approx(row) for row in weights]


# -- bytes ------------------------------------------------------------------------------------------------------------
def test_a_whole_model_is_as_large_as_a_difference(tmp_path):
    """The clock must know the size of updates before the training: a model of 15 numbers."""
    server = {"name": "async", "concurrency": 1}
    with begun(tmp_path, strategy="fedasync", server=server) as simulation:
        result = simulation.run()
        assert simulation.exchanges.nbytes == (60, 60)
    assert {row["encoded_bytes"] for row in result.ledger.to_pylist()} == {60}


def test_delta_sends_what_a_model_differs_from_the_one_received(tmp_path):
    """fp16 rounds a model, but a difference of 0 is exact."""
    settings = {"strategy": {"name": "fedasync", "alpha": 1.0}, "server": {"name": "async", "concurrency": 2}}
    settings["client"] = {"epochs": 1, "batch": "full", "lr": 0.0}
    for name, up, same in (("plain", ["fp16"], False), ("delta", ["delta", "fp16"], True)):
        (tmp_path / name).mkdir()
        first, last, result = followed(tmp_path / name, codec={"up": up}, **settings)
        assert (first == last).all() == same
        assert {row["encoded_bytes"] for row in result.ledger.to_pylist() if row["direction"] == "up"} == {30}


def test_a_group_of_unknown_size_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="system.up_bytes: missing"):
        with begun(tmp_path, strategy="ifca", server={"name": "async", "concurrency": 1}) as run:
            run.run()
