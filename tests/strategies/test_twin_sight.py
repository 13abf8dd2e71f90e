"""Twin-sight: its losses on paper; FedAvg over the labelled clients to the bit; bytes, resumption and hidden labels."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.twin_sight import gram_distance, info_nce, with_twin
from fl.check.check import check
from fl.config.config import resolve
from fl.data.sets.digits import Digits
from fl.simulation.build import set_up_run
from tests.interfaces.laws import check_on_ray, check_resumed

STEPS = {"steps": 3, "batch": 20, "lr": 0.1}
TWIN = {"name": "twin_sight", **STEPS, "hidden": 6, "projection": 5}
NEUTRAL = {"mu_ins": 0.0, "mu_sim": 0.0, "pseudo": 0.0, "unlabelled_weight": 0.0}
LOOP = {"executor": "serial", "plan": "loop"}
RUN = {
    "rounds": 2, "data": {"name": "digits", "augment": [{"name": "crop", "padding": 1}], "strong": ["cutout"]},
    "partition": {"name": "iid", "clients": 6}, "labels": {"name": "clients", "labelled": [0, 2, 3]},
    "model": {"name": "mlp", "hidden": [8]}, "strategy": "twin_sight", "client": TWIN, "cohort": {"size": 6},
    "execution": LOOP,
}  # fmt: skip
SHARED, TWINS = 64 * 8 + 8 + 8 * 10 + 10, (64 * 8 + 8) + (8 * 6 + 6 + 6 * 5 + 5)


def same(one, other, pattern: str = "") -> bool:
    names = [name for name in other.model if name.startswith(pattern)]
    return bool(names) and all(torch.equal(one.model[name], other.model[name]) for name in names)


# -- losses -----------------------------------------------------------------------------------------------------------
def test_gram_distance():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 4, generator=draw), torch.randn(7, 3, generator=draw)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=draw)).Q
    scales = torch.rand(7, 1, generator=draw) + 0.5
    assert gram_distance(a, a).item() == 0 and gram_distance(a, scales * a @ turn).item() < 1e-12
    assert gram_distance(a, b).item() == pytest.approx(gram_distance(a @ turn, 3 * b).item(), rel=1e-5)
    # cosines within a: 1 and -1; within b: 1 and 1. Two of four entries differ by 2
    opposite, equal = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert gram_distance(opposite, equal).item() == pytest.approx(2.0)
    for side in (a, b):  # the gradient goes to both
        side.requires_grad_()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(gram_distance(a, b), (a, b)))


@pytest.mark.parametrize("size, temperature", [(1, 0.5), (4, 0.07), (4, 1.0), (9, 0.5)])
def test_info_nce_of_equal_views_of_orthogonal_samples(size, temperature):
    views = 3 * torch.eye(size)
    paper = math.log(1 + (2 * size - 2) * math.exp(-1 / temperature))
    assert info_nce(views, views, temperature).item() == pytest.approx(paper, rel=1e-4, abs=1e-6)


def test_info_nce_by_its_definition():
    draw = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 4, generator=draw), torch.randn(3, 4, generator=draw)
    v, total = torch.cat([a, b]), 0.0
    for i in range(6):
        e = [math.exp(F.cosine_similarity(v[i], v[j], dim=0) / 0.3) if j != i else 0.0 for j in range(6)]
        total -= math.log(e[(i + 3) % 6] / sum(e)) / 6
    assert info_nce(a, b, 0.3).item() == pytest.approx(total, rel=1e-5)


def test_the_model_predicts_without_its_twin():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    expected, features = module(x), module[1](module[0](x))
    net = with_twin(module, 6, 5)
    assert torch.equal(net(x), expected)
    assert torch.equal(net(x, "s")[1], features) and not torch.equal(net(x, "u")[0], features)
    assert net(x, "u")[1].shape == (5, 5)
    with pytest.raises(ValueError, match="last layer has to be a linear one"):
        with_twin(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 6, 5)
    with pytest.raises(ValueError, match="last linear layer 2 has 2 outputs, and the task has 3"):
        with_twin(module, 6, 5, outputs=3)


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fl.run(RUN, out=tmp_path_factory.mktemp("twin") / "run")


def test_without_twin_and_unlabelled_weight_it_is_fedavg_over_the_labelled_clients(tmp_path):
    ours = fl.run(RUN | {"client": TWIN | NEUTRAL}, out=tmp_path / "ours")
    plain = RUN | {"strategy": "fedavg", "client": {"name": "sgd", **STEPS}}
    assert same(ours, fl.run(plain, out=tmp_path / "fedavg"))
    start = fl.run(RUN | {"client": TWIN | NEUTRAL | {"lr": 0.0}}, out=tmp_path / "start")
    assert same(ours, start, "twin.") and not same(ours, start, "1.")
    labelled_alone = plain | {"cohort": {"name": "fixed", "clients": [0, 2, 3]}}
    alone = fl.run(labelled_alone, out=tmp_path / "alone")
    assert all(torch.allclose(ours.model[name], alone.model[name], atol=1e-6) for name in alone.model)


def test_a_client_without_labels_trains_the_twin_alone_if_mu_sim_is_0(tmp_path):
    only = {"labels": {"name": "clients", "labelled": [5]}, "cohort": {"name": "fixed", "clients": [0, 1]}}
    start, trained, both = (
        fl.run(RUN | only | {"client": TWIN | change}, out=tmp_path / name)
        for name, change in (("start", {"lr": 0.0}), ("trained", {"mu_sim": 0.0}), ("both", {}))
    )
    for pattern in ("1.", "3."):
        assert same(start, trained, pattern)
    assert not same(start, trained, "twin.encoder") and not same(start, trained, "twin.projector")
    assert not same(start, both, "1.") and same(start, both, "3.")  # the Gram matrices move the features alone


def test_bytes(run):
    found = {(row["direction"], row["group"], row["payload_bytes"]) for row in run.ledger.to_pylist()}
    assert found == {(way, "model", 4 * (SHARED + TWINS)) for way in ("up", "down")}


def test_the_weight_of_rows_without_label(tmp_path):
    def end(weight: float, *clients: int):
        cohort = {"rounds": 1, "cohort": {"name": "fixed", "clients": clients}}
        client = TWIN | {"unlabelled_weight": weight}
        return fl.run(RUN | cohort | {"client": client}, out=tmp_path / f"{weight}{clients}").model

    partition = set_up_run(resolve(RUN)).periods[0].partition
    n, u = int(partition.train_slices()[1][0]), int(partition.unlabelled[1])
    labelled, unlabelled, both = end(0.5, 0), end(0.5, 1), end(0.25, 0, 1)
    weight = int(0.25 * u + 0.5)
    for name, tensor in both.items():
        paper = (n * labelled[name] + weight * unlabelled[name]) / (n + weight)
        torch.testing.assert_close(tensor, paper, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_has_the_same_bits(run, tmp_path):
    check_resumed(RUN, run, tmp_path)


@pytest.mark.ray
def test_ray_has_the_same_bits(run, tmp_path):
    check_on_ray(RUN, run, tmp_path)


def test_labels_of_unlabelled_clients_change_no_bit(tmp_path):
    loaded = Digits().load()
    x, y = loaded.train["x"][:240], loaded.train["y"][:240]
    owners = np.arange(240) % 6
    lists = [np.flatnonzero(owners == client).tolist() for client in range(6)]
    poisoned = np.where(np.isin(owners, [0, 2, 3]), y, (3 * y + 1) % 10)
    config = RUN | {"partition": {"name": "file", "lists": lists}, "client": TWIN | {"pseudo": 1.0, "threshold": 0.2}}
    strong = {key: RUN["data"][key] for key in ("augment", "strong")}
    one, other = (
        fl.run(config | {"data": {"train": {"x": x, "y": labels}, "test": loaded.test} | strong}, out=tmp_path / name)
        for name, labels in (("clean", y), ("poisoned", poisoned))
    )
    assert one.digest == other.digest


def test_clients_with_and_without_labels_in_one_batch(tmp_path):
    labels = {"name": "budget", "share": 0.2}
    ends = [
        fl.run(RUN | {"labels": labels, "client": TWIN | {"pseudo": w, "threshold": 0.1}}, out=tmp_path / str(w))
        for w in (0.0, 1.0)
    ]
    assert not same(*ends) and all(bool(torch.isfinite(t).all()) for end in ends for t in end.model.values())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"client.temperature": 0.0}, "temperature"),
        ({"client.unlabelled_weight": 2.0}, "unlabelled_weight"),
        ({"client.mu_sim": -1.0}, "mu_sim"),
        ({"data.strong": []}, "data.strong: missing"),
        ({"task": "regression"}, "task: client TwinSight .* and Regression is no classification"),
    ],
)
def test_wrong_settings_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fl.run(RUN, out=tmp_path / "run", **change)


@pytest.mark.slow
def test_laws_with_pseudo_labels():
    assert [f for f in check("client:twin_sight", pseudo=1.0, threshold=0.2) if not f.ok] == []
