"""ProtoFL: prototypes and their assignment on paper, distillation, closed forms of the ledger, what stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fl
from clients.protofl import ProtoFL, distance
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from strategies import protofl
from tests.watching import AfterRound

CLIENTS, ROUNDS, FEATURES = 6, 3, 8
FLOW = {"name": "flow", "epochs": 1, "couplings": 2, "hidden": [4]}
PUBLIC = {"name": "noise", "shape": [1, 8, 8], "classes": 7, "clients": 7, "samples": 20, "seed": 1}
RUN = {
    "rounds": ROUNDS,
    "data": {"name": "public", "of": "digits", "public": PUBLIC},
    "partition": {"name": "one_class", "clients": CLIENTS, "test": 0.1, "rows": 20},
    "shift": "own_or_other",
    "splits": {"val": 0.0},
    "task": {"name": "one_class", "features": FEATURES},
    "model": {"name": "cnn_group", "width": 4},
    "strategy": {"name": "protofl", "teacher_epochs": 1},
    "client": {"lr": 0.01, "optimiser": "adam"},
    "cohort": {"name": "cyclic", "size": 2},
    "evaluation": {"stage": ["received", "adapted"], "adapt": FLOW, "every": ROUNDS, "server": False},
    "execution": {"executor": "serial"},
}


def simulate(path, **changes):
    """Run, and return (result, prototype of each client after each round, numbered by client)."""
    kept = []

    def keep(_):
        segments = Segments(simulation.directory / "clients")
        kept.append([segments.read(at)["prototype"] for at in simulation.states.locations(np.arange(CLIENTS))])
        segments.close()

    with Simulation(resolve(read(RUN, changes)), path) as simulation:
        return simulation.run([AfterRound(keep)]), kept


def sent(result, setup=False):
    """Return the sets of (direction, group, bytes) of the rounds, or of the exchanges before them."""
    rows = [row for row in result.ledger.to_pylist() if (row["round"] < 0) == setup]
    return {(row["direction"], row["group"], row["payload_bytes"]) for row in rows}, len(rows)


# -- on paper ---------------------------------------------------------------------------------------------------------
def test_prototypes_are_normalised_means_of_normalised_features():
    features = torch.tensor([[2.0, 0.0], [0.0, 9.0], [-1.0, 0.0]])
    found = protofl.class_prototypes(features, torch.tensor([3, 3, 8]))
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [-1.0, 0.0]]))


def test_greedy_takes_the_largest_cosine_first_and_each_prototype_once():
    cosines = torch.tensor([[0.9, 0.8, 0.7, 0.0], [0.95, 0.1, 0.2, 0.0], [0.9, 0.85, 0.3, 0.4]])
    # .95 gives prototype 0 to client 1; .85 gives 1 to client 2; .7 gives 2 to client 0
    assert protofl.greedy(cosines).tolist() == [2, 0, 1]
    assert sorted(protofl.greedy(torch.zeros(5, 5)).tolist()) == [0, 1, 2, 3, 4]


def test_the_loss_is_0_only_for_features_along_the_prototype():
    e, draw = torch.tensor([0.6, 0.8]), torch.Generator().manual_seed(0)
    torch.testing.assert_close(distance(torch.stack([e, 7 * e]), e), torch.zeros(2))
    torch.testing.assert_close(distance(torch.tensor([[-0.8, 0.6], [-0.6, -0.8]]), e), torch.tensor([1.0, 2.0]))
    assert (distance(torch.randn(100, 2, generator=draw), e) > 0).all()


def test_the_objective_projects_the_features():
    client = ProtoFL(projection=5)
    net = client.extend(torch.nn.Linear(3, 4), (3,), 4)
    x, e = torch.randn(6, 3), torch.randn(5)

    class At:
        state = {"prototype": e}

    expected = 1 - F.cosine_similarity(net.projection(net.original(x)), e[None])
    torch.testing.assert_close(client.objective(net, {"x": x}, At(), None), expected)
    assert net(x).shape == (6, 4)


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("plain") / "run")


def test_the_ledger_has_the_closed_form(plain):
    result, _ = plain
    # conv 1 -> 4 and 4 -> 8 with GroupNorm, dense 8 * 2 * 2 -> 8; g: 8 -> 8
    p = 4 * ((9 + 1) * 4 + 2 * 4 + (9 * 4 + 1) * 8 + 2 * 8 + (32 + 1) * FEATURES + (FEATURES + 1) * FEATURES)
    assert sent(result) == ({("down", "model", p), ("up", "model", p)}, 2 * 2 * ROUNDS)
    once = {("down", "model", p), ("up", "feature", 4 * FEATURES), ("down", "prototype", 4 * FEATURES)}
    assert sent(result, setup=True) == (once, 3 * CLIENTS)


def test_another_architecture_and_no_teacher_on_the_device(tmp_path):
    result, kept = simulate(
        tmp_path / "run",
        **{"model": {"name": "mlp", "hidden": [10]}, "client.projection": 5, "strategy.assign": "random"},
    )
    p = 4 * ((64 + 1) * 10 + (10 + 1) * FEATURES + (FEATURES + 1) * 5)
    assert sent(result) == ({("down", "model", p), ("up", "model", p)}, 2 * 2 * ROUNDS)
    assert sent(result, setup=True) == ({("down", "prototype", 4 * 5)}, CLIENTS)
    assert len(torch.stack(kept[-1]).unique(dim=0)) == CLIENTS


def test_clients_keep_different_prototypes_of_norm_1(plain):
    _, kept = plain
    first = torch.stack(kept[0])
    assert len(first.unique(dim=0)) == CLIENTS
    torch.testing.assert_close(first.norm(dim=1), torch.ones(CLIENTS))
    for later in kept[1:]:  # also those of clients that were absent
        assert torch.equal(torch.stack(later), first)


def test_phase_2_costs_nothing_and_changes_nothing(plain, tmp_path):
    result, _ = plain
    without, _ = simulate(tmp_path / "run", **{"evaluation.stage": "received", "evaluation.adapt": None})
    assert without.ledger.to_pylist() == result.ledger.to_pylist()
    assert all(torch.equal(without.model[name], tensor) for name, tensor in result.model.items())
    row = result.metrics[-1]
    assert {"clients/auroc_mean", "clients/auroc_worst10", "adapted/clients/auroc_mean"} <= set(row)
    assert not [name for name in row if name.endswith("/auroc") or name.startswith(("eval/", "val/"))]
    assert "adapted/clients/auroc_mean" not in without.metrics[-1]


def test_one_common_prototype(tmp_path):
    _, kept = simulate(tmp_path / "run", **{"strategy.assign": "common", "rounds": 1, "data.public.classes": 2})
    assert len(torch.stack(kept[0]).unique(dim=0)) == 1


def test_training_starts_from_the_teacher_if_asked(plain, tmp_path):
    """With lr 0 the model stays: the teacher's, whose training does not depend on what the clients do."""
    still = {"client.lr": 0.0, "rounds": 1}
    (own, _), (teacher, _), (again, _) = (
        simulate(tmp_path / str(i), **still, **{"strategy.start": start, "strategy.assign": assign})
        for i, (start, assign) in enumerate([("model", "random"), ("teacher", "random"), ("teacher", "common")])
    )
    assert not torch.equal(own.model["0.weight"], teacher.model["0.weight"])
    assert all(torch.equal(again.model[name], tensor) for name, tensor in teacher.model.items())


def test_training_brings_features_to_the_prototypes(plain):
    losses = [row["train/loss"] for row in plain[0].metrics if row["round"] >= 0]
    assert losses[-1] < losses[0] < 2


def test_clients_with_one_row(tmp_path):
    result, _ = simulate(tmp_path / "run", **{"partition.rows": 1, "rounds": 1, "cohort.size": CLIENTS})
    assert np.isfinite([float(t.sum()) for t in result.model.values()]).all()
    assert 0 <= result.metrics[-1]["adapted/clients/auroc_mean"] <= 1


def test_an_autoencoder_is_trained_by_fedavg(tmp_path):
    plain = {"model": {"name": "autoencoder", "width": 4, "hidden": 8}, "evaluation": {"server": False}}
    result = fl.run({**RUN, **plain, "strategy": "fedavg", "client": {"lr": 0.1}}, out=tmp_path / "run")
    assert 0 <= result.metrics[-1]["clients/auroc_mean"] <= 1
    assert result.metrics[-1]["train/loss"] < result.metrics[0]["train/loss"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": "digits"}, "strategy.name: protofl trains a teacher on public rows .* use data: public"),
        ({"partition.clients": 8}, "strategy.assign: greedy gives each of 8 clients .* rows of 7 classes"),
        ({"model": {"name": "resnet8", "norm": "batch", "batch_norm": "batch"}}, "BatchNorm .* GroupNorm, such as"),
        ({"model.freeze": ["0.*"]}, "strategy.name: protofl trains the whole model; leave out model.freeze"),
        ({"task": "classification"}, "task: client ProtoFL predicts one score per sample"),
        ({"task": "classification", "strategy": "fedavg", "client": "sgd"}, "task: client Flow predicts one score"),
        ({"client": "sgd"}, "strategy.name: protofl trains the projection that client: protofl adds"),
        ({"strategy.assign": "nearest"}, "assign"),
        ({"client.projection": 1}, "projection: 1"),
    ],
)
def test_wrong_combinations_are_refused_before_round_0(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "run", **changes)
