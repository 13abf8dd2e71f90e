"""Gossip: graphs and weights, consensus in closed form, rounds in NumPy, and the bytes of edges in the ledger."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.noise import LogNormal, RandomData
from fl.errors import ConfigError
from fl.simulation.run import resume
from fl.simulation.simulation import Simulation
from strategies.graphs import directed, edges_of, metropolis, random_regular, ring, torus

CLIENTS, LR = 8, 0.5
DATA = RandomData(shape=(4,), classes=3, clients=CLIENTS, samples=LogNormal(lognormal=0.8, mean=12, low=3, high=40))
MODEL_BYTES = 4 * (4 + 1) * 3
PATH = [[k, k + 1] for k in range(CLIENTS - 1)]  # a list of pairs; the two ends have one neighbour


def dense(edges, n):
    """Return W (n, n), computed edge by edge."""
    matrix, degree = np.zeros((n, n)), np.bincount(np.ravel(edges), minlength=n)
    for i, j in edges:
        matrix[i, j] = matrix[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return matrix + np.diag(1 - matrix.sum(1))


def run(folder, **more):
    """Run without evaluation; return the simulation and its result."""
    config = {
        "rounds": 4,
        "data": DATA,
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "strategy": "gossip",
        "cohort": {"size": CLIENTS},
        "execution": {"executor": "serial"},
        "evaluation": {"server": False, "clients": 0},
        **more,
    }
    config["client"] = {"epochs": 1, "batch": "full", "lr": LR} | config.get("client", {})
    with Simulation(resolve(read(config)), folder) as simulation:
        return simulation, simulation.run()


def table(p):
    """Return parameters as (N, outputs, features + 1), or without N; biases are in the last column."""
    return np.concatenate([p["1.weight"].numpy(), p["1.bias"].numpy()[..., None]], -1).astype(np.float64)


def gradient(w, client):
    """Return the gradient of the mean cross-entropy of a client's samples."""
    data = DATA.load()
    mine = np.flatnonzero(data.clients == client)
    x, y = np.c_[data.train["x"][mine], np.ones(len(mine))].astype(np.float64), data.train["y"][mine]
    p = np.exp(x @ w.T)
    return (p / p.sum(1, keepdims=True) - np.eye(3)[y]).T @ x / len(y)


# -- graphs -----------------------------------------------------------------------------------------------------------
def test_graphs_by_hand():
    assert ring(4).tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
    assert torus(6).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 4], [2, 5], [3, 4], [3, 5], [4, 5]]  # 2 x 3
    assert len(edges_of("complete", 5, 0, 0)) == 10
    assert edges_of(((1, 0), (2, 1), (0, 1)), 3, 0, 0).tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("n, degree", [(8, 3), (9, 4), (20, 2), (50, 5), (6, 5)])
def test_random_graphs_are_regular(n, degree):
    drawn = [random_regular(n, degree, seed) for seed in (0, 0, 1)]
    for edges in drawn:
        assert np.bincount(edges.ravel(), minlength=n).tolist() == [degree] * n
        assert len({tuple(edge) for edge in edges.tolist()}) == n * degree // 2 and (edges[:, 0] < edges[:, 1]).all()
    assert (drawn[0] == drawn[1]).all()
    assert degree == n - 1 or (drawn[0] != drawn[2]).any()


def test_metropolis_by_hand():
    """A star with three leaves: the centre has degree 3, the leaves 1, and each edge has weight 1/4."""
    edges = edges_of(((0, 1), (0, 2), (0, 3)), 4, 0, 0)
    assert metropolis(edges, 4).tolist() == [0.25] * 3
    begins, others, weights = directed(edges, 4, metropolis(edges, 4))
    assert (begins.tolist(), others.tolist(), weights.tolist()) == ([0, 3, 4, 5, 6], [1, 2, 3, 0, 0, 0], [0.25] * 6)


@pytest.mark.parametrize(
    "graph", ["ring", "torus", "complete", "random_regular", ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5))]
)
def test_weights_are_doubly_stochastic(graph):
    n = 6
    edges = edges_of(graph, n, 3, 0)
    begins, others, weights = directed(edges, n, metropolis(edges, n))
    matrix = np.zeros((n, n))
    for i in range(n):
        matrix[i, others[begins[i] : begins[i + 1]]] = weights[begins[i] : begins[i + 1]]
    matrix += np.diag(1 - matrix.sum(1))
    assert_allclose(matrix, dense(edges, n), atol=1e-15)
    assert_allclose(matrix.sum(0), 1)
    assert_allclose(matrix, matrix.T)
    assert (matrix >= -1e-15).all()
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))
    assert moduli[-1] == pytest.approx(1) and moduli[-2] < 1 - 1e-3


@pytest.mark.parametrize(
    "strategy, message",
    [
        ({"graph": [[0, 1], [1, 2]]}, "graph: client 3 has no neighbour"),
        ({"graph": [[0, 1], [2, 8]]}, "graph: client 8 is not in 0..7"),
        ({"graph": [[0, 0]]}, "graph: client 0 is its own neighbour"),
        ({"graph": [[0, 1], [2, 3], [4, 5], [6, 7]]}, "graph: .* is not connected"),
        ({"graph": "rng"}, "graph: 'rng' is not one of .*'ring'"),
        ({"graph": "nowhere.txt"}, "nowhere.txt is neither in"),
        ({"graph": "random_regular", "degree": 8}, "degree: 8 is not in 1..7"),
        ({"graph": "random_regular", "degree": 1}, "degree: no connected graph of degree 1 on 8"),
    ],
)
def test_refusals(tmp_path, strategy, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", strategy={"name": "gossip", **strategy})


def test_refusals_of_numbers_of_clients():
    with pytest.raises(ValueError, match="degree: 3 times 7 clients is odd"):
        edges_of("random_regular", 7, 3, 0)
    with pytest.raises(ValueError, match="graph: 7 clients make no grid"):
        edges_of("torus", 7, 0, 0)


def test_a_file_of_pairs(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("0 1\n1, 2\n\n2 0\n")
    assert edges_of(str(path), 3, 0, 0).tolist() == [[0, 1], [0, 2], [1, 2]]
    path.write_text("0 1\n1 two\n")
    with pytest.raises(ValueError, match="line 2: '1 two' is not a pair of client ids"):
        edges_of(str(path), 3, 1, 0)


# -- consensus --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("order", ["mix_train", "together"])
@pytest.mark.parametrize("graph", ["ring", "torus", PATH], ids=str)
def test_consensus_at_the_rate_of_the_second_eigenvalue(tmp_path, graph, order):
    """Clients train in the first round; later lr=0, so models are W^k X.

    The distance to their mean shrinks by the factor |lambda_2| per round.
    """
    client = {"order": order, "lr": {"start": LR, "schedule": "step", "factor": 0.0}}
    strategy, rounds = {"name": "gossip", "graph": graph}, 25
    start = table(run(tmp_path / "start", strategy=strategy, client=client, rounds=1)[0].state.models)
    simulation, result = run(tmp_path / "run", strategy=strategy, client=client, rounds=rounds)
    edges = PATH if graph is PATH else edges_of(graph, CLIENTS, 0, 0)
    matrix = dense(edges, CLIENTS)
    power = np.linalg.matrix_power(matrix, rounds - 1)
    assert_allclose(table(simulation.state.models), np.einsum("ij,jkl->ikl", power, start), rtol=0, atol=2e-6)
    assert_allclose(table(result.model), start.mean(0), rtol=0, atol=1e-6)
    second = np.sort(np.abs(np.linalg.eigvals(matrix)))[-2]
    apart = [row["consensus"] for row in result.metrics]
    assert apart[0] == pytest.approx(math.sqrt(((start - start.mean(0)) ** 2).sum() / CLIENTS), rel=1e-5)
    assert all(apart[k] <= second**k * apart[0] * (1 + 1e-4) + 1e-7 for k in range(rounds))
    if second > 0.7:  # faster components have decayed by then, and rounding does not matter yet
        assert apart[-1] / apart[-2] == pytest.approx(second, rel=0.01)


# -- training ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("graph", ["ring", PATH], ids=str)
def test_d_psgd_by_hand(tmp_path, graph):
    """X <- W X - lr G(X), with gradients at each client's own model: the paper's equation, for 4 rounds."""
    simulation, result = run(
        tmp_path / "run", strategy={"name": "gossip", "graph": graph}, client={"order": "together"}
    )
    matrix = dense(PATH if graph is PATH else ring(CLIENTS), CLIENTS)
    models = np.stack([table(simulation.run_setup.model)] * CLIENTS)
    for _ in range(4):
        models = np.einsum("ij,jkl->ikl", matrix, models) - LR * np.stack(
            [gradient(w, i) for i, w in enumerate(models)]
        )
    assert_allclose(table(simulation.state.models), models, rtol=0, atol=2e-6)
    assert_allclose(table(result.model), models.mean(0), rtol=0, atol=2e-6)


def test_mix_train_by_hand(tmp_path):
    simulation, _ = run(tmp_path / "run", client={"order": "mix_train"})
    matrix, models = dense(ring(CLIENTS), CLIENTS), np.stack([table(simulation.run_setup.model)] * CLIENTS)
    for _ in range(4):
        models = np.einsum("ij,jkl->ikl", matrix, models)
        models = np.stack([w - LR * gradient(w, i) for i, w in enumerate(models)])
    assert_allclose(table(simulation.state.models), models, rtol=0, atol=2e-6)


def test_some_take_part_by_hand(tmp_path):
    """Clients 0, 1, 2, 5 of a ring take part.

    Client 5 has no neighbour among them and trains alone. The ends of 0-1-2 keep the missing neighbour's weight.
    """
    settings = {"cohort": {"name": "fixed", "clients": [0, 1, 2, 5]}, "rounds": 3, "client": {"order": "together"}}
    simulation, result = run(tmp_path / "run", **settings)
    matrix, first = np.eye(CLIENTS), table(simulation.run_setup.model)
    for i, j in ((0, 1), (1, 2)):
        matrix[[i, j], [j, i]] = 1 / 3
        matrix[[i, j], [i, j]] -= 1 / 3
    models = np.stack([first] * CLIENTS)
    for _ in range(3):
        steps = np.stack([gradient(w, i) if i in (0, 1, 2) else 0 * w for i, w in enumerate(models)])
        models = np.einsum("ij,jkl->ikl", matrix, models) - LR * steps
    assert_allclose(table(simulation.state.models), models, rtol=0, atol=2e-6)
    sent = {(row["client"], row["direction"]): row["encoded_bytes"] for row in result.ledger.to_pylist()}
    ends, middle = MODEL_BYTES, 2 * MODEL_BYTES
    assert sent == {(c, d): middle if c == 1 else ends for c in (0, 1, 2) for d in ("up", "down")}


def test_the_complete_graph_is_fedavg_of_uniform_weights(tmp_path):
    client = {"epochs": 2, "batch": 4}
    strategy = {"name": "gossip", "graph": "complete"}
    _, ours = run(tmp_path / "ours", strategy=strategy, client=client | {"order": "mix_train"})
    _, fedavg = run(tmp_path / "fedavg", strategy={"name": "fedavg", "weights": "uniform"}, client=client)
    assert_allclose(table(ours.model), table(fedavg.model), rtol=0, atol=1e-6)


def test_going_on_is_not_having_stopped(tmp_path):
    whole = run(tmp_path / "whole")[1]
    run(tmp_path / "run", rounds=2)
    assert resume(tmp_path / "run", rounds=4).digest == whole.digest


# -- bytes and evaluation ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "graph, degree", [("ring", [2] * 8), (PATH, [1] + [2] * 6 + [1]), ("complete", [7] * 8)], ids=str
)
def test_both_ends_of_every_edge_are_in_the_ledger(tmp_path, graph, degree):
    _, result = run(tmp_path / "run", strategy={"name": "gossip", "graph": graph})
    rows = result.ledger.to_pylist()
    assert len(rows) == 4 * 2 * CLIENTS
    assert all(row["encoded_bytes"] == degree[row["client"]] * MODEL_BYTES for row in rows)
    assert all(row["uplink_bytes"] == row["downlink_bytes"] == sum(degree) * MODEL_BYTES for row in result.metrics)


def test_fp16_on_both_ways_costs_half_and_rounds_once(tmp_path):
    """Broadcasts consist of decoded fp16 updates, which fp16 does not change."""
    codec = {"up": "fp16", "down": "fp16"}
    _, both = run(tmp_path / "both", codec=codec)
    _, up = run(tmp_path / "up", codec={"up": "fp16"})
    _, plain = run(tmp_path / "plain")
    row, whole = both.metrics[1], plain.metrics[1]
    assert (row["uplink_bytes"], row["downlink_bytes"]) == (whole["uplink_bytes"] / 2, whole["downlink_bytes"] / 2)
    apart = np.abs(table(both.model) - table(plain.model)).max()
    assert 0 < apart < 1e-2
    assert np.abs(table(both.model) - table(up.model)).max() < 1e-3  # the initial model is not in fp16


def test_clients_predict_with_their_own_model_and_the_server_with_the_mean(tmp_path):
    """Compute the cross-entropies of the clients' and the server's test rows from the table of models."""
    settings = {
        "splits": {"val": 0.0, "test": 0.3},
        "data": {"name": "digits"},
        "partition": {"name": "iid", "clients": 6},
    }
    settings |= {"cohort": {"size": 6}, "rounds": 2, "client": {"batch": 20}}
    simulation, result = run(tmp_path / "run", evaluation={"server": True, "clients": "all"}, **settings)
    run_setup = simulation.run_setup
    models, dataset = table(simulation.state.models), run_setup.dataset

    def loss(w, arrays, rows):
        x = np.c_[arrays["x"][rows].reshape(len(rows), -1), np.ones(len(rows))].astype(np.float64)
        scores = x @ w.T
        return np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(rows)), arrays["y"][rows]])

    everything = np.arange(len(dataset.test["x"]))
    assert result.metrics[-1]["eval/loss"] == pytest.approx(loss(models.mean(0), dataset.test, everything), abs=1e-5)
    found = pq.read_table(result.directory / "clients.parquet").to_pylist()
    own = {row["client"]: row["loss"] for row in found if row["split"] == "test" and row["round"] == 1}
    for client in range(6):
        rows = run_setup.periods[0].partition.view_rows(client, "test")
        assert own[client] == pytest.approx(loss(models[client], dataset.train, rows), abs=1e-5)
