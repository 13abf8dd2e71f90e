"""Samplers that learn from the rounds: what they observe, candidates in the ledger, power-of-choice and Oort by hand.

The toy `Recorder` keeps what it observes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fl.check.bench import CLIENTS, FEDERATION, Bench, finish
from fl.check.executors import Scattered
from fl.errors import ConfigError
from fl.method.oort import Oort, OortState
from fl.method.power_of_choice import LastLosses, PowerOfChoice
from fl.method.sampler import CohortSampler
from fl.simulation.simulation import Simulation
from fl.tensors.trees import Tree
from tests.flower.test_deploy import same_run

NAN = math.nan
SYSTEM = {"devices": {"name": "identical", "ms_per_sample": 3, "latency_ms": 1000, "down_mbps": 1, "up_mbps": 1}}
LEARNING = [
    {"name": "power_of_choice", "size": 2, "candidates": 5},
    {"name": "rpow", "size": 2, "candidates": 5},
    {"name": "oort", "size": 4, "seconds": 1.0},
    {"name": f"{__file__}:Recorder"},
]


@dataclass(frozen=True, kw_only=True)
class Recorder(CohortSampler):
    """Clients 0 and 3, or 1 and 3 after a round in which client 0 answered; the state is all that was observed."""

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        came = state is not None and state["metrics"]["answered"][0] == 1 and state["cohort"][0] == 0
        return state, np.array([1 if came else 0, 3])

    def observe(
        self, state: Tree, cohort: np.ndarray, metrics: Mapping[str, np.ndarray], durations: np.ndarray
    ) -> Tree:
        return {"cohort": cohort, "metrics": dict(metrics), "durations": durations, "before": state}


def bench(folder, client="sgd", **arguments):
    return Bench({"name": "fedavg"}, {"name": client, "epochs": 2, "batch": 8, "lr": 0.1, **arguments}, folder)


# -- laws -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cohort", LEARNING, ids=lambda cohort: cohort["name"].rpartition(":")[2])
def test_order_of_work_and_a_resume_change_no_bits(cohort, tmp_path):
    with_system = {"cohort": cohort, "system": SYSTEM | {"dropout": 0.3}, "rounds": 4}
    federation = bench(tmp_path)
    plain = federation.run(**with_system)
    federation.run(executor=Scattered(), **with_system).require_same(plain, "scattered over two workers")
    with federation.simulation(**with_system) as first:
        first.run(interrupt=lambda: True)
    with Simulation(first.config, first.directory, resumed=True) as last:
        finish(last).require_same(plain, "resumed")


@pytest.mark.ray
def test_ray_workers_give_the_same_bits(tmp_path):
    cohort = {"name": "power_of_choice", "size": 3, "candidates": 6}
    ray = {"executor": "ray", "workers": 2}
    bench(tmp_path / "a").run(cohort=cohort, execution=ray).require_same(
        bench(tmp_path / "b").run(cohort=cohort), "ray"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cohort", LEARNING[:3:2], ids=["power_of_choice", "oort"])
def test_a_deployment_gives_the_same_bits(cohort, tmp_path, capsys):
    same_run(bench(tmp_path).config(cohort=cohort, **{"execution.plan": "loop"}), tmp_path)


def test_all_candidates_in_the_cohort_is_weighted_sampling(tmp_path):
    chosen = bench(tmp_path / "a").run(cohort={"name": "power_of_choice", "size": 5, "candidates": 5})
    weighted = bench(tmp_path / "b").run(cohort={"name": "weighted", "size": 5})
    assert all(torch.equal(a, b) for a, b in zip(chosen.model.buffers, weighted.model.buffers))


# -- what a sampler observes ------------------------------------------------------------------------------------------
def test_what_a_sampler_observes(tmp_path):
    """Round 0: clients 0 and 3. The loss is the client's own row of clients.parquet; no virtual time, so NaN."""
    federation = bench(tmp_path)
    with federation.simulation(cohort=LEARNING[3], rounds=1, **{"splits.val": 0}) as run:
        result = run.run()
        seen = run.sampler
        sizes = run.run_setup.sizes(0)
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    losses = {row["client"]: row["loss"] for row in table if row["split"] == "train"}
    assert seen["cohort"].tolist() == [0, 3] and seen["before"] is None
    assert seen["metrics"]["answered"].tolist() == [1, 1]
    assert seen["metrics"]["num_examples"].tolist() == sizes[[0, 3]].tolist()
    assert seen["metrics"]["loss"].tolist() == [losses[0], losses[3]]
    assert np.isnan(seen["durations"]).all()


def test_late_clients_are_marked(tmp_path):
    """Latency 1 s each way, 3 ms per sample, two epochs, 1 Mbit/s; the 64 parameters of 4 bytes are 2048 bits.

    Client c takes 2 + 2 * 0.003 n_c + 2 * 8 * bytes / 1e6 seconds. The deadline lies between the two clients.
    """
    federation = bench(tmp_path)
    with federation.simulation(cohort=LEARNING[3]) as run:
        sizes, nbytes = run.run_setup.sizes(0)[[0, 3]], 4 * run.run_setup.model.numel
    expected = 2 + 2 * 0.003 * sizes + 2 * 8 * nbytes / 1e6
    assert sizes[0] != sizes[1]
    server = {"name": "sync", "deadline_seconds": float(expected.mean())}
    with federation.simulation(cohort=LEARNING[3], system=SYSTEM, server=server, rounds=1) as run:
        run.run()
    late = int(expected.argmax())
    seen, want = run.sampler, np.where(np.arange(2) == late, NAN, expected)
    np.testing.assert_allclose(seen["durations"], want, rtol=1e-12)
    assert seen["metrics"]["answered"].tolist() == [float(i != late) for i in range(2)]
    assert seen["metrics"]["num_examples"][late] == 0 and np.isnan(seen["metrics"]["loss"][late])


def test_a_sampler_that_learns_knows_clients_by_id(tmp_path):
    """Half of the clients are present in a round: the ids of the cohort are those of present clients."""
    system = SYSTEM | {"availability": {"name": "bernoulli", "p": 0.5}}
    federation = bench(tmp_path)
    with federation.simulation(cohort={"name": "oort", "size": 2}, system=system, rounds=1) as run:
        world = run.run_setup.system
        present = set(world.available(world.opens(2, 0.0)))
        result = run.run()
    assert {row["client"] for row in result.ledger.to_pylist()} <= present < set(range(CLIENTS))


# -- candidates -------------------------------------------------------------------------------------------------------
def test_candidates_are_in_the_ledger(tmp_path):
    """d = 5 candidates: 5 x (the model down + 8 bytes up), beside 2 models down and up for the cohort."""
    federation = bench(tmp_path)
    with federation.simulation(cohort=LEARNING[0], rounds=2) as run:
        result, model = run.run(), 4 * run.run_setup.model.numel
    for row in result.metrics:
        assert row["downlink_bytes"] == 5 * model + 2 * model and row["uplink_bytes"] == 5 * 8 + 2 * model
        assert row["downlink_multicast_bytes"] == 2 * model and row["cohort_size"] == 2
    ledger = [row for row in result.ledger.to_pylist() if row["exchange"] == -1 and row["round"] == 0]
    assert sorted((row["direction"], row["group"]) for row in ledger) == [("down", "model")] * 5 + [("up", "loss")] * 5


def test_the_candidates_with_the_largest_losses_train(tmp_path):
    """The losses of the initial model on the candidates' rows, computed with torch, decide."""
    federation = bench(tmp_path)
    with federation.simulation(cohort=LEARNING[0], rounds=1) as run:
        setup = run.run_setup
        net = setup.module.eval()
        torch.nn.utils.vector_to_parameters(
            torch.cat([setup.model[name].reshape(-1) for name, _ in net.named_parameters()]), net.parameters()
        )
        arrays, part, losses = setup.dataset.train, setup.periods[0].partition, []
        for client in range(CLIENTS):
            at = part.view_rows(client, "train")
            x, y = (torch.as_tensor(arrays[name][at]) for name in "xy")
            losses.append(float(torch.nn.functional.cross_entropy(net(x), y).detach()))
        result = run.run()
    ledger = result.ledger.to_pylist()
    candidates = {row["client"] for row in ledger if row["exchange"] == -1}
    trained = {row["client"] for row in ledger if row["exchange"] == 0}
    assert trained == set(sorted(candidates, key=lambda client: -losses[client])[:2])


def test_evaluations_of_candidates_take_virtual_time(tmp_path):
    """One sample each: 2 s latency, a third of 3 ms, model down and 8 bytes up at 1 Mbit/s; then the round."""
    data = FEDERATION["data"] | {"samples": 1}
    settings = {"data": data, "system": SYSTEM, "rounds": 1, "splits.val": 0, "client.epochs": 1}
    federation = bench(tmp_path)
    with federation.simulation(cohort=LEARNING[0], **settings) as run:
        (row,), model = run.run().metrics, 4 * run.run_setup.model.numel
    candidates = 2 + 0.003 / 3 + 8 * (model + 8) / 1e6
    training = 2 + 0.003 + 8 * 2 * model / 1e6
    assert row["simulated_seconds"] == pytest.approx(candidates + training, rel=1e-9)


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_power_of_choice_by_hand():
    sampler = PowerOfChoice(size=2, candidates=4)
    losses = np.array([0.5, NAN, 2.0, 0.75])
    assert sampler.choose(None, np.array([1, 4, 6, 9]), losses)[1].tolist() == [6, 9]
    assert sampler.choose(None, np.array([1, 4]), np.array([NAN, 1.0]))[1].tolist() == [4], "who did not answer is out"


def test_last_losses_by_hand():
    """Three of three candidates: unknown clients first, then the largest losses; a failed client keeps its loss."""
    sampler, sizes = LastLosses(size=2, candidates=3), np.array([1, 1, 1])
    state = sampler.observe(
        sampler.init(3), np.array([0, 1]), {"loss": np.array([0.5, 2.0]), "answered": np.ones(2)}, np.full(2, NAN)
    )
    assert sampler.sample(state, 1, 0, sizes)[1].tolist() == [1, 2]
    state = sampler.observe(state, np.array([1, 2]), {"loss": np.array([NAN, 0.25])}, np.full(2, NAN))
    assert sampler.sample(state, 2, 0, sizes)[1].tolist() == [0, 1]


def test_oorts_utilities_by_hand():
    """Round R = 3 of three explored clients, with T = 2 s and alpha = 2.

    client  |B| * loss   L    t    sqrt(0.1 ln 3 / L)                    factor
    0       10 * 0.5     1    1    sqrt(0.10986) = 0.33145               1
    1       4 * 2.0      2    4    sqrt(0.05493) = 0.23437               (2 / 4)^2 = 0.25
    2       did not answer: 0      NaN     as client 1                   1
    """
    sampler = Oort(size=1, seconds=2.0, clip=1.0)
    state = sampler.init(4)
    state = OortState(1, state.utility, state.duration, state.last, state.times)
    metrics = {"loss": np.array([0.5]), "num_examples": np.array([10.0]), "answered": np.ones(1)}
    state = sampler.observe(state, np.array([0]), metrics, np.array([1.0]))
    state = OortState(2, state.utility, state.duration, state.last, state.times)
    metrics = {
        "loss": np.array([2.0, NAN]),
        "num_examples": np.array([4.0, 0.0]),
        "answered": np.array([1.0, 0.0]),
    }
    state = sampler.observe(state, np.array([1, 2]), metrics, np.array([4.0, NAN]))
    state = OortState(3, state.utility, state.duration, state.last, state.times)
    assert state.times.tolist() == [1, 1, 1, 0] and state.last.tolist() == [1, 2, 2, 0]
    want = [5.33145, 0.25 * 8.23437, 0.23437]
    np.testing.assert_allclose(sampler.utilities(state, np.array([0, 1, 2])), want, atol=2e-5)


def oort_state(utility, times=None, round_=0):
    n = len(utility)
    last = np.where(np.isnan(utility), 0, 1)
    return OortState(
        round_, np.nan_to_num(utility), np.full(n, NAN), last, np.zeros(n, int) if times is None else times
    )


def test_oort_explores_and_exploits():
    """epsilon 0.5 of four: two new clients, and two of the known ones from 95 % of the second best on."""
    sampler = Oort(size=4, epsilon=0.5, decay=1.0, clip=1.0)
    known, sizes = np.array([100.0, 98.0, 97.0, 10.0, NAN, NAN, NAN]), np.ones(7, int)
    cohorts = [sampler.sample(oort_state(known), 0, seed, sizes)[1] for seed in range(40)]
    assert all(sum(c < 4 for c in cohort) == 2 and 3 not in cohort for cohort in cohorts)
    assert {int(c) for cohort in cohorts for c in cohort} == {0, 1, 2, 4, 5, 6}, "client 2 is above the cut-off 93.1"
    assert sampler.sample(oort_state(known), 0, 0, np.array([1, 1, 0, 1, 1, 1, 1]))[1].size == 4, "client 2 is away"


def test_oort_leaves_out_clients_that_took_part_too_often():
    sampler = Oort(size=2, epsilon=0.0, min_epsilon=0.0, max_times=3, cutoff=1.0, clip=1.0)
    state = oort_state(np.array([9.0, 5.0, 4.0, 1.0]), np.array([3, 0, 2, 1]))
    assert sampler.sample(state, 0, 0, np.ones(4))[1].tolist() == [1, 2]
    worn = oort_state(np.array([9.0, 5.0, 4.0, 1.0]), np.array([3, 3, 3, 1]))
    assert sampler.sample(worn, 0, 0, np.ones(4))[1].tolist() == [0, 1], "fewer than two are left: all are allowed"


def test_oort_reduces_large_utilities_to_a_quantile():
    """The median of 1, 2, 30 is 2; in round R = 1 the term for staleness is 0."""
    state = oort_state(np.array([1.0, 2.0, 30.0]), round_=1)
    assert Oort(size=1, clip=0.5).utilities(state, np.arange(3)).tolist() == [1, 2, 2]


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"cohort": {"name": "power_of_choice", "size": 3, "candidates": 2}}, "cohort.candidates: 2 is less than size"),
        ({"cohort": {"name": "rpow", "size": 3, "candidates": 9}}, "cohort.candidates: 9 of a population of 8"),
        (
            {"cohort": LEARNING[2], "system": SYSTEM, "server": {"name": "buffered", "concurrency": 4, "buffer": 2}},
            "cohort: 'oort' learns from rounds, and the clock of an asynchronous server",
        ),
    ],
)
def test_errors_before_round_0(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        bench(tmp_path).run(**settings)


def test_a_metric_that_clients_do_not_send_is_named(tmp_path):
    with pytest.raises(ValueError, match="cohort.metric: clients send no 'los'; they send .*'loss'"):
        bench(tmp_path).run(cohort={"name": "oort", "size": 4, "metric": "los"})
