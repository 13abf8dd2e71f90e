"""Synchronous rounds by hand: three clients of known speed, 100 samples, a million bytes in each direction.

client  download         compute  upload            total
0       0.1 + 0.5        1        0.1 + 1           2.7
1       0.1 + 0.5        2        0.1 + 2           4.7
2       0.1 + 0.1        10       0.1 + 0.1         10.4
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fl.system.availability import Availability, Bernoulli, Presence
from fl.system.devices import Devices, Identical, Lognormal
from fl.system.section import System
from fl.system.simulated_system import SimulatedSystem, Times
from fl.system.synchronous import OUTCOMES, Synchronous, fitting

CLIENTS = np.arange(3)
DEVICES = Devices(
    seconds_per_sample=np.array([0.01, 0.02, 0.1]),
    flops_per_second=np.array([1e9, 2e9, 4e9]),
    up_bytes_per_second=np.array([1e6, 5e5, 1e7]),
    down_bytes_per_second=np.array([2e6, 2e6, 1e7]),
    latency_seconds=np.full(3, 0.1),
    memory_bytes=np.array([1e6, 1e9, np.inf]),
    compute_watts=np.array([2.0, 3.0, np.nan]),
    radio_watts=np.array([1.0, 0.5, 1.0]),
    kind=np.zeros(3, np.int16),
)
WORLD = SimulatedSystem(0, DEVICES, Presence())
TIMES = WORLD.times(CLIENTS, 100, 1_000_000, 1_000_000)


def outcomes(round_) -> list[str]:
    return [OUTCOMES[f] for f in round_.outcome]


def went(round_) -> list[float]:
    return [round_.seconds, round_.download, round_.compute, round_.upload, round_.waiting]


@pytest.mark.parametrize(
    "least, seconds, included",
    [(None, 2.5, [1, 1, 0, 0]), (2, 2.5, [1, 1, 0, 0]), (3, 3, [1, 1, 1, 0]), (4, 10, [1, 1, 1, 1]), (9, 10, [1] * 4)],
)
def test_the_server_waits_beyond_the_deadline_for_the_least_number_of_updates(least, seconds, included):
    """Arrivals after 1, 2, 3 and 10 seconds, a deadline of 2.5."""
    times = Times(np.zeros(4), np.array([1.0, 2.0, 3.0, 10.0]), np.zeros(4))
    round_ = Synchronous(deadline_seconds=2.5, least=least).play(np.arange(4), times)
    assert round_.seconds == seconds
    assert_array_equal(round_.included, np.array(included, bool))
    assert outcomes(round_) == ["in" if used else "late" for used in included]
    assert_allclose(round_.spent, np.minimum([1, 2, 3, 10], seconds))
    assert round_.seconds == round_.compute + round_.waiting


def test_beyond_the_deadline_ties_go_to_the_smaller_id_and_lost_clients_are_not_waited_for():
    times = Times(np.zeros(4), np.array([3.0, 3.0, 1.0, 9.0]), np.zeros(4))
    tied = Synchronous(deadline_seconds=2, least=2, needed=2).play(np.array([7, 4, 5, 6]), times)
    assert (tied.seconds, outcomes(tied)) == (3, ["late", "in", "in", "late"])
    lost = Synchronous(deadline_seconds=2, least=3).play(
        np.arange(4), times, completes=np.array([1, 0.5, 1, 1]), away=np.array([np.inf, np.inf, np.inf, 8.0])
    )
    assert (lost.seconds, outcomes(lost)) == (8, ["in", "dropped", "in", "away"])  # nobody can arrive after 8


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"least": 2}, "least: without a deadline the server waits for all updates; set deadline_seconds"),
        ({"least": 2, "deadline_seconds": 1, "partial": True}, "least: with partial: true nothing arrives after"),
        ({"least": 3, "deadline_seconds": 1, "needed": 2}, "least: 3 is more than needed: 2"),
        ({"least": 0, "deadline_seconds": 1}, "least: 0 is not at least 1"),
    ],
)
def test_least_that_cannot_be_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Synchronous(**keys)


def test_times_by_hand():
    assert_allclose(TIMES.download, [0.6, 0.6, 0.2])
    assert_allclose(TIMES.compute, [1, 2, 10])
    assert_allclose(TIMES.upload, [1.1, 2.1, 0.2])
    assert_allclose(TIMES.total, [2.7, 4.7, 10.4])
    one = WORLD.times([2, 0], np.array([1, 50]), np.array([0, 2e6]), 0)
    assert_allclose(one.download, [0.1, 1.1])
    assert_allclose(one.compute, [0.1, 0.5])


def test_compute_from_flops():
    """100 samples of 2 * 10^7 FLOP at 1, 2, 4 * 10^9 FLOP per second."""
    world = replace(WORLD, compute="flops")
    assert_allclose(world.times(CLIENTS, 100, 0, 0, flops_per_sample=2e7).compute, [2, 1, 0.5])
    with pytest.raises(ValueError, match="flops_per_sample: nan is unknown"):
        world.times(CLIENTS, 100, 0, 0)


def test_memory():
    assert_array_equal(replace(WORLD, memory_bytes=1e7).able, [1, 2])


def test_no_deadline_waits_for_the_slowest():
    done = Synchronous().play(CLIENTS, TIMES, start=100.0)
    assert outcomes(done) == ["in"] * 3 and done.included.all()
    assert_allclose(went(done), [10.4, 0.2, 10, 0.2, 0], atol=1e-12)
    assert_allclose(done.spent, [2.7, 4.7, 10.4])


def test_a_deadline_cuts_the_straggler_off():
    done = Synchronous(deadline_seconds=5).play(CLIENTS, TIMES)
    assert outcomes(done) == ["in", "in", "late"]
    assert_allclose(went(done), [5, 0.6, 2, 2.1, 0.3])
    assert_allclose(done.spent, [2.7, 4.7, 5])
    assert_array_equal(Synchronous(deadline_seconds=11).play(CLIENTS, TIMES).included, True)
    assert Synchronous(deadline_seconds=11).play(CLIENTS, TIMES).seconds == TIMES.total[2]


def test_an_arrival_at_the_deadline_counts():
    assert outcomes(Synchronous(deadline_seconds=float(TIMES.total[1])).play(CLIENTS, TIMES)) == ["in", "in", "late"]


def test_the_first_of_an_over_selected_cohort():
    done = Synchronous(needed=1).play(CLIENTS, TIMES)
    assert outcomes(done) == ["in", "surplus", "surplus"]
    assert_allclose(went(done), [2.7, 0.6, 1, 1.1, 0], atol=1e-12)
    assert_allclose(done.spent, [2.7, 2.7, 2.7])
    few = Synchronous(needed=2, deadline_seconds=3).play(CLIENTS, TIMES)
    assert outcomes(few) == ["in", "late", "late"] and few.seconds == 3


def test_partial_work_fits_the_deadline():
    """Client 2 has 5.4 - 0.4 s for steps of 1 s. Client 1 ends exactly at 4.7 s; 0.3 s are too short for a step."""
    done = Synchronous(deadline_seconds=5.4, partial=True).play(CLIENTS, TIMES, steps=10)
    assert outcomes(done) == ["in"] * 3
    assert_array_equal(done.steps, [10, 10, 5])
    assert_allclose(went(done), [5.4, 0.2, 5, 0.2, 0], atol=1e-12)
    less = Synchronous(deadline_seconds=2.5, partial=True).play(CLIENTS, TIMES, steps=10)
    assert_array_equal(less.steps, [8, 0, 2])  # client 0: 2.5 - 1.7 = 0.8 s; client 1: none; client 2: 2.1 s
    assert outcomes(less) == ["in", "late", "in"]
    assert_allclose(less.spent, [2.5, 0, 2.4])
    assert_allclose(less.seconds, 2.5)


@given(st.integers(1, 50), st.floats(0.01, 20), st.floats(0, 1e6))
def test_partial_work_is_the_most_that_fits(steps, deadline, start):
    times, begin, limit = TIMES, np.full(3, start), start + deadline
    found = fitting(times, np.full(3, steps), begin, limit)
    for row in range(3):
        arrive = [
            start + (times.download[row] + times.compute[row] * (k / steps) + times.upload[row])
            for k in range(1, steps + 1)
        ]
        assert found[row] == sum(a <= limit for a in arrive)


def test_a_drop_out_in_mid_round():
    done = Synchronous().play(CLIENTS, TIMES, completes=np.array([1, 1, 0.25]))
    assert outcomes(done) == ["in", "in", "dropped"]
    assert_allclose(went(done), [4.7, 0.6, 2, 2.1, 0], atol=1e-12)  # client 2 stopped after 2.6 s
    assert_allclose(done.spent, [2.7, 4.7, 2.6])
    late = Synchronous().play(CLIENTS, TIMES, completes=np.array([1, 1, 0.75]))
    assert_allclose(went(late), [7.8, 0.6, 2, 2.1, 3.1])  # the failure is known only at 7.8 s
    cut = Synchronous(deadline_seconds=5).play(CLIENTS, TIMES, completes=np.array([1, 1, 0.75]))
    assert outcomes(cut) == ["in", "in", "late"]


def test_when_all_drop_out_the_round_is_waiting():
    done = Synchronous().play(CLIENTS, TIMES, completes=np.array([0.5, 0.5, 0.25]))
    assert not done.included.any() and not done.steps.any()
    assert_allclose(went(done), [2.6, 0, 0, 0, 2.6])


def test_clients_that_arrive_late_or_leave():
    """Client 0 becomes available at 3 s, client 1 leaves at 4 s, client 2 is never available."""
    ready, away = np.array([3.0, 0, np.inf]), np.array([np.inf, 4, np.inf])
    done = Synchronous().play(CLIENTS, TIMES, ready=ready, away=away)
    assert outcomes(done) == ["in", "away", "away"]
    assert_allclose(went(done), [5.7, 0.6, 1, 1.1, 3])
    assert_allclose(done.spent, [2.7, 4, 0])
    assert (
        outcomes(Synchronous().play(CLIENTS, TIMES, away=TIMES.total)) == ["in"] * 3
    )  # the client finishes exactly when it leaves


def test_nobody_in_the_cohort():
    done = Synchronous(deadline_seconds=5).play(CLIENTS[:0], TIMES[:0])
    assert went(done) == [0, 0, 0, 0, 0]


def test_ties_go_to_the_smaller_id():
    same = Times(*(np.ones(4) for _ in range(3)))
    done = Synchronous(needed=2).play(np.array([9, 4, 7, 5]), same)
    assert_array_equal(done.included, [False, True, False, True])


WORLDS = System(
    devices=Lognormal(ms_per_sample=10, up_mbps=8, down_mbps=8, sigma=1.0),
    availability=Bernoulli(p=0.7, seconds=5),
    dropout=0.2,
    jitter=0.3,
).draw(5, 100)
RULES = [
    Synchronous(),
    Synchronous(deadline_seconds=4),
    Synchronous(needed=10),
    Synchronous(deadline_seconds=4, needed=10, partial=True),
]


def played(rule, clients, round_, world=WORLDS):
    times = world.times(clients, 100, 500_000, 500_000, round_)
    return rule.round(world, clients, times, start=7.0 * round_, dispatch=round_, steps=20)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@given(st.randoms(use_true_random=False), st.integers(0, 30))
def test_the_order_in_which_a_cohort_is_listed_changes_nothing(rule, random, round_):
    clients = list(range(0, 100, 4))
    listed = played(rule, np.array(clients), round_)
    random.shuffle(clients)
    again, order = played(rule, np.array(clients), round_), np.argsort(clients)
    for name in ("included", "steps", "outcome", "spent"):
        assert_array_equal(getattr(again, name)[order], getattr(listed, name))
    assert went(again) == went(listed)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_holds_of_every_round(rule):
    clients, met = np.arange(60), set()
    for round_ in range(20):
        done = played(rule, clients, round_)
        met |= set(outcomes(done))
        parts = done.download + done.compute + done.upload + done.waiting
        assert parts == pytest.approx(done.seconds)
        assert_array_equal(done.included, done.outcome == 0)
        assert_array_equal(done.included, done.steps > 0)
        assert (done.spent <= done.seconds).all() and done.seconds <= (rule.deadline_seconds or np.inf)
        assert done.included.sum() <= (rule.needed or 60)
        assert_allclose(done.spent[done.included], done.times.total[done.included])
        row = done.metrics()
        assert row["simulated_seconds"] == done.seconds and sum(row[f"clients_{f}"] for f in OUTCOMES) == 60
    assert {"in", "dropped", "away"} <= met
    assert "late" not in met or rule.deadline_seconds
    assert "surplus" not in met or rule.needed


def test_drop_outs_have_their_probability_and_uniform_places():
    shares = np.concatenate([WORLDS.completes(np.arange(100), r) for r in range(100)])
    assert (shares < 1).mean() == pytest.approx(0.2, abs=4.5 * np.sqrt(0.16 / 10_000))
    dropped = shares[shares < 1]
    assert dropped.mean() == pytest.approx(0.5, abs=4.5 * np.sqrt(1 / 12 / len(dropped)))


def test_jitter_has_median_1_and_its_deviation():
    still = replace(WORLDS, jitter=0.0)
    factors = np.log(
        WORLDS.times(np.arange(100), 100, 1, 1, np.arange(100)[:, None]).compute
        / still.times(np.arange(100), 100, 1, 1).compute
    )
    assert factors.shape == (100, 100)
    assert factors.mean() == pytest.approx(0, abs=4.5 * 0.3 / 100) and factors.std() == pytest.approx(0.3, rel=0.05)


def test_a_clients_round_does_not_depend_on_the_population():
    system = System(
        devices=Lognormal(ms_per_sample=10), availability=Bernoulli(p=0.7, seconds=5), dropout=0.2, jitter=0.3
    )
    rows = [played(RULES[1], np.arange(20), 3, system.draw(0, population)) for population in (20, 500)]
    assert_array_equal(rows[0].spent, rows[1].spent)
    assert went(rows[0]) == went(rows[1])


def test_joules_by_hand():
    """Client 0 takes 2 W * 1 s + 1 W * 1.7 s; cut off after 1.1 s it takes 2 * 0.5 + 0.6.

    Client 1 cut off after 3.6 s takes 3 * 2 + 0.5 * 1.6.
    """
    assert_allclose(WORLD.joules([0, 0, 1], TIMES[np.array([0, 0, 1])], np.array([2.7, 1.1, 3.6])), [3.7, 1.6, 6.8])
    assert np.isnan(WORLD.joules([2], TIMES[np.array([2])], np.array([1.0])))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline_seconds": 0}, r"deadline_seconds: 0 is not in \(0, inf\)"),
        ({"needed": 0}, "needed: 0 is not at least 1"),
        ({"partial": True}, "partial: true needs a deadline; set deadline_seconds"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Synchronous(**settings)


def test_parts_of_the_base_say_what_is_missing():
    with pytest.raises(NotImplementedError):
        Availability().draw(0, 1)
    assert len(System(devices=Identical(ms_per_sample=1)).draw(0, 4)) == 4


def test_a_deadline_does_not_cut_work_outside_the_steps():
    """Of 10 s of compute 4 s are outside the 6 steps: 8.5 s allow 4 steps, which take 8 s; 4.9 s allow none."""
    times = Times(np.zeros(2), np.array([10.0, 10.0]), np.zeros(2))
    settings = {"steps": np.array([6, 6]), "extra": np.array([0.4, 0.4])}
    enough = Synchronous(deadline_seconds=8.5, partial=True).play(np.array([0, 1]), times, **settings)
    assert enough.steps.tolist() == [4, 4] and enough.times.compute.tolist() == pytest.approx([8.0, 8.0])
    short = Synchronous(deadline_seconds=4.9, partial=True).play(np.array([0, 1]), times, **settings)
    assert not short.included.any() and short.times.compute.tolist() == [0.0, 0.0]
    whole = Synchronous(deadline_seconds=10.0, partial=True).play(np.array([0, 1]), times, **settings)
    assert whole.steps.tolist() == [6, 6] and whole.times.compute.tolist() == [10.0, 10.0]
