"""Availability: probabilities, times of changes, and traces in FedScale's format."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fl.system.availability import Always, Bernoulli, Diurnal
from fl.system.availability_trace import AvailabilityTrace
from fl.system.devices import Identical
from fl.system.section import System

IDS = np.arange(200)


def trace(folder, entries, **options):
    path = folder / "behave.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return AvailabilityTrace(path=str(path), **options)


def there(presence, client, time) -> bool:
    return bool(presence.at(np.array([client]), time)[0])


def test_always():
    presence = Always().draw(0, 3)
    assert presence.at(np.arange(3), 5.0).all() and np.isinf(presence.until(np.arange(3), 5.0)).all()


@pytest.mark.parametrize(
    "part", [Bernoulli(p=0.3, seconds=7.3), Diurnal(seconds=7.3, day=100.1)], ids=["bernoulli", "diurnal"]
)
@given(time=st.floats(0, 1e5))
def test_changes_come_when_they_are_announced(part, time):
    presence = part.draw(1, 200)
    now, change = presence.at(IDS, time), presence.until(IDS, time)
    assert (change > time).all() and np.isfinite(change).all()
    assert_array_equal(presence.at(IDS, change), ~now)
    assert_array_equal(presence.at(IDS, np.nextafter(change, 0)), now)
    for share in (0.1, 0.5, 0.9):
        assert_array_equal(presence.at(IDS, time + share * (change - time)), now)


def test_bernoulli_has_its_probability_and_forgets():
    presence = Bernoulli(p=0.3, seconds=10).draw(0, 10_000)
    ids = np.arange(10_000)
    one, two = presence.at(ids, 5.0), presence.at(ids, 15.0)
    assert_array_equal(presence.at(ids, 9.99), one)
    deviation = np.sqrt(0.3 * 0.7 / 10_000)
    assert one.mean() == pytest.approx(0.3, abs=4.5 * deviation)
    assert (one & two).mean() == pytest.approx(0.09, abs=4.5 * np.sqrt(0.09 * 0.91 / 10_000))


def test_bernoulli_stays_are_geometric():
    """An available client stays 1 / (1 - p) periods on average, counted from the start of the current one."""
    presence = Bernoulli(p=0.8, seconds=1.0).draw(0, 20_000)
    ids = np.flatnonzero(presence.at(np.arange(20_000), 0.0))
    assert presence.until(ids, 0.0).mean() == pytest.approx(5, abs=4.5 * np.sqrt(20) / np.sqrt(len(ids)))


def test_diurnal_follows_the_sun():
    """One time zone has p + amplitude sin(2 pi t / day); all zones together have p."""
    presence = Diurnal(p=0.5, amplitude=0.4, zones=1, seconds=3600).draw(0, 10_000)
    ids = np.arange(10_000)
    for hour, expected in ((0, 0.5), (3, 0.5 + 0.4 * np.sqrt(0.5)), (6, 0.9), (18, 0.1)):
        assert presence.at(ids, hour * 3600.0).mean() == pytest.approx(expected, abs=0.025)
    spread = Diurnal(p=0.5, amplitude=0.4, zones=24).draw(0, 10_000)
    assert spread.at(ids, 6 * 3600.0).mean() == pytest.approx(0.5, abs=0.025)


def test_neutral_settings():
    assert np.isinf(Bernoulli(p=1).draw(0, 5).until(np.arange(5), 0.0)).all()
    flat, plain = Diurnal(p=0.4, amplitude=0).draw(0, 200), Bernoulli(p=0.4).draw(0, 200)
    assert_array_equal(flat.at(IDS, 1e5), plain.at(IDS, 1e5))


@pytest.mark.parametrize("part", [Bernoulli(p=0.3), Diurnal()])
def test_presence_is_the_same_in_every_population(part):
    assert_array_equal(part.draw(2, 10).at(np.arange(10), 1e4), part.draw(2, 10_000).at(np.arange(10_000), 1e4)[:10])


# -- traces -----------------------------------------------------------------------------------------------------------
ENTRIES = {
    "12": {"duration": 30, "active": [10, 50], "inactive": [20, 70], "finish_time": 100, "model": "CPH1801"},
    "3": {"active": [0, 80], "inactive": [30, 100], "finish_time": 100},  # across the end of the cycle: 80 to 130
    "40": {"active": [0], "inactive": [60], "finish_time": 60},  # always present
    "41": {"active": [0, 25], "inactive": [25, 40], "finish_time": 50},  # one window in two parts
    "50": {"active": [20], "inactive": [50], "finish_time": 50},
}


def test_a_trace_by_hand(tmp_path):
    """Clients have the trace's ids in ascending order: 3, 12, 40, 41, 50."""
    presence = trace(tmp_path, ENTRIES).draw(0, 5)
    ids = np.arange(5)
    assert_array_equal(presence.at(ids, 0), [True, False, True, True, False])
    assert_array_equal(presence.until(ids, 0), [30, 10, np.inf, 40, 20])
    assert_array_equal(presence.at(ids, 30), [False, False, True, True, True])
    assert_array_equal(presence.until(ids, 30), [80, 50, np.inf, 40, 50])
    assert_array_equal(presence.at(ids, 80), [True, False, True, True, True])
    assert_array_equal(presence.until(ids, 80), [130, 110, np.inf, 90, 100])
    assert_array_equal(presence.at(ids, 1000 + 19.5), [True, True, True, True, False])
    assert_array_equal(presence.ready(ids, 71), [80, 110, 71, 71, 71])
    assert_array_equal(presence.at(np.array([1, 1]), np.array([10.0, 20.0])), [True, False])


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(sorted),
    st.booleans(),
    st.integers(1, 9),
    st.floats(0, 500),
)
def test_a_trace_is_its_windows(tmp_path_factory, marks, closes, rest, time):
    """Compared with a search through the windows of every cycle."""
    if len(marks) % 2:
        marks.append(marks[-1] + 1)
    finish = marks[-1] + (0 if closes else rest)
    active, inactive = marks[::2], marks[1::2]
    presence = trace(
        tmp_path_factory.mktemp("t"), {"0": {"active": active, "inactive": inactive, "finish_time": finish}}
    ).draw(0, 1)

    def brute(t):
        return any(
            a + k * finish <= t < i + k * finish for k in range(int(t / finish) + 2) for a, i in zip(active, inactive)
        )

    now, change = there(presence, 0, time), presence.until(np.array([0]), time)[0]
    assert now == brute(time)
    candidates = sorted({m + k * finish for k in range(int(time / finish) + 4) for m in marks})
    expected = next((m for m in candidates if m > time and brute(m) != now), np.inf)
    assert change == expected


def test_more_clients_than_entries(tmp_path):
    part = trace(tmp_path, ENTRIES)
    with pytest.raises(ValueError, match="has 5 entries for 6 clients; repeat: true starts again"):
        part.draw(0, 6)
    presence = trace(tmp_path, ENTRIES, repeat=True).draw(0, 12)
    assert_array_equal(presence.at(np.arange(12), 0)[[1, 6, 11]], [False, False, False])
    assert_allclose(presence.until(np.arange(12), 0)[[1, 6, 11]], 10)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"7": {"active": [1], "inactive": [5]}}, "client 7: finish_time None is not a number from 0"),
        ({"7": {"inactive": [5], "finish_time": 9}}, "client 7: active is missing"),
        ({"7": {"active": 3, "inactive": [5], "finish_time": 9}}, "client 7: active is not a list"),
        (
            {"7": {"active": [-1], "inactive": [5], "finish_time": 9}},
            r"client 7: active\[0\] -1 is not a number from 0",
        ),
        (
            {"7": {"active": [1, None], "inactive": [2, 5], "finish_time": 9}},
            r"client 7: active\[1\] None is not a number",
        ),
        ({"7": {"active": [1, 3], "inactive": [2], "finish_time": 9}}, "client 7: 2 active and 1 inactive times"),
        (
            {"7": {"active": [], "inactive": [], "finish_time": 9}},
            "client 7: 0 active and 0 inactive times; their numbers must be",
        ),
        (
            {"7": {"active": [5], "inactive": [5], "finish_time": 9}},
            r"client 7: inactive\[0\] 5 is not after active\[0\] 5",
        ),
        (
            {"7": {"active": [1, 3], "inactive": [4, 6], "finish_time": 9}},
            r"client 7: active\[1\] 3 is before inactive\[0\] 4",
        ),
        (
            {"7": {"active": [5, 1], "inactive": [6, 2], "finish_time": 9}},
            r"client 7: active\[1\] 1 is before inactive\[0\] 6",
        ),
        (
            {"7": {"active": [1], "inactive": [10], "finish_time": 9}},
            r"client 7: inactive\[0\] 10 is after finish_time 9",
        ),
        ({"7": [1, 2]}, r"client 7: \[1, 2\] is not an object with active, inactive and finish_time"),
        ({"seven": {}}, "'seven' is not a client id"),
        ([], "holds a list instead of an object"),
        ('{"1": 0, "1": 0}', "'1' occurs twice"),
    ],
)
def test_a_trace_with_holes_is_refused(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message) as error:
        trace(tmp_path, entries).draw(0, 1)
    assert str(error.value).startswith(f"path: {tmp_path}/behave.json")


def test_pickles_are_not_read():
    with pytest.raises(ValueError, match="client_behave_trace is not .json; docs/system.md shows how to convert"):
        AvailabilityTrace(path="client_behave_trace").draw(0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bernoulli(p=0), r"p: 0 is not in \(0, 1\]"),
        (lambda: Bernoulli(p=0.5, seconds=0), r"seconds: 0 is not in \(0, inf\)"),
        (lambda: Diurnal(p=0.8, amplitude=0.3), r"amplitude: 0.3 takes the probability 0.8 out of \[0, 1\]"),
        (lambda: Diurnal(zones=0), "zones: 0 is not at least 1"),
        (lambda: Diurnal(day=-1), r"day: -1 is not in \(0, inf\)"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_times_at_which_enough_clients_are_present(tmp_path):
    """At 0: ids 3, 40, 41. At 10 also 12; at 20 also 50 but not 12; at 30 no longer 3.

    Cycles last 100 and 50. All five are present at 110; 40 and 41 from 100 on.
    """
    world = System(devices=Identical(ms_per_sample=1), availability=trace(tmp_path, ENTRIES)).draw(0, 5)
    assert world.opens(3, 0.0) == 0 and world.opens(4, 0.0) == 10 and world.opens(6, 0.0) == np.inf
    assert_array_equal(world.available(10.0), [0, 1, 2, 3])
