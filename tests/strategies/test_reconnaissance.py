"""Federated Reconnaissance: exact merging, missions, episodes, and whole runs compared with means by numpy."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.folder import data_folder
from fl.data.sets.omniglot import Omniglot
from fl.models.architectures.conv4 import Conv4, fold
from fl.simulation.simulation import Simulation
from fl.tensors.prototypes import merge_means, nearest, prototypes
from fl.tensors.sparse import Table
from partitions.missions import deal, pool
from strategies.episodes import episode, episode_loss

needs_omniglot = pytest.mark.skipif(
    not (data_folder() / "omniglot").is_dir(), reason="FL_DATA names no folder with omniglot"
)


def rng(*seed):
    return np.random.default_rng(seed)


# -- merging ----------------------------------------------------------------------------------------------------------
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)]))
def test_prototypes_are_the_means_of_all_samples_seen(seed, clients, precision):
    """This holds for all divisions of the samples and all orders of the reports."""
    dtype, tolerance = precision
    draw = rng(seed)
    z, y = 3 + draw.standard_normal((60, 5)), draw.integers(0, 7, 60)
    owners = draw.integers(0, clients, 60)
    table = None
    for part in np.array_split(draw.permutation(60), 4):  # missions
        for client in draw.permutation(clients):
            rows = part[owners[part] == client]
            table = merge_means(table, prototypes(torch.tensor(z[rows], dtype=dtype), torch.tensor(y[rows])))
    assert table.keys.tolist() == np.unique(y).tolist()
    assert table.counts.tolist() == np.bincount(y)[np.unique(y)].tolist()
    for key, mean in zip(table.keys.tolist(), table.values):
        assert_allclose(mean, z[y == key].mean(0), rtol=tolerance, atol=tolerance)


def test_merging_by_hand():
    """Two samples at 1 and one at 4 have the mean 2. Merging twice, as the authors' program does, would give 3."""
    old = prototypes(torch.tensor([[1.0], [1.0]]), torch.tensor([5, 5]))
    new = prototypes(torch.tensor([[4.0], [7.0]]), torch.tensor([5, 2]))
    merged = merge_means(old, new)
    assert merged.keys.tolist() == [2, 5] and merged.counts.tolist() == [1, 3]
    assert merged.values.tolist() == [[7.0], [2.0]]


def test_other_prototypes_keep_their_bits_and_empty_reports_change_nothing():
    draw = rng(3)
    table = prototypes(
        torch.tensor(draw.standard_normal((40, 6)), dtype=torch.float32), torch.tensor(draw.integers(0, 5, 40))
    )
    after = merge_means(table, prototypes(torch.randn(3, 6), torch.tensor([1, 1, 9])))
    for c in (0, 2, 3, 4):
        assert torch.equal(after.values[after.keys == c], table.values[table.keys == c])
    empty = Table(torch.empty(0, dtype=torch.int64), torch.empty(0, 6), torch.empty(0, dtype=torch.int32))
    assert torch.equal(merge_means(table, empty).values, table.values)
    zero = Table(torch.tensor([7]), torch.full((1, 6), torch.nan), torch.tensor([0], dtype=torch.int32))
    assert merge_means(table, zero).keys.tolist() == table.keys.tolist()


# -- prediction -------------------------------------------------------------------------------------------------------
def test_the_nearest_prototype_wins_wherever_the_origin_is():
    draw = torch.Generator().manual_seed(0)
    mu, z = (
        torch.randn(6, 4, generator=draw, dtype=torch.float64),
        torch.randn(50, 4, generator=draw, dtype=torch.float64),
    )
    keys, counts = torch.tensor([0, 2, 3, 5, 8, 9]), torch.ones(6, dtype=torch.int32)
    by_hand = keys[((z[:, None] - mu[None]) ** 2).sum(-1).argmin(1)]
    assert torch.equal(nearest(z, Table(keys, mu, counts), 11).argmax(1), by_hand)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=draw, dtype=torch.float64))
    for move in (lambda v: v + 1000.0, lambda v: v @ turn):
        assert torch.equal(nearest(move(z), Table(keys, move(mu), counts), 11).argmax(1), by_hand)


def test_scores_are_distances_and_unknown_classes_never_win():
    table = Table(torch.tensor([1, 3]), torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    scores = nearest(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), table, 5)
    assert scores[:, [1, 3]].tolist() == [[0.0, -25.0], [-9.0, -16.0]]
    assert (scores[:, [0, 2, 4]] < scores[:, [1, 3]].amin(1, keepdim=True)).all()
    assert not nearest(torch.zeros(2, 2), None, 5).any()


# -- episodes ---------------------------------------------------------------------------------------------------------
def test_the_loss_of_an_episode_by_hand():
    """Two classes in one dimension have one support sample each, at 0 and 2; queries are at 0.5 and 2."""
    z = torch.tensor([[[0.0], [0.5]], [[2.0], [2.0]]])
    first = -np.log(np.exp(-0.25) / (np.exp(-0.25) + np.exp(-2.25)))
    second = -np.log(np.exp(0.0) / (np.exp(-4.0) + np.exp(0.0)))
    assert float(episode_loss(z, shots=1)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_an_episode_has_distinct_samples_of_distinct_classes():
    y = torch.tensor([0] * 6 + [1] * 3 + [2] * 8 + [3] * 6)
    rows, turns = episode(y, ways=3, each=5, generator=torch.Generator().manual_seed(1), rotate=True)
    assert {frozenset(y[own].tolist()) for own in rows} == {frozenset([0]), frozenset([2]), frozenset([3])}
    assert all(len(set(own.tolist())) == 5 for own in rows) and ((0 <= turns) & (turns < 4)).all()
    with pytest.raises(ValueError, match="ways: 4 classes of 5 samples, but only 3 classes"):
        episode(y, 4, 5, torch.Generator())


# -- the encoder ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape, outputs, parameters", [((1, 28, 28), 64, 111_936), ((3, 84, 84), 1600, 113_088)])
def test_conv4_is_the_encoder_of_the_literature(shape, outputs, parameters):
    net = Conv4().build(shape, 5)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(b.numel() for b in net.buffers() if b.is_floating_point()) == 512
    assert net.eval()(torch.zeros(2, *shape)).shape == (2, outputs)


def test_folding_normalisation_away_changes_no_prediction():
    net = Conv4(width=8).build((1, 28, 28), 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)
    plain = Conv4(width=8, norm="none").build((1, 28, 28), 5)
    plain.load_state_dict(fold({**dict(net.named_parameters()), **dict(net.named_buffers())}))
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(plain(x), net.eval()(x), rtol=1e-4, atol=1e-5)


def test_running_statistics_are_refused_where_clients_train():
    data = {"name": "noise", "shape": [1, 16, 16], "classes": 4, "clients": 4}
    config = {**CONFIG, "data": data, "partition": "natural"}
    config = {k: v for k, v in config.items() if k != "stream"} | {"strategy": "fedavg", "rounds": 1}
    with pytest.raises(fl.errors.ConfigError, match="running statistics would leak"):
        fl.run(config, model={"name": "conv4", "width": 8})


# -- missions ---------------------------------------------------------------------------------------------------------
def test_a_pool_is_dealt_out_without_replacement():
    y = np.repeat(np.arange(6), 10)
    batches = pool(y, samples=5, seed=1)
    assert len(batches) == 12 and sorted(np.concatenate(batches)) == list(range(60))
    assert all(len(np.unique(y[batch])) == 1 for batch in batches)
    labels = np.array([y[batch[0]] for batch in batches])
    dealt = deal(labels, clients=2, classes=3, missions=2)
    given_out = [position for mission in dealt for own in mission for position in own]
    assert sorted(given_out) == list(range(12))
    assert all(len({labels[p] for p in own}) == len(own) for mission in dealt for own in mission)
    # a client never meets a class twice in a mission
    assert deal(np.array([4, 4, 4]), clients=1, classes=2, missions=1) == [[[0]]]


# -- whole runs -------------------------------------------------------------------------------------------------------
CONFIG = {
    "data": {"name": "digits", "test": 0.3},
    "partition": {"name": "iid", "clients": 3},
    "stream": {"name": "missions", "tasks": 5, "clients": 3, "classes": 2, "samples": 20},
    "splits": {"val": 0.0},
    "model": {"name": "mlp", "hidden": [16]},
    "cohort": {"size": 3},
    "strategy": {"name": "reconnaissance", "episodes": 0},
    "execution": {"executor": "serial"},
}


def test_a_run_ends_with_the_means_of_all_embeddings(tmp_path):
    with Simulation(resolve(read(CONFIG)), tmp_path / "run") as run:
        result = run.run()
        table, run_setup = run.state.table, run.run_setup
    w = result.model
    x = torch.from_numpy(run_setup.dataset.train["x"]).flatten(1)
    z = (torch.relu(x @ w["1.weight"].T + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]).numpy()
    seen = np.concatenate([period.partition.indices for period in run_setup.periods])
    y = run_setup.dataset.train["y"]
    for key, total, count in zip(table.keys.tolist(), table.values, table.counts):
        rows = seen[y[seen] == key]
        assert count == len(rows)
        assert_allclose(total / count, z[rows].astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)

    # up: 10 numbers of 4 bytes, an id of 8 bytes and a count of 4 bytes for each class in a client's report; down: the
    # encoder, once
    ledger = result.ledger.to_pylist()
    for row in (r for r in ledger if r["direction"] == "up"):
        partition = run_setup.periods[row["round"]].partition
        touched = len(np.unique(y[partition.view_rows(row["client"], "train")]))
        assert row["group"] == "table" and row["encoded_bytes"] == touched * (10 * 4 + 8 + 4)
    encoder = [r["round"] for r in ledger if r["group"] == "encoder"]
    assert encoder == [0, 0, 0]

    # the last row has the accuracy of nearest class means on the test rows of all classes seen
    means = np.stack([z[seen[y[seen] == key]].mean(0) for key in table.keys.tolist()])
    test = run_setup.dataset.test
    out = torch.from_numpy(test["x"]).flatten(1)
    out = (torch.relu(out @ w["1.weight"].T + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]).numpy()
    predicted = table.keys.numpy()[((out[:, None] - means[None]) ** 2).sum(-1).argmin(1)]
    met = np.isin(test["y"], table.keys.numpy())
    assert result.metrics[-1]["after/field"] == pytest.approx((predicted == test["y"])[met].mean(), abs=0.01)


def test_clients_are_evaluated_before_their_reports_are_merged(tmp_path):
    strategy = {**CONFIG["strategy"], "before": True}
    result = fl.run({**CONFIG, "strategy": strategy, "stream": {**CONFIG["stream"], "tasks": 3}}, out=tmp_path / "run")
    rows = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    assert "before/seen" not in rows[0] and {"before/new", "before/seen", "before/mean"} <= set(rows[1])
    assert rows[1]["before/mean"] == pytest.approx((rows[1]["before/new"] + rows[1]["before/seen"]) / 2)
    plain = fl.run({**CONFIG, "stream": {**CONFIG["stream"], "tasks": 3}}, out=tmp_path / "plain")
    assert [row["uplink_bytes"] for row in plain.metrics] == [
        row["uplink_bytes"] for row in rows
    ]  # evaluation costs no bytes
    assert plain.metrics[-1]["after/field"] == rows[-1]["after/field"]


@needs_omniglot
def test_omniglot_keeps_base_and_field_apart():
    data = Omniglot(field=20, train_per_class=12).load()
    assert set(np.unique(data.server["y"])) == set(range(136)) and set(np.unique(data.labels)) == set(range(136, 156))
    assert (np.bincount(data.labels)[136:] == 12).all() and (np.bincount(data.test["y"]) == 8).all()
    pictures = {x.tobytes() for x in data.test["x"]}
    shared = sum(x.tobytes() in pictures for x in np.concatenate([data.train["x"], data.server["x"]]))
    assert shared <= 2  # two people may have drawn identical images
    assert data.train["x"].shape[1:] == (1, 28, 28) and 0 <= data.train["x"].min() < data.train["x"].max() == 1


@needs_omniglot
@pytest.mark.slow
def test_an_encoder_learns_from_the_base_classes(tmp_path):
    """Ten episodes are better than none on unseen characters."""
    config = {
        **CONFIG,
        "data": {"name": "omniglot", "field": 20},
        "partition": {"name": "iid", "clients": 5},
        "stream": {"name": "missions", "tasks": 4, "clients": 5, "classes": 1, "samples": 15},
        "model": {"name": "conv4", "width": 16},
        "cohort": {"size": 5},
    }
    strategy = {"name": "reconnaissance", "ways": 20, "base": False}
    found = {}
    for episodes in (0, 30):
        result = fl.run(config, out=tmp_path / str(episodes), strategy={**strategy, "episodes": episodes})
        found[episodes] = result.metrics[-1]["after/field"]
    assert found[30] > found[0] + 0.1 and found[30] > 0.5
