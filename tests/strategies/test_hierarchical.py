"""HierFAVG: rounds of edges and cloud in NumPy, the settings that equal FedAvg, bytes between servers."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.noise import LogNormal, RandomData
from fl.errors import ConfigError
from fl.method.fold import Fold
from fl.method.grouped import ByClient, Grouped
from fl.method.reduction import Meta, WeightedMean
from fl.simulation.run import resume
from fl.simulation.simulation import Simulation
from fl.tensors.params import Params
from strategies.hierarchical import edge_of_clients
from tests.process import python

CLIENTS, LR = 4, 0.5
DATA = RandomData(shape=(4,), classes=3, clients=CLIENTS, samples=LogNormal(lognormal=0.8, mean=12, low=3, high=40))
MODEL_BYTES = 4 * (4 + 1) * 3


def run(folder, **more):
    config = {
        "rounds": 5,
        "data": DATA,
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "client": {"epochs": 1, "batch": "full", "lr": LR},
        "cohort": {"size": CLIENTS},
        "execution": {"executor": "serial", "plan": "loop"},
        "evaluation": {"server": False, "clients": 0},
    }
    with Simulation(resolve(read(config | more)), folder) as simulation:
        return simulation.run_setup.model, simulation.run()


def matrix(p):
    """Return parameters as (outputs, features + 1); biases are in the last column."""
    return np.c_[p["1.weight"].numpy(), p["1.bias"].numpy()].astype(np.float64)


def own(client):
    """Return a client's inputs (samples, features + 1) and labels (samples,)."""
    data = DATA.load()
    mine = np.flatnonzero(data.clients == client)
    return np.c_[data.train["x"][mine], np.ones(len(mine))].astype(np.float64), data.train["y"][mine]


def descended(w, client):
    """Take one gradient step on the mean cross-entropy of a client's samples."""
    x, y = own(client)
    p = np.exp(x @ w.T)
    p = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    return w - LR * p.T @ x / len(y)


@pytest.mark.parametrize("edges, members", [(2, ((0, 1), (2, 3))), ([1, 0, 1, 1], ((1,), (0, 2, 3)))])
def test_edges_and_cloud_by_hand(tmp_path, edges, members):
    """In five rounds the cloud averages after the second, the fourth and the last round."""
    first, result = run(tmp_path / "run", strategy={"name": "hierarchical", "edges": edges, "edge_rounds": 2})
    size = [len(own(client)[1]) for client in range(CLIENTS)]
    assert len(set(size)) > 1
    counts = [sum(size[k] for k in group) for group in members]
    models = [matrix(first)] * 2
    for round_ in range(5):
        models = [
            sum(size[k] * descended(model, k) for k in group) / n for model, group, n in zip(models, members, counts)
        ]
        if round_ in (1, 3, 4):
            models = [sum(n * model for n, model in zip(counts, models)) / sum(counts)] * 2
    np.testing.assert_allclose(matrix(result.model), models[0], rtol=0, atol=1e-6)


def test_one_edge_that_reports_each_round_is_fedavg(tmp_path):
    """Equal bits, also with cohorts of some clients."""
    settings = {"cohort": {"size": 2}}
    _, fedavg = run(tmp_path / "fedavg", strategy="fedavg", **settings)
    _, ours = run(tmp_path / "ours", strategy={"name": "hierarchical", "edges": 1, "edge_rounds": 1}, **settings)
    assert ours.digest == fedavg.digest


@pytest.mark.parametrize("edges", [2, 4, [2, 0, 1, 0]])
def test_edges_that_report_each_round_are_fedavg(tmp_path, edges):
    """This holds for all divisions into edges, also if an edge has no client in some cohorts."""
    settings = {"cohort": {"size": 2}}
    _, fedavg = run(tmp_path / "fedavg", strategy="fedavg", **settings)
    _, ours = run(tmp_path / "ours", strategy={"name": "hierarchical", "edges": edges, "edge_rounds": 1}, **settings)
    np.testing.assert_allclose(matrix(ours.model), matrix(fedavg.model), rtol=0, atol=1e-6)


def test_a_run_that_ended_between_two_averages_can_be_continued(tmp_path):
    """The final average changes the result only, not the state."""
    strategy = {"name": "hierarchical", "edge_rounds": 2}
    _, whole = run(tmp_path / "whole", strategy=strategy)
    run(tmp_path / "run", strategy=strategy, rounds=3)
    assert resume(tmp_path / "run", rounds=5).digest == whole.digest


# -- bytes ------------------------------------------------------------------------------------------------------------
def test_bytes_between_servers_are_apart(tmp_path):
    _, result = run(tmp_path / "run", strategy={"name": "hierarchical", "edges": 2, "edge_rounds": 2}, rounds=4)
    for row in result.metrics:
        assert row["uplink_bytes"] == row["downlink_bytes"] == CLIENTS * MODEL_BYTES
        cloud = 2 * MODEL_BYTES if row["round"] in (1, 3) else None
        assert (row.get("edge_uplink_bytes"), row.get("edge_downlink_bytes")) == (cloud, cloud)
    rows = [row for row in result.ledger.to_pylist() if row["tier"] == "edge"]
    assert {(row["round"], row["client"], row["direction"]) for row in rows} == {
        (r, e, d) for r in (1, 3) for e in (0, 1) for d in ("up", "down")
    }


def test_messages_between_servers_go_through_the_codec(tmp_path):
    """fp16 halves the bytes, and the cloud sees the decoded values."""
    strategy = {"name": "hierarchical", "edges": 2, "edge_rounds": 1}
    _, result = run(tmp_path / "run", strategy=strategy, codec={"up": "fp16"}, rounds=1)
    assert result.metrics[0]["edge_uplink_bytes"] == MODEL_BYTES
    _, exact = run(tmp_path / "exact", strategy=strategy, rounds=1)
    apart = np.abs(matrix(result.model) - matrix(exact.model)).max()
    assert 0 < apart < 1e-3


# -- the rest ---------------------------------------------------------------------------------------------------------
def test_mean_of_each_edge_by_hand():
    reduction = Grouped(ByClient(np.array([0, 2, 2, 1])), WeightedMean("examples"))
    fold = Fold(reduction, 3)
    for position, (client, n, value) in enumerate(((0, 3, 1.0), (1, 1, 2.0), (2, 3, 6.0))):
        fold.add(0, position, reduction.lift(Params.of({"w": torch.tensor([value])}), Meta(client, n)))
    found = fold.finish()
    assert {edge: (mean["w"].item(), weight) for edge, (mean, weight) in found.items()} == {
        0: (1.0, 3.0),
        2: (5.0, 4.0),
    }


def test_clients_are_evaluated_with_their_edges_model_and_held_out_ones_with_the_clouds(tmp_path):
    """After a round without the cloud, edges differ. Held-out clients get the cloud's model, still the initial one."""
    settings = {"splits": {"val": 0.0, "test": 0.4, "clients": 1}, "cohort": {"size": 3}, "rounds": 1}
    strategy = {"name": "hierarchical", "edges": [0, 1, 1], "edge_rounds": 2}
    for who in ("all", "held_out"):
        run(tmp_path / who, strategy=strategy, evaluation={"server": False, "clients": who}, **settings)
    untrained = {"evaluation": {"server": False, "clients": "held_out"}, "client": {"lr": 0.0, "epochs": 1}}
    run(tmp_path / "first", strategy="fedavg", **{**settings, **untrained})

    def losses(folder):
        rows = pq.read_table(tmp_path / folder / "clients.parquet").to_pylist()
        return {row["client"]: row["loss"] for row in rows if (row["split"], row["round"]) == ("test", 0)}

    assert losses("held_out") == losses("first") and set(losses("held_out")) == {3}
    assert set(losses("all")) == {0, 1, 2}


@pytest.mark.parametrize(
    "edges, message",
    [
        (0, "edges: 0 is not in 1..4"),
        (5, "edges: 5 is not in 1..4"),
        ([0, 1], "edges: a list of 2"),
        ([0, 0, 2, 2], "0, 1, 2"),
    ],
)
def test_refusals(tmp_path, edges, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", strategy={"name": "hierarchical", "edges": edges})
    with pytest.raises(ConfigError, match="edge_rounds: 0"):
        run(tmp_path / "run", strategy={"name": "hierarchical", "edge_rounds": 0})


def test_blocks_are_even():
    assert np.bincount(edge_of_clients(3, 10)).tolist() == [4, 3, 3]


# -- the example of docs/topologies.md ---------------------------------------------------------------------------------
def blocks(language):
    return re.findall(
        rf"```{language}\n(.*?)```", (Path(fl.__file__).parents[1] / "docs/topologies.md").read_text(), re.S
    )


@pytest.mark.parametrize("number", [0, 1])
def test_configurations_of_the_docs_run(tmp_path, number):
    (tmp_path / "topologies.yaml").write_text(blocks("yaml")[number])
    settings = {"rounds": 3, "execution.executor": "serial", "splits.val": 0, "splits.test": 0.3}
    result = fl.run(tmp_path / "topologies.yaml", out=tmp_path / "run", **settings)
    assert len(result.metrics) == 3 and "clients/accuracy_mean" in result.metrics[-1]


def test_the_snippet_of_the_docs_runs(tmp_path):
    (snippet,) = blocks("python")
    snippet = snippet.replace('out="run"', f"out={str(tmp_path / 'run')!r}").replace(
        '"run/ledger', f'"{tmp_path}/run/ledger'
    )
    done = python(snippet)
    assert done.returncode == 0, done.stderr
