"""FedoSSL: losses and centroids on paper; neutral setting, bytes, resumption and hidden labels in runs."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.fedossl import FedoSSL, with_cosine
from clients.open_world import (
    eased_loss,
    local_centroids,
    pair_loss,
    partners,
    pseudo_loss,
    suppressed_loss,
    suppression,
)
from fl import LocalTraining, Table
from fl.check.check import check
from fl.data.labels import Labels
from fl.data.sets.digits import Digits
from strategies.fedossl import fitted, renamed
from tests.interfaces.laws import check_on_ray, check_resumed

OFF = {"margin": 0.0, "pair": 0.0, "entropy": 0.0, "cluster": 0.0, "pseudo": 0.0, "suppress": 0.0}
STEPS = {"epochs": 2, "batch": 100, "lr": 0.05}
ON = {"name": "fedossl", **STEPS, "cluster_from": 0, "pseudo_from": 1, "threshold": 0.3, "memory": 50}
D, C, WEIGHTS = 8, 10, 64 * 8 + 8 + 10 * 8  # a hidden layer of 8; the cosine layer has no bias


RUN = {
    "rounds": 2, "data": "digits", "partition": {"name": "iid", "clients": 4}, "splits": {"val": 0.0},
    "labels": {"name": "open_world", "seen": 6, "share": 0.5}, "model": {"name": "mlp", "hidden": [D]},
    "task": {"name": "open_world", "seen": 6}, "strategy": {"name": "fedossl", "centroid_steps": 20}, "client": ON,
    "cohort": {"size": 4}, "evaluation": {"splits": ["unlabelled"]}, "execution": {"executor": "serial"},
}  # fmt: skip


# -- losses -----------------------------------------------------------------------------------------------------------
def test_partners():
    y = torch.tensor([4, 2, 4, -1, 4, -1])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 3.0], [0.0, -1.0], [2.0, 0.1]])
    # class 4: 0 -> 2 -> 4 -> 0; class 2 is alone; (1, 3) is nearest to (0, 1), (2, .1) to (1, 0)
    assert partners(y, z).tolist() == [2, 1, 4, 1, 0, 0]
    assert partners(torch.tensor([-1]), z[:1]).tolist() == [0]


def test_losses_on_paper():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert pair_loss(p, q).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    weights = suppression(torch.tensor([4.0, 2.0, 0.0]), 0.25)
    assert weights.tolist() == [1.0, 0.5, 0.25]
    assert suppression(torch.zeros(3), 0.2).tolist() == pytest.approx([0.2] * 3)
    # |p - q| summed over classes is 1 - p_k, where k is the likeliest class; a mean over 3 classes
    three = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.3, 0.6]])
    assert suppressed_loss(three, weights).item() == pytest.approx((0.5 * 0.3 + 0.25 * 0.4) / 2 / 3)
    assert suppressed_loss(three[:0], weights) == 0
    logits, t = torch.zeros(3, 2), torch.tensor([[0.99, 0.01], [0.9, 0.1], [0.01, 0.99]])
    unlabelled = torch.tensor([True, True, False])
    assert pseudo_loss(logits, t, unlabelled, 0.95).item() == pytest.approx(math.log(2))
    assert pseudo_loss(logits, t, ~unlabelled, 0.999) == 0


def test_the_margin_raises_the_logit_of_the_target():
    logits, y = torch.tensor([[1.0, 2.0], [0.5, 0.0], [3.0, 0.0]]), torch.tensor([0, -1, 1])
    for rise in (0.0, 2.0):
        paper = [math.log(1 + math.exp(2 - 1 - rise)), 0, math.log(1 + math.exp(3 - rise))]
        # the mean over three is that of the two rows with label
        assert eased_loss(logits, y, rise).tolist() == pytest.approx([1.5 * each for each in paper])


def test_outputs_are_cosines():
    net = with_cosine(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 10.0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    outputs, z = net(x, features=True)
    expected = 10 * F.cosine_similarity(z[:, None], net.get_submodule("2").weight, dim=-1)
    assert torch.allclose(outputs, expected, atol=1e-6) and torch.equal(net(x), outputs)
    with pytest.raises(ValueError, match="last layer has to be a linear one"):
        with_cosine(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 10.0)
    with pytest.raises(ValueError, match="last linear layer 2 has 2 outputs, and the task has 3"):
        FedoSSL().extend(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,), 3)


# -- centroids --------------------------------------------------------------------------------------------------------
def test_local_centroids():
    directions = torch.eye(4)
    memory = F.normalize(directions.repeat(20, 1) + 0.01 * torch.arange(320.0).view(80, 4).sin(), dim=-1)
    found = local_centroids(memory, 8, torch.Generator().manual_seed(1))
    assert torch.allclose(found.norm(dim=1), torch.ones(8)) and (found @ directions.T).amax(1).min() > 0.99
    assert local_centroids(memory[:3], 8, torch.Generator()).shape == (8, 4)
    assert local_centroids(memory[:0], 8, torch.Generator()).shape == (0, 4)


def test_shared_centroids_have_unit_norm_and_find_balanced_groups():
    local = F.normalize(torch.eye(3).repeat(8, 1) + 0.05, dim=-1)
    start = F.normalize(torch.eye(3) + 0.6 * torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]), dim=-1)
    g = fitted(start, local, 300, 0.05)
    assert torch.allclose(g.norm(dim=1), torch.ones(3)) and torch.equal(fitted(start, local[:0], 9, 0.1), start)
    assert (g @ local.T).amax(1).mean() > (start @ local.T).amax(1).mean()


def test_renaming_is_a_permutation_also_if_two_classes_want_one_centroid():
    g = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]), dim=-1)
    means = Table(torch.tensor([1, 3]), torch.tensor([[0.0, 5.0, 1.0], [0.0, 9.0, 3.0]]), torch.tensor([1, 1]))
    # both are nearest to (0, 1, 0); cosines .98 + .32 beat .95 + .20, and (1, 1, 1) gives .73: class 1 gets row 3 or 1
    new = renamed(g, means)
    assert sorted(map(tuple, new.tolist())) == sorted(map(tuple, g.tolist()))
    unit = F.normalize(means.values, dim=-1) @ g.T
    best = max(unit[0, a] + unit[1, b] for a in range(4) for b in range(4) if a != b)
    assert unit[0] @ (g @ new[1] > 0.999).float() + unit[1] @ (g @ new[3] > 0.999).float() == pytest.approx(float(best))
    assert torch.equal(renamed(g, Table(torch.zeros(0, dtype=torch.int64), g[:0], torch.zeros(0))), g)


# -- runs -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Supervised(LocalTraining):
    """Plain local training of the model with the cosine layer."""

    def extend(self, module, sample_shape, outputs):
        return with_cosine(module, 10.0)


def test_without_other_losses_it_is_supervised_fedavg_with_uniform_weights(tmp_path):
    all_labelled = {**RUN, "labels": {"name": "open_world", "seen": 10}, "evaluation": {}}
    ours = fl.run(all_labelled | {"client": {"name": "fedossl", **STEPS, **OFF}}, out=tmp_path / "ours")
    plain = {"strategy": {"name": "fedavg", "weights": "uniform"}, "client": Supervised(**STEPS, last_batch="drop")}
    loop = {"execution": {"executor": "serial", "plan": "loop"}}
    assert ours.digest == fl.run(all_labelled | plain | loop, out=tmp_path / "plain").digest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fl.run(RUN, out=tmp_path_factory.mktemp("fedossl") / "run")


def test_bytes_and_groups(run):
    """Local centroids and means of seen classes go up, shared centroids go down; features never leave the client."""
    found = {(row["direction"], row["group"], row["payload_bytes"]) for row in run.ledger.to_pylist()}
    down = {("down", "model", 4 * WEIGHTS), ("down", "centroids", 4 * C * D)}
    up = {("up", "model", 4 * WEIGHTS), ("up", "centroids", 4 * 32 * D), ("up", "means", 6 * (4 * D + 16))}
    assert found == down | up
    assert {"unlabelled_rows/unseen_accuracy", "eval/unseen_nmi", "eval/all_accuracy"} < set(run.metrics[-1])


def test_a_resumed_run_has_the_same_bits(run, tmp_path):
    check_resumed(RUN, run, tmp_path)


@pytest.mark.ray
def test_ray_has_the_same_bits(run, tmp_path):
    check_on_ray(RUN, run, tmp_path)


def digits(rows: int = 240) -> dict:
    loaded = Digits().load()
    return {"train": {n: loaded.train[n][:rows] for n in "xy"}, "test": {n: loaded.test[n][:50] for n in "xy"}}


@dataclass(frozen=True)
class EvenRows(Labels):
    """Rows with even numbers keep their labels, whatever these are."""

    def keep(self, dataset, partition):
        return partition.indices % 2 == 0


def test_labels_of_other_rows_change_no_bit(tmp_path):
    clean, poisoned = digits(), digits()
    poisoned["train"]["y"] = np.where(np.arange(240) % 2, (clean["train"]["y"] * 3 + 1) % 10, clean["train"]["y"])
    settings = {**RUN, "labels": EvenRows(), "evaluation": {}}
    one, other = (
        fl.run(settings | {"data": data}, out=tmp_path / name) for name, data in (("a", clean), ("b", poisoned))
    )
    assert one.digest == other.digest


def test_edge_clients_train(tmp_path):
    """Clients with one row, without labels, with one class, or with fewer rows than a batch."""
    lists = [[61], list(range(1, 60, 2)), [2], [0, 4, 6]]
    settings = {**RUN, "partition": {"name": "file", "lists": lists}, "labels": EvenRows(), "evaluation": {}}
    for keep in (False, True):
        client = {**ON, "keep_optimiser": keep, "optimiser": {"name": "sgd", "momentum": 0.9}}
        result = fl.run(settings | {"client": client}, out=tmp_path / str(keep))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"client.beta": 0.0}, "beta"),
        ({"client.threshold": 1.5}, "threshold"),
        ({"client.pair": -1.0}, "pair"),
        ({"strategy.centroid_lr": 0.0}, "centroid_lr"),
        ({"task": "regression", "labels": EvenRows()}, "needs a class for each sample, and Regression"),
        ({"model.freeze": ["3.*"]}, "strategy.name: fedossl trains the whole last linear layer"),
        ({"model.adapter": {"name": "lora", "rank": 2}}, "strategy.name: fedossl trains the whole .*use no adapter"),
    ],
)
def test_wrong_settings_are_refused(change, message, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=message):
        fl.run(RUN, out=tmp_path / "run", **change)


def test_the_optimisers_memory_lasts_if_asked(tmp_path):
    momentum = {"optimiser": {"name": "sgd", "momentum": 0.9}}
    first, kept = (
        fl.run(RUN | {"client": {**ON, **momentum, "keep_optimiser": keep}}, out=tmp_path / str(keep))
        for keep in (False, True)
    )
    assert first.digest != kept.digest
    assert replace(FedoSSL(), pair=0, cluster=0, suppress=0).gradients_per_step() == 1


@pytest.mark.slow
def test_laws_with_all_losses_from_round_0():
    assert [f for f in check("client:fedossl", cluster_from=0, pseudo_from=0, threshold=0.2) if not f.ok] == []
