"""Recommendation methods: what travels and stays, means of rows, equal methods, null data and the published leak."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fl
from clients.fed_reconstruction import FedReconstruction
from clients.fedmf import FedMF, UserVector, WithUser
from clients.fedrap import loss
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.models.architectures.item_table import ItemRows
from fl.models.binding import Initial
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from fl.tasks.ranking import Ranking
from fl.tensors.params import Params
from fl.tensors.sparse import Table
from strategies.fedavg import State
from strategies.fedmf import FedMF as FedMFStrategy
from strategies.fedrap import curriculum_weight

USERS, ITEMS, PER_USER, DIM = 6, 40, 9, 4
POSITIVES = PER_USER - 2  # one row is held for validation, one for tests
RUN = {
    "rounds": 3,
    "data": {"name": "interactions", "users": USERS, "items": ITEMS, "per_user": PER_USER},
    "partition": "natural",
    "splits": {"val": 0.0},
    "task": {"name": "ranking", "candidates": 20},
    "model": {"name": "item_table", "dim": DIM},
    "cohort": {"size": 3},
    "strategy": "fedmf",
    "evaluation": {"server": False, "every": 3, "splits": ["val", "test"]},
    "execution": {"executor": "serial"},
}
COOL = {"rates": {"*items.weight": 4.0}}  # rates of fedrap are for large batches
METHODS = ("fedmf", "fedrap", "fed_reconstruction", "pfedrec", "fedncf")


def states(simulation):
    """Return the states of the clients that have one."""
    clients, segments = np.arange(simulation.run_setup.population), Segments(simulation.directory / "clients")
    places = zip(clients, simulation.states.locations(clients))
    found = {int(client): segments.read(place) for client, place in places if place[0] >= 0}
    segments.close()
    return found


def simulate(path, **changes):
    """Run, and return (result, states of clients)."""
    with Simulation(resolve(read(RUN | changes)), path) as simulation:
        return simulation.run(), states(simulation)


def network_parameters(dim, hidden=(32, 16)):
    widths = (2 * dim, *hidden, 1)
    return sum((a + 1) * b for a, b in zip(widths, widths[1:]))


# -- what travels, what stays -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [4, 7])
@pytest.mark.parametrize("method", METHODS)
def test_bytes_and_states(method, dim, tmp_path):
    changes = {"strategy": method, "model": {"name": "item_table", "dim": dim}, "cohort": {"name": "cyclic", "size": 1}}
    changes["client"] = COOL
    result, kept = simulate(tmp_path / "run", **changes)
    network = 4 * network_parameters(dim) if method == "fedncf" else 0
    rows = result.ledger.to_pylist()
    groups = {("down", "model"), ("up", "items"), *([("up", "model")] if network else [])}
    assert {(row["direction"], row["group"]) for row in rows} == groups
    for row in result.metrics:
        assert POSITIVES < row["rows_trained"] <= min(5 * POSITIVES, ITEMS)
        assert row["downlink_bytes"] == 4 * ITEMS * dim + network
        assert row["uplink_bytes"] == (4 * dim + 8) * row["rows_trained"] + network
    trained = dict(enumerate(row["rows_trained"] for row in result.metrics))
    if method == "fed_reconstruction":
        assert not kept
        return
    assert set(kept) == {0, 1, 2}  # each client once
    for client, state in kept.items():
        for table in state["tables"].values():
            assert table.values.shape == (trained[client], dim)
        assert bool(state["tables"]) == (method == "fedrap")
        if method == "pfedrec":
            assert state["tuned"].values.shape == (trained[client], dim)


def test_a_client_that_was_absent_returns_with_its_own_state(tmp_path):
    changes = {"strategy": "fedrap", "client": COOL, "cohort": {"name": "cyclic", "size": 2}}
    _, once = simulate(tmp_path / "once", **changes, rounds=3)
    _, twice = simulate(tmp_path / "twice", **changes, rounds=4)  # clients 0 and 1 train a second time
    for client in range(2, 6):
        one, two = (found[client]["tables"]["scorer.items.weight"] for found in (once, twice))
        assert torch.equal(one.keys, two.keys) and torch.equal(one.values, two.values)
    one, two = (found[0]["tables"]["scorer.items.weight"] for found in (once, twice))
    assert set(one.keys.tolist()) < set(two.keys.tolist())
    assert int(two.counts.sum()) == 2 * int(one.counts.sum()) == 2 * 5 * POSITIVES
    assert not set(once[0]["own"]) & {"items.weight", "scorer.items.weight"}


def test_popularity_is_printed_and_costs_no_bytes(tmp_path):
    result, _ = simulate(tmp_path / "run")
    last = result.metrics[-1]
    assert {"popularity/val/hr10", "popularity/clients/ndcg10_mean", "val/hr10", "clients/hr10_mean"} <= set(last)
    data = resolve(read(RUN)).data.part.load()
    counts = np.bincount(data.train["x"][data.held == 0], minlength=ITEMS)
    ranks = []
    for user in range(USERS):
        mine = data.train["x"][data.train["user"] == user]
        others = fl_candidates(user, mine)
        ranks.append(1 + (counts[others] >= counts[mine[-1]]).sum())
    assert last["popularity/clients/hr10_mean"] == np.mean(np.array(ranks) <= 10)
    assert result.ledger.num_rows == 3 * 3 * 2


def fl_candidates(user, taken):
    from fl.tasks.ranking import candidates

    return candidates(0, user, taken, ITEMS, 20)


# -- the server -------------------------------------------------------------------------------------------------------
def table(keys, rows):
    return Table(torch.tensor(keys, dtype=torch.int32), torch.tensor(rows), torch.ones(len(keys), dtype=torch.int32))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [[11.0], [20.0], [33.0]]),  # (2 + 0) / 2, nothing, (4 + 2) / 2
        ({"rows": "trained"}, [[12.0], [20.0], [33.0]]),
        ({"weights": "examples"}, [[10.5], [20.0], [32.5]]),  # (1 * 2) / 4, nothing, (1 * 4 + 3 * 2) / 4
        ({"server_optimiser": fl.Plain(lr=0.5)}, [[10.5], [20.0], [31.5]]),
    ],
)
def test_means_of_rows_on_paper(settings, expected):
    strategy = FedMFStrategy(**settings)
    state = State(Params.of({"items.weight": torch.tensor([[10.0], [20.0], [30.0]])}), fl.OptimiserState())
    rule = strategy.reduction(state, None)["items"]
    updates = [(table([0, 2], [[2.0], [4.0]]), 1), (table([2], [[2.0]]), 3)]
    a, b = (rule.lift(rows, fl.Meta(client=i, num_examples=n)) for i, (rows, n) in enumerate(updates))
    (state, metrics) = strategy.step(state, {"items": rule.finish(rule.merge(a, b))}, None)
    assert state.model["items.weight"].tolist() == expected and metrics == {"rows_trained": 2}


# -- local training ---------------------------------------------------------------------------------------------------
def context(rows=((0, 1.0), (3, 2.0)), items=5, user=0.5, dim=1, positives=(0, 3), state=None, task=None, **more):
    """Return a context of a client whose item rows are 0 but for `rows`, with the user's vector `user`."""
    module = WithUser(ItemRows(items, dim, 0.1), "scorer", UserVector(dim, 0.1, bias=False))
    with torch.no_grad():
        module.items.weight.zero_()
        module.scorer.user.fill_(user)
        for row, value in rows:
            module.items.weight[row] = value
    arrays = {"x": torch.tensor([*positives, 4, 1]), "y": torch.ones(len(positives) + 2)}
    n = len(positives)
    initial = Initial.of(module)
    place = dict(client=0, seed=0, round=0, rounds=5, participation=0, config={}, module=module, initial=initial)
    return ClientContext(
        **{**place, **more},
        received={"model": initial.trained.select(["items.weight"])},
        state=state,
        train=View(arrays, np.arange(n)),
        val=View(arrays, np.array([n])),
        test=View(arrays, np.array([n + 1])),
        task=task or Ranking(candidates=1),
        training_loop=train,
    )


def test_clean_negatives_hold_the_held_items_and_published_ones_do_not():
    client = FedMF(negatives=50)
    clean = client.samples_of(context()).arrays
    published = client.samples_of(context(task=Ranking(candidates=1, negatives="as_published"))).arrays
    for arrays, pool in ((clean, {1, 2, 4}), (published, {2})):  # 0 and 3: training, 4: validation, 1: tests
        assert set(arrays["x"][arrays["y"] == 0].tolist()) == pool
        assert arrays["x"][arrays["y"] == 1].tolist() == [0, 3]
        assert len(arrays["y"]) == 2 * 51
    again = client.samples_of(context(participation=1)).arrays["x"]
    assert not torch.equal(again, clean["x"])  # drawn again in each round


def test_one_step_of_fedmf_on_paper():
    """Steps on p and q of -log sigmoid(p q) for the positives, and +log for the negative row, which is 0."""
    ctx = context(task=Ranking(candidates=1, negatives="as_published"))
    reply = FedMF(negatives=1, lr=0.1, epochs=1, batch="full").work("train", ctx, None)
    p, sigmoid = 0.5, lambda s: 1 / (1 + math.exp(-s))
    errors = {0: sigmoid(p * 1.0) - 1, 3: sigmoid(p * 2.0) - 1, 2: 2 * (sigmoid(0.0) - 0)}  # item 2 is drawn twice
    sent = reply.update.groups["items"]
    assert sent.keys.tolist() == [0, 2, 3] and sent.counts.tolist() == [1, 2, 1]
    expected = [[-0.1 * errors[i] * p / 4] for i in (0, 2, 3)]
    torch.testing.assert_close(sent.values, torch.tensor(expected), rtol=1e-4, atol=1e-8)
    grad = (errors[0] * 1.0 + errors[3] * 2.0) / 4
    assert float(reply.state["own"]["scorer.user"]) == pytest.approx(p - 0.1 * grad, rel=1e-6)
    assert reply.update.num_examples == 4


def test_rows_that_nobody_touched_change_by_published_weight_decay_only():
    ctx = context(positives=(0,), items=60, rows=[(i, 1.0) for i in range(60)])
    settings = {"negatives": 1, "lr": 0.5, "steps": 3, "batch": "full", "weight_decay": 0.1}
    batch, published = (FedMF(**settings, decay=d).work("train", ctx, None) for d in ("batch", "as_published"))
    assert len(batch.update.groups["items"].keys) == 2
    sent = published.update.groups["items"]
    assert len(sent.keys) == 60
    untouched = [i for i in range(60) if i not in batch.update.groups["items"].keys.tolist()]
    expected = torch.full((58, 1), (1 - 0.5 * 0.1) ** 3 - 1)
    torch.testing.assert_close(sent.values[untouched], expected, rtol=1e-5, atol=0)
    same = batch.update.groups["items"]
    torch.testing.assert_close(sent.values[same.keys.long()], same.values)


@pytest.mark.parametrize("method", METHODS)
def test_edge_clients(method, tmp_path):
    """Users with one training row and with none take part; the second ones send an empty table."""
    file = tmp_path / "own.py"
    file.write_text(
        "import numpy as np\nfrom fl.data.dataset import Dataset\n"
        "def make():\n"
        "    users = np.repeat([0, 1, 2], [12, 3, 2])\n"
        "    x = np.concatenate([np.arange(12), [0, 1, 2], [5, 6]])\n"
        "    x = np.append(x, 39); users = np.append(users, 2)\n"
        "    held = np.array([0] * 10 + [1, 2] + [0, 1, 2] + [1, 2, 2], np.int8)\n"
        "    y = np.ones(18, np.float32)\n"
        "    return Dataset({'x': x, 'y': y, 'user': users}, clients=users, held=held)\n"
    )
    result, _ = simulate(
        tmp_path / "run", data=f"{file}:make", strategy=method, client=COOL, cohort={"size": 3}, rounds=2
    )
    assert all(math.isfinite(row["train/loss"]) for row in result.metrics)
    sizes = {r["client"]: r["encoded_bytes"] for r in result.ledger.to_pylist() if r["group"] == "items"}
    assert sizes[2] == 0 < sizes[1] <= 5 * (4 * DIM + 8)


# -- equal methods, invariants of each method -------------------------------------------------------------------------
def test_fedrap_without_its_table_is_fedmf_with_a_bias(tmp_path):
    generator = torch.Generator().manual_seed(0)
    items, user = torch.randn(ITEMS, DIM, generator=generator) * 0.1, torch.randn(DIM, generator=generator)
    shared = {"items.weight": items, "scorer.bias": torch.zeros(())}
    save_file({**shared, "scorer.user": user}, tmp_path / "mf.safetensors")
    own = {"scorer.weight": user, "scorer.items.weight": torch.zeros(ITEMS, DIM)}
    save_file({**shared, **own}, tmp_path / "rap.safetensors")
    training = {"lr": 0.5, "epochs": 2, "batch": 16, "rates": {"items.weight": 4.0}}
    plain = {"lam": 0.0, "mu": 0.0, "weight_decay": 0.0, "step_decay": 1.0, "round_decay": 1.0}
    table = {"name": "item_table", "dim": DIM}
    mf, _ = simulate(
        tmp_path / "mf",
        client={"bias": True, **training},
        model={**table, "init": str(tmp_path / "mf.safetensors")},
    )
    rap, _ = simulate(
        tmp_path / "rap",
        strategy="fedrap",
        client={**training, **plain},
        model={**table, "init": str(tmp_path / "rap.safetensors"), "freeze": ["scorer.items.weight"]},
    )
    torch.testing.assert_close(rap.model["items.weight"], mf.model["items.weight"], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(mf.model["items.weight"], items, atol=1e-3)  # training moved it
    for name in ("val/hr10", "clients/ndcg10_mean"):
        assert rap.metrics[-1][name] == pytest.approx(mf.metrics[-1][name], abs=1e-6)


def test_the_loss_of_fedrap_on_paper():
    scores, y = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    own, shared = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    # BCE log 2, mean squares (1 + 0 + 1 + 4) / 4, mean absolute value 2 / 4
    assert float(loss(scores, y, own, shared, 0.2, 0.4)) == pytest.approx(math.log(2) - 0.2 * 1.5 + 0.4 * 0.5)
    assert float(loss(scores, y, own, shared, 0.0, 0.0)) == pytest.approx(math.log(2))
    repeated = torch.cat([shared, shared]), torch.cat([own, own])  # repeats count, so means stay
    assert float(loss(scores.repeat(2), y.repeat(2), repeated[1], repeated[0], 0.2, 0.4)) == pytest.approx(
        float(loss(scores, y, own, shared, 0.2, 0.4))
    )


def test_the_curriculum_reaches_the_loss(tmp_path):
    assert [curriculum_weight("tanh", r) for r in (0, 10)] == [0.0, math.tanh(1.0)]
    assert [curriculum_weight("linear", r) for r in (0, 5, 20)] == [0.0, 0.5, 1.0]
    losses = {}
    for curriculum in ("constant", "tanh"):
        result, _ = simulate(
            tmp_path / curriculum, strategy={"name": "fedrap", "curriculum": curriculum}, client=COOL, rounds=2
        )
        losses[curriculum] = [row["train/loss"] for row in result.metrics]
    without, _ = simulate(tmp_path / "0", strategy="fedrap", client={**COOL, "lam": 0.0, "mu": 0.0}, rounds=1)
    assert losses["tanh"][0] == without.metrics[0]["train/loss"] != losses["constant"][0]


def test_a_diverging_fedrap_stops(tmp_path):
    client = {"lam": 50.0, "mu": 0.0, "weight_decay": 0.0, "round_decay": 1.0, "step_decay": 1.0}
    with pytest.raises(Exception, match="training has diverged.*lower lam"):
        simulate(tmp_path / "run", strategy="fedrap", client=client)


def test_federated_reconstruction_rebuilds_the_user_for_predictions():
    """The user's vector starts at 0 and moves on the support samples; item rows move on the query samples alone."""
    rows = [(i, float(i + 1)) for i in range(5)]
    client = FedReconstruction(negatives=1, lr=0.1, support_lr=0.2, support_epochs=1, epochs=1, batch="full")
    ctx = context(rows, user=7.0, task=Ranking(candidates=1, negatives="as_published"))
    reply = client.work("train", ctx, None)
    assert reply.state is None
    moved = reply.update.groups["items"]
    assert (moved.values != 0).sum() <= 2  # two samples are the query half
    # for predictions on all samples, from p = 0: every sigmoid is 1/2; positives 1 and 4, negatives 3 and 3
    p = -0.2 * ((-0.5) * (1 + 4) + 0.5 * (3 + 3)) / 4
    scores = client.predictor(ctx)(torch.tensor([0, 3]))
    torch.testing.assert_close(scores[:, 0], torch.tensor([p * 1, p * 4]), rtol=1e-5, atol=1e-7)
    assert torch.equal(client.predictor(ctx)(torch.tensor([0])), client.predictor(ctx)(torch.tensor([0])))


# -- null data --------------------------------------------------------------------------------------------------------
NULL = {
    "data": {"name": "interactions", "users": 60, "items": 125, "per_user": 12, "shuffle": "uniform"},
    "model": {"name": "item_table", "dim": 16},
    "cohort": {"fraction": 1.0},
    "strategy": "fedrap",
    "client": {
        "negatives": 12, "epochs": 3, "batch": "full", "lr": 1.0, "rates": {"*items.weight": 100.0},
        "lam": 0.0, "mu": 0.0, "weight_decay": 0.0, "step_decay": 1.0, "round_decay": 1.0,
    },
}  # fmt: skip


def test_random_interactions_score_a_tenth_and_the_published_pool_leaks(tmp_path):
    found = {}
    for negatives in ("clean", "as_published"):
        task = {"name": "ranking", "negatives": negatives}
        result, _ = simulate(tmp_path / negatives, **NULL, task=task, rounds=3)
        found[negatives] = result.metrics[-1]
    error = 3 * math.sqrt(0.09 / 60)
    for name in ("clients/hr10_mean", "val/hr10", "popularity/clients/hr10_mean", "popularity/val/hr10"):
        assert found["clean"][name] <= 0.1 + error, name
    assert found["as_published"]["clients/hr10_mean"] >= 0.5
    assert found["as_published"]["popularity/clients/hr10_mean"] == found["clean"]["popularity/clients/hr10_mean"]


def test_trained_models_are_evaluated_with_the_curriculum(tmp_path):
    config = RUN | {"rounds": 1, "strategy": "fedrap", "client": COOL}
    result = fl.run(config, out=tmp_path / "run", **{"evaluation.stage": "trained"})
    assert 0 <= result.metrics[-1]["clients/hr10_mean"] <= 1
