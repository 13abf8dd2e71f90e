"""Asynchronous servers: periods in closed form, all starts accounted for, and restored states that change nothing."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fl
from fl.config.building import Builder
from fl.config.yaml import parse
from fl.system.asynchronous import Buffered, Tiered
from fl.system.availability import Bernoulli, Diurnal, Presence
from fl.system.availability_trace import AvailabilityTrace as Windows
from fl.system.clock import Clock
from fl.system.devices import Identical, Lognormal
from fl.system.dispatch_draws import BLOCK
from fl.system.event_loop import free_rank
from fl.system.metrics import histogram, participations
from fl.system.section import System
from fl.system.server_mode import ServerMode
from fl.system.simulated_system import SimulatedSystem, Times
from fl.tensors.serialise import flatten, unflatten

DOCS = (Path(fl.__file__).parent.parent / "docs/system.md").read_text()

SPREAD = Lognormal(ms_per_sample=10, up_mbps=8, down_mbps=8, sigma=1.0)


def clock(schedule, population=50, seed=0, devices=SPREAD, **settings) -> Clock:
    world = System(devices=devices, **settings).draw(seed, population)
    return Clock(
        schedule, world, System(devices=devices).draw(seed, population).times(np.arange(population), 100, 1e6, 1e6)
    )


def of(schedule, seconds) -> Clock:
    """Return a clock whose round trips take the given seconds."""
    n = len(seconds)
    zeros = np.zeros(n)
    world = SimulatedSystem(0, Identical(ms_per_sample=1).draw(0, n), Presence())
    return Clock(schedule, world, Times(zeros, np.array(seconds, float), zeros))


def test_identical_devices_are_exactly_periodic():
    """With a buffer of the size of the concurrency, a step happens every 4 s without staleness."""
    state, acts = (c := of(Buffered(concurrency=3, buffer=3), [4.0] * 10)).run(c.begin(), 20)
    assert [act.time for act in acts] == [4.0 * (i + 1) for i in range(20)]
    assert_array_equal(state.staleness, [60])
    for i, act in enumerate(acts):
        assert [a.dispatch for a in act.arrivals] == [3 * i, 3 * i + 1, 3 * i + 2]
        assert {s.version for s in act.starts} == {i} and {s.time for s in act.starts} == {4.0 * i}


def test_fedasync_with_identical_devices():
    """Three clients in flight arrive at the same time, with staleness 0, 1, 2; then three start."""
    _, acts = (c := of(Buffered(concurrency=3), [4.0] * 10)).run(c.begin(), 12)
    assert [act.time for act in acts] == [4.0] * 3 + [8.0] * 3 + [12.0] * 3 + [16.0] * 3
    assert [act.arrivals[0].staleness for act in acts] == [0, 1, 2] * 4
    assert [len(act.starts) for act in acts] == [3, 0, 0] * 4


def test_two_speeds_by_hand():
    """Both clients are always in flight: client 0 takes 2 s, client 1 takes 5 s."""
    _, acts = (c := of(Buffered(concurrency=2), [2.0, 5.0])).run(c.begin(), 7)
    assert [(a.time, a.arrivals[0].client, a.arrivals[0].staleness) for a in acts] == [
        (2, 0, 0), (4, 0, 0), (5, 1, 2), (6, 0, 1), (8, 0, 0), (10, 1, 2), (10, 0, 1),
    ]  # fmt: skip


def test_ties_come_in_the_order_of_starts():
    """At 10 s client 1 (started at 5) comes before client 0 (started at 8), independent of the ids."""
    _, acts = (c := of(Buffered(concurrency=2), [5.0, 2.0])).run(c.begin(), 7)
    assert [a.arrivals[0].client for a in acts][-2:] == [0, 1]


def test_tiers_by_hand():
    """Tiers {0, 1} and {2, 3} have rounds of 2 s and 20 s.

    Rounds of both end at 20 s. The slow tier's update is used first, because it started first.
    """
    _, acts = (c := of(Tiered(tiers=2, clients=2), [1.0, 2.0, 10.0, 20.0])).run(c.begin(), 12)
    assert [act.time for act in acts] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20, 22]
    assert [act.tier for act in acts] == [0] * 9 + [1, 0, 0]
    assert [a.client for a in acts[9].arrivals] == [2, 3] and [a.staleness for a in acts[9].arrivals] == [9, 9]
    assert [a.staleness for a in acts[10].arrivals] == [1, 1]


def test_tiers_are_by_speed_and_of_equal_size():
    c = clock(Tiered(tiers=3, clients=4), 11)
    order = [set(np.argsort(c.total)[part]) for part in (slice(0, 4), slice(4, 8), slice(8, 11))]
    assert [set(members) for members in c.members] == order
    _, acts = c.run(c.begin(), 50)
    for act in acts:
        clients = [a.client for a in act.arrivals]
        assert set(clients) <= order[act.tier] and len(set(clients)) == len(clients) == min(4, len(order[act.tier]))


@pytest.mark.parametrize("buffer", [1, 4])
def test_mean_staleness_is_concurrency_minus_one(buffer):
    """Each step increases the staleness of concurrency - 1 clients in flight by one, exactly."""
    state, acts = (c := clock(Buffered(concurrency=7, buffer=buffer))).run(c.begin(), 500)
    ages = sum(a.staleness for act in acts for a in act.arrivals) + int((state.version - state.in_flight[:, 3]).sum())
    assert ages == 6 * 500
    assert_array_equal(state.staleness, histogram([a.staleness for act in acts for a in act.arrivals]))


@pytest.mark.slow
def test_throughput_is_concurrency_over_mean_trip():
    """Renewal theory: 2,000 clients are drawn uniformly, 20 are in flight."""
    state, acts = (c := clock(Buffered(concurrency=20, buffer=10), 2000)).run(c.begin(), 2000)
    assert 20_000 / acts[-1].time == pytest.approx(20 / c.total.mean(), rel=0.03)


def test_clients_are_drawn_uniformly():
    """Identical devices start equally often: 40,000 starts of 100 clients, deviation below sqrt(400)."""
    _, acts = (c := of(Buffered(concurrency=10, buffer=10), [1.0] * 100)).run(c.begin(), 4000)
    counts = participations([s.client for act in acts for s in act.starts], 100)
    assert counts.sum() == 40_000 and np.abs(counts - 400).max() < 4.5 * 20


def test_the_free_places():
    busy = [0, 2, 3, 7]
    assert [free_rank(busy, rank) for rank in range(6)] == [1, 4, 5, 6, 8, 9]
    assert free_rank([], 3) == 3


HARD = {"dropout": 0.2, "jitter": 0.4}
CASES = {
    "fedasync": (Buffered(concurrency=8), {}),
    "fedbuff": (Buffered(concurrency=8, buffer=3), HARD),
    "stale": (Buffered(concurrency=8, buffer=3, max_staleness=2), HARD),
    "fedat": (Tiered(tiers=3, clients=4), HARD),
    "fedat, stale": (Tiered(tiers=3, clients=4, max_staleness=3), HARD),
    "away": (Buffered(concurrency=20, buffer=3), HARD | {"availability": Bernoulli(p=0.3, seconds=6)}),
    "tiers away": (
        Tiered(tiers=3, clients=6),
        HARD | {"availability": Diurnal(p=0.3, amplitude=0.3, seconds=6, day=60)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted_at_every_step(case):
    schedule, settings = CASES[case]
    whole = clock(schedule, **settings)
    end, acts = whole.run(whole.begin(), 60)
    state, again = clock(schedule, **settings).begin(), []
    for _ in range(60):
        state = unflatten(*flatten(state))
        state, act = clock(schedule, **settings).step(state)
        again.append(act)
    assert again == acts
    for (skeleton, tensors), (other, others) in [(flatten(end), flatten(state))]:
        assert skeleton == other and all(map(np.array_equal, tensors, others))


@pytest.mark.parametrize("case", CASES)
def test_every_start_ends_once(case):
    schedule, settings = CASES[case]
    c = clock(schedule, **settings)
    state, acts = c.run(c.begin(), 300)
    starts = {s.dispatch: s for act in acts for s in act.starts}
    came = [a for act in acts for a in (*act.arrivals, *act.discarded)]
    failed = [d for act in acts for d in act.failed]
    ended = [a.dispatch for a in came] + failed + state.in_flight[:, 0].tolist() + state.arrived[:, 0].tolist()
    assert sorted(ended) == sorted(starts) == list(range(state.dispatched))
    assert [act.version for act in acts] == list(range(300)) and all(x.time <= y.time for x, y in zip(acts, acts[1:]))
    assert all(starts[a.dispatch].client == a.client and starts[a.dispatch].version == a.version for a in came)
    assert all(a.staleness == act.version - a.version for act in acts for a in act.arrivals)
    assert state.failed == len(failed) and state.discarded == sum(len(act.discarded) for act in acts)
    bound = schedule.max_staleness
    if bound is not None:
        assert state.discarded and all(a.staleness <= bound for act in acts for a in act.arrivals)
        assert all(a.staleness > bound for act in acts for a in act.discarded)
    else:
        assert state.discarded == 0
    assert bool(failed) == bool(settings)


def test_nobody_is_under_way_twice_and_slots_are_kept():
    c = clock(Buffered(concurrency=8, buffer=3), **HARD)
    state = c.begin()
    for _ in range(200):
        state, _ = c.step(state)
        clients = state.in_flight[:, 2]
        assert len(set(clients)) == len(clients) == 7 and state.vacant.tolist() == [1]  # the step has freed one slot


@pytest.mark.slow
def test_who_starts_is_there_and_who_goes_away_fails():
    c = clock(CASES["away"][0], **CASES["away"][1])
    presence = c.system.presence
    state, acts = c.run(c.begin(), 300)
    starts = {s.dispatch: s for act in acts for s in act.starts}
    assert all(presence.at(np.array([s.client]), s.time)[0] for s in starts.values())
    for act in acts:
        last = act.arrivals[-1]
        assert presence.until(np.array([last.client]), starts[last.dispatch].time)[0] >= act.time


def test_a_slot_stays_free_until_a_client_is_present(tmp_path):
    """Two clients are present from 10 to 13 s and from 30 to 100 s of every 100 s; round trips take 4 s.

    So a client fails at 13 s, and the first step is at 34 s.
    """
    windows = {str(i): {"active": [10, 30], "inactive": [13, 100], "finish_time": 100} for i in range(2)}
    (tmp_path / "w.json").write_text(str(windows).replace("'", '"'))
    world = SimulatedSystem(0, Identical(ms_per_sample=1).draw(0, 2), Windows(path=str(tmp_path / "w.json")).draw(0, 2))
    c = Clock(Buffered(concurrency=2, buffer=2), world, Times(np.zeros(2), np.full(2, 4.0), np.zeros(2)))
    state, act = c.step(c.begin())
    assert act.time == 34 and len(act.failed) == 2 and [s.time for s in act.starts] == [10, 10, 30, 30]
    assert c.step(state)[1].time == 38


def test_starts_depend_on_the_seed_alone():
    one, two = (clock(Buffered(concurrency=8), seed=seed) for seed in (0, 1))
    assert [a.starts for a in one.run(one.begin(), 20)[1]] != [a.starts for a in two.run(two.begin(), 20)[1]]


def test_draws_continue_beyond_a_block():
    """The drop-out rate does not change with more starts than one block of draws."""
    state, _ = (c := clock(Buffered(concurrency=8), dropout=0.2)).run(c.begin(), 2 * BLOCK)
    assert state.failed / state.dispatched == pytest.approx(0.2, abs=4.5 * np.sqrt(0.16 / state.dispatched))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buffered(concurrency=0), "concurrency: 0 is not at least 1"),
        (lambda: Buffered(concurrency=2, buffer=0), "buffer: 0 is not at least 1"),
        (lambda: Buffered(concurrency=2, max_staleness=-1), "max_staleness: -1 is negative"),
        (lambda: Tiered(tiers=0, clients=1), "tiers: 0 is not at least 1"),
        (lambda: clock(Buffered(concurrency=51)), "concurrency: 51 is more than the population of 50"),
        (lambda: clock(Tiered(tiers=51, clients=1)), "tiers: 51 is more than the population of 50"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_the_docs_show_runs():
    exec(re.search(r"```python\n(.*?)```", DOCS, re.S)[1], {})
    written = parse(re.search(r"```yaml\n(.*?)```", DOCS, re.S)[1])
    builder = Builder()
    server = builder.value(written["server"], ServerMode, "server")
    world = builder.value(written["system"], System, "system").draw(0, 1000)
    cohort = np.arange(100)
    done = server.round(world, cohort, world.times(cohort, 500, 1e6, 1e6), start=0.0)
    assert 0 < done.included.sum() <= 80
