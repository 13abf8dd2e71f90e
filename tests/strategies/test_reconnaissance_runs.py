"""Federated Reconnaissance in whole runs on a small data set, its missions and its encoder.

test_reconnaissance.py tests the parts. Expected values here come from plain torch.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.models.architectures.conv4 import Conv4
from fl.models.binding import Initial
from fl.simulation.simulation import Simulation
from fl.tensors.params import join
from fl.tensors.sparse import Table
from partitions.missions import Missions
from strategies.episodes import episode_loss, meta_train
from strategies.reconnaissance import Reconnaissance

BASE, FIELD = 4, 6


def same(a: Table, b: Table, tolerance: float = 0.0) -> None:
    assert torch.equal(a.keys, b.keys) and torch.equal(a.counts.double(), b.counts.double())
    torch.testing.assert_close(a.values.double(), b.values.double(), rtol=tolerance, atol=tolerance)


def central(z: torch.Tensor, y: torch.Tensor) -> Table:
    """Return class means, each computed in one pass by torch."""
    keys = y.unique()
    means = torch.stack([z[y == c].double().mean(0) for c in keys])
    return Table(keys, means, torch.tensor([int((y == c).sum()) for c in keys]))


# -- a small data set: noisy patterns as classes--------------------------------------------------------------------
def drawings(classes: int, each: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    patterns = np.kron(np.random.default_rng(7).normal(size=(classes, 1, 4, 4)), np.ones((4, 4)))
    y = np.repeat(np.arange(classes), each)
    return {"x": (patterns[y] + draw.normal(size=(len(y), 1, 16, 16))).astype(np.float32), "y": y}


@dataclass(frozen=True)
class SimulatedSystem:
    """Data with base classes 0..3 for the server, field classes 4..9 for clients; 8 training, 3 test samples each."""

    def load(self) -> Dataset:
        learnt, test = drawings(BASE + FIELD, 8, 0), drawings(BASE + FIELD, 3, 1)
        own = learnt["y"] < BASE
        return Dataset({n: a[~own] for n, a in learnt.items()}, test, server={n: a[own] for n, a in learnt.items()})


CONFIG = {
    "data": SimulatedSystem(),
    "partition": {"name": "iid", "clients": 3},
    "stream": {"name": "missions", "tasks": 4, "clients": 3, "classes": 1, "samples": 4},
    "splits": {"val": 0.0},
    "model": {"name": "conv4", "width": 4},
    "cohort": {"size": 3},
    "strategy": {"name": "reconnaissance", "episodes": 4, "ways": 3, "shots": 3, "queries": 2},
    "execution": {"executor": "serial"},
    "checkpoint": {"best": False},
}


def simulated(folder, **overrides):
    with Simulation(resolve(read(CONFIG, overrides)), folder) as simulation:
        return simulation, simulation.run()


def plain_encoder(state) -> torch.nn.Module:
    """Load the run's encoder with torch."""
    net = Conv4(width=4).build((1, 16, 16), 10)
    counters = {n: b for n, b in net.state_dict().items() if n not in state.model}
    net.load_state_dict({**dict(state.model), **counters})
    return net.eval()


@pytest.fixture(scope="module")
def mission_run(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("recon"), **{"strategy.before": True})


def test_missions_only_add_prototypes(mission_run, tmp_path):
    """The encoder equals that of a run without missions; prototypes of base classes keep their bits."""
    longer, (shorter, _) = mission_run[0], simulated(tmp_path, **{"stream.tasks": 1})
    assert all(torch.equal(longer.state.model[n], shorter.state.model[n]) for n in shorter.state.model)
    assert torch.equal(longer.state.table.values[:BASE], shorter.state.table.values[:BASE])


def test_one_client_with_everything_is_many_clients(mission_run, tmp_path):
    """Invariant 2 in a run: the same pool, three classes per mission at one client."""
    alone, _ = simulated(tmp_path, **{"stream.clients": 1, "stream.classes": 3, "cohort.size": 1})
    same(alone.state.table, mission_run[0].state.table, 1e-5)


def accuracy(net, known: Table, rows: np.ndarray) -> float:
    test = SimulatedSystem().load().test
    with torch.no_grad():
        z = net(torch.from_numpy(test["x"][rows])).double()
    predicted = known.keys[((z[:, None] - known.values.double()) ** 2).sum(-1).argmin(1)]
    return float((predicted == torch.from_numpy(test["y"][rows])).double().mean())


def test_evaluations_before_and_after_the_merge(mission_run):
    """The first mission by hand: base prototypes, plus the client's class, plus all classes."""
    simulation, result = mission_run
    net, world, partition = (
        plain_encoder(simulation.state),
        SimulatedSystem().load(),
        simulation.run_setup.periods[0].partition,
    )

    def with_rows(rows: np.ndarray) -> Table:
        x, y = (torch.from_numpy(np.concatenate([world.server[n], world.train[n][rows]])) for n in ("x", "y"))
        with torch.no_grad():
            return central(net(x), y)

    def asked(known: Table, classes) -> float:
        return accuracy(net, known, np.flatnonzero(np.isin(world.test["y"], classes)))

    own, old = [partition.view_rows(c, "train") for c in range(3)], range(BASE)
    start, first = result.metrics[:2]
    assert start["round"] == -1 and start["start/base"] == pytest.approx(asked(with_rows(own[0][:0]), old))
    assert first["before/base"] == pytest.approx(np.mean([asked(with_rows(rows), old) for rows in own]))
    assert first["before/new"] == pytest.approx(
        np.mean([asked(with_rows(rows), world.train["y"][rows]) for rows in own])
    )
    assert first["before/mean"] == pytest.approx((first["before/base"] + first["before/new"]) / 2)
    assert "before/seen" not in first and "before/seen" in result.metrics[2]
    rows = np.concatenate(own)
    assert first["after/base"] == pytest.approx(asked(with_rows(rows), old))
    assert first["after/field"] == pytest.approx(asked(with_rows(rows), world.train["y"][rows]))
    assert first["eval/accuracy"] == pytest.approx(first["after/field"])


def test_without_base_prototypes_only_field_classes_compete(tmp_path):
    simulation, result = simulated(tmp_path, **{"strategy.base": False, "strategy.episodes": 0})
    assert simulation.state.table.keys.tolist() == list(range(BASE, BASE + FIELD))
    assert not any("base" in name for row in result.metrics for name in row)
    first = simulation.run_setup.initial
    assert all(torch.equal(simulation.state.model[n], t) for n, t in {**first.trained, **first.frozen}.items())


# -- meta-training ----------------------------------------------------------------------------------------------------
def meta_trained(episodes: int, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Conv4(width=8).build((1, 16, 16), 0)
    first, data = Initial.of(net), drawings(12, 8, 3)
    encoder = join(first.trained, first.frozen)
    before = copy.deepcopy(net.state_dict()), encoder.clone()
    arrays = [torch.from_numpy(data[n]) for n in ("x", "y")]
    trained = meta_train(net, encoder, *arrays, episodes, 4, 3, 3, 1e-2, False, seed)
    assert all(torch.equal(t, before[0][n]) for n, t in net.state_dict().items())
    assert all(torch.equal(t, before[1][n]) for n, t in encoder.items())
    return net, encoder, trained


def test_meta_training_separates_classes_it_has_not_seen():
    net, encoder, trained = meta_trained(40)
    data = drawings(20, 6, 4)  # patterns 12..19 are not in the other data
    x, losses = torch.from_numpy(data["x"]).unflatten(0, (20, 6))[12:], []
    for params in (encoder, trained):
        ours = copy.deepcopy(net)
        ours.load_state_dict({**net.state_dict(), **dict(params)})
        with torch.no_grad():
            losses.append(float(episode_loss(ours.eval()(x.flatten(0, 1)).unflatten(0, (8, 6)), 3)))
    assert losses[1] < 0.8 * losses[0]
    assert not torch.equal(trained["block1.norm.running_mean"], encoder["block1.norm.running_mean"])


def test_meta_training_is_a_function_of_its_seed():
    runs = [meta_trained(3, seed)[2] for seed in (0, 0, 1)]
    assert torch.equal(runs[0].buffers[0], runs[1].buffers[0]) and not torch.equal(
        runs[0].buffers[0], runs[2].buffers[0]
    )


def test_what_does_not_fit_is_refused():
    flat = torch.nn.Sequential(torch.nn.Linear(6, 4))
    with pytest.raises(ValueError, match=r"rotate: samples of \(6,\) are not square images; set rotate: false"):
        meta_train(flat, Initial.of(flat).trained, torch.ones(20, 6), torch.zeros(20), 1, 2, 1, 1, 1e-3, True, 0)
    for field, value in (("episodes", -1), ("ways", 1), ("shots", 0), ("queries", 0)):
        with pytest.raises(ValueError, match=f"{field}: {value} is not at least"):
            Reconnaissance(**{field: value})


def test_episodes_need_classes_of_the_servers_own(tmp_path):
    with pytest.raises(ValueError, match="episodes: the data have no classes for the server"):
        simulated(tmp_path, data="digits", model={"name": "mlp", "hidden": [4]})


# -- missions ---------------------------------------------------------------------------------------------------------
def staged(tasks, **fields):
    dataset = SimulatedSystem().load()
    return dataset, Missions(tasks=tasks, **fields).periods(dataset, None, None)[1]


def test_missions_use_every_row_once_and_test_what_was_met():
    dataset, periods = staged(4, clients=3, classes=1, samples=4)
    assert sorted(np.concatenate([s.partition.indices for s in periods])) == list(range(len(dataset)))
    for period in periods:
        period.partition.check(len(dataset))
        met = set(dataset.labels[period.partition.indices])
        assert set(dataset.test["y"][period.test]) == met and len(period.test) == 3 * len(met)
        for client in range(3):
            assert len(set(dataset.labels[period.partition.view_rows(client, "train")])) == 1


def test_missions_do_not_depend_on_who_meets_the_classes():
    many, one = (staged(2, clients=c, classes=k, samples=8)[1] for c, k in ((3, 1), (1, 3)))
    assert all(np.array_equal(np.sort(a.partition.indices), np.sort(b.partition.indices)) for a, b in zip(many, one))


def test_together_everyone_meets_every_class_of_the_mission():
    dataset, periods = staged(2, clients=3, classes=1, samples=8, together=True)
    for period in periods:
        met = set(dataset.labels[period.partition.indices])
        assert len(met) == 3 and len(period.partition.indices) == 24
        for client in range(3):
            assert set(dataset.labels[period.partition.view_rows(client, "train")]) == met


def test_what_is_kept_grows():
    dataset, periods = staged(3, clients=1, classes=2, samples=8, keep=True)
    rows = [set(period.partition.indices) for period in periods]
    assert rows[0] < rows[1] < rows[2] == set(range(len(dataset)))
    assert len(periods[2].test) == 3 * 2  # a period tests its mission's classes; evaluation covers all periods so far


def test_missions_that_there_is_nothing_left_for():
    with pytest.raises(ValueError, match="tasks: 5, but the 12 batches last for 4 missions"):
        staged(5, clients=3, classes=1, samples=4)
    with pytest.raises(ValueError, match="samples: 0 is not at least 1"):
        Missions(tasks=1, samples=0)


# -- the encoder ------------------------------------------------------------------------------------------------------
def test_conv4_heads_and_norms():
    headed = Conv4(width=8, norm="group", head=True).build((1, 28, 28), 10)
    assert headed(torch.zeros(2, 1, 28, 28)).shape == (2, 10) and not list(headed.buffers())
    with pytest.raises(ValueError, match="width: 12 is not a multiple of 8"):
        Conv4(width=12, norm="group")
    with pytest.raises(ValueError, match="conv4 takes images"):
        Conv4().build((6,), 4)


def test_a_head_is_trained_on_a_runs_encoder(mission_run, tmp_path):
    """FedAvg trains a head on the saved encoder: only the head changes, and the features are those of the run."""
    simulation, _ = mission_run
    model = {"width": 4, "norm": "none", "head": True, "encoder": str(simulation.directory), "freeze": ["block*"]}
    parts = {"strategy": {"name": "fedavg"}, "client": {"name": "sgd", "batch": 4, "lr": 0.5}}
    head, result = simulated(tmp_path, **{f"model.{k}": v for k, v in model.items()}, **parts)
    assert list(result.model) == ["head.weight", "head.bias"]
    assert not torch.equal(result.model["head.weight"], head.run_setup.model["head.weight"])
    x = torch.from_numpy(SimulatedSystem().load().test["x"])
    with torch.no_grad():
        features = Conv4(width=4, norm="none", encoder=str(simulation.directory)).build((1, 16, 16), 0)(x)
        torch.testing.assert_close(features, plain_encoder(simulation.state)(x), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_is_not_there_or_does_not_fit(mission_run, tmp_path):
    with pytest.raises(ValueError, match="encoder: there is no file"):
        Conv4(encoder=str(tmp_path / "none")).build((1, 16, 16), 0)
    with pytest.raises(ValueError, match="encoder: .* differ in .*; set the same width"):
        Conv4(width=8, norm="none", encoder=str(mission_run[0].directory)).build((1, 16, 16), 0)
