"""Profiles: each part's time is in the right category, categories add up, and results do not change.

The parts of this run sleep for known times. Each category must hold at least its own sleep, and all categories add up
to the wall time of all processes.
"""

import json
import time
from dataclasses import dataclass

import pytest

import fl
from fl.data.augment import Augment
from fl.method.local_training import LocalTraining
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.method.transform import Transform
from fl.tracking import spans
from fl.tracking.profile import Profile, seconds_of_round
from fl.tracking.spans import CATEGORIES, OutermostSpan, Span, SpanRecord, WorkerRecord

COHORT, ROUNDS, STEPS, NAP = 3, 2, 2, 0.01
MANY = {"data": 4, "compute": 5, "encode": 2, "reduce": 3, "evaluate": 2, "server": 6}  # number of sleeps


def nap(category):
    time.sleep(MANY[category] * NAP)


@dataclass(frozen=True)
class SlowMean(WeightedMean):
    def lift(self, value, meta):
        nap("reduce")
        return super().lift(value, meta)


@dataclass(frozen=True, kw_only=True)
class Slow(Strategy):
    client = "test_profile.py:Sleeper"

    def reduction(self, state, ctx):
        return SlowMean()

    def step(self, state, mean, ctx):
        nap("server")
        return state + mean, {}


@dataclass(frozen=True, kw_only=True)
class Sleeper(LocalTraining):
    def finish(self, end):
        nap("compute")
        return super().finish(end)

    def predictor(self, ctx):
        nap("evaluate")
        return super().predictor(ctx)


@dataclass(frozen=True)
class SlowTransform(Transform):
    def client(self, groups, ctx):
        nap("encode")
        return groups


@dataclass(frozen=True)
class SlowAugment(Augment):
    def apply(self, x, words):
        nap("data")
        return x


def config(**execution):
    return {
        "rounds": ROUNDS,
        "data": {"name": "noise", "shape": [6], "classes": 3, "clients": COHORT, "samples": 8}
        | {"augment": [f"{__file__}:SlowAugment"]},
        "partition": "natural",
        "splits": {"val": 0.25},
        "model": "softmax",
        "cohort": {"size": COHORT},
        "strategy": f"{__file__}:Slow",
        "client": {"steps": STEPS, "batch": 4},
        "transforms": [f"{__file__}:SlowTransform"],
        "execution": {"plan": "loop", **execution},
    }


def profiled(out, **execution):
    """Return (result of the run, profile.json, trace.json)."""
    with Profile() as profile:
        result = fl.run(config(**execution), out=out, callbacks=[profile])
    return result, *(json.loads((out / file).read_text()) for file in ("profile.json", "trace.json"))


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return profiled(tmp_path_factory.mktemp("serial"), executor="serial")


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    return profiled(tmp_path_factory.mktemp("ray"), executor="ray", workers=2)


def of_a_round():
    """Return a lower bound in seconds for each category in a round, from the number of sleeps of each part."""
    times = {"data": COHORT * STEPS, "server": 1}
    return {name: naps * NAP * times.get(name, COHORT) for name, naps in MANY.items()}


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_categories_hold_what_slept_and_add_up(executor, request):
    result, found, _ = request.getfixturevalue(executor)
    assert [row["round"] for row in found["rounds"]] == list(range(ROUNDS))
    for row, told in zip(found["rounds"], result.metrics):
        assert row["wall_seconds"] >= told["wall_seconds"]  # the profile's time includes the commit
        assert row["processes"] == {"serial": 1, "ray": 3}[executor]
        assert sum(row["seconds"].values()) == pytest.approx(row["processes"] * row["wall_seconds"])
        assert sum(row["driver"].values()) == pytest.approx(row["wall_seconds"])
        for name, least in of_a_round().items():
            assert row["seconds"][name] >= least, name
    total = found["total"]
    assert sum(total["shares"].values()) == pytest.approx(1) and "waits" not in total["shares"]
    assert total["seconds"]["data"] == pytest.approx(sum(row["seconds"]["data"] for row in found["rounds"]))


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_spans_nest_on_a_track_for_each_process(executor, request):
    _, found, trace = request.getfixturevalue(executor)
    names = {event["pid"]: event["args"]["name"] for event in trace if event["ph"] == "M"}
    assert [name.split()[0] for name in names.values()] == {
        "serial": ["driver"],
        "ray": ["driver", "worker", "worker"],
    }[executor]
    timed = [event for event in trace if event["ph"] == "X"]
    assert len(timed) + len(names) == len(trace)
    for event in timed:
        assert {"ph", "name", "cat", "ts", "dur", "pid", "tid"} <= event.keys()
        assert event["cat"] in CATEGORIES and event["ts"] >= 0 and event["dur"] >= 0
    for pid in names:
        open_ = []
        for event in sorted((e for e in timed if e["pid"] == pid), key=lambda e: (e["ts"], -e["dur"])):
            while open_ and open_[-1] <= event["ts"] + 1e-3:  # microseconds, with a tolerance of a nanosecond
                open_.pop()
            assert not open_ or event["ts"] + event["dur"] <= open_[-1] + 1e-3
            open_.append(event["ts"] + event["dur"])
    rounds = [event for event in timed if event["name"] == "round"]
    assert [event["args"]["number"] for event in rounds] == list(range(ROUNDS))
    for event, row in zip(rounds, found["rounds"]):
        assert event["dur"] == pytest.approx(1e6 * row["wall_seconds"])


def test_of_a_round_little_is_outside_the_spans_within_it(serial):
    _, _, trace = serial
    timed = [event for event in trace if event["ph"] == "X"]
    for whole in (event for event in timed if event["name"] == "round"):
        end, covered = whole["ts"], 0.0
        for event in sorted(timed, key=lambda e: e["ts"]):
            if (
                whole["ts"] <= event["ts"]
                and event is not whole
                and event["ts"] + event["dur"] <= whole["ts"] + whole["dur"]
            ):
                covered += max(0.0, event["ts"] + event["dur"] - max(end, event["ts"]))
                end = max(end, event["ts"] + event["dur"])
        assert covered >= 0.95 * whole["dur"]


@pytest.mark.slow
def test_the_same_bits_with_and_without(serial, ray, tmp_path):
    plain = fl.run(config(executor="serial"), out=tmp_path)
    assert not spans.recording() and not (tmp_path / "profile.json").exists()
    assert plain.digest == serial[0].digest == ray[0].digest
    assert plain.ledger.equals(serial[0].ledger) and plain.ledger.equals(ray[0].ledger)


def test_a_round_by_hand():
    """The round lasts from 0 to 10. Requests are sent at 1 and 2; a works 2..5, b works 4..7; the driver waits 3..9.

    driver: waits 3..7, transfer 7..9, server 0..3 and 9..10;   7..9, the way back, is transfer for both workers, too
    a: 1..2 transfer, 2..5 compute, 7..9 transfer, rest idle;   b: 2..4 transfer, 4..7 compute, 7..9 transfer, rest idle
    """
    whole = OutermostSpan(Span("server", "round", 0, 0.0, 10.0), {"server": 4.0, "waits": 6.0})
    answers = [
        WorkerRecord(
            name, asked, SpanRecord([OutermostSpan(Span("compute", "call", None, begin, 3.0), {"compute": 3.0})], [], 0)
        )
        for name, asked, begin in (("a", 1.0, 2.0), ("b", 2.0, 4.0))
    ]
    driver, workers = seconds_of_round(whole, [Span("waits", "workers", None, 3.0, 6.0)], answers)
    assert driver == {"server": 4.0, "waits": 4.0, "transfer": 2.0}
    assert workers["a"] == {"transfer": 3.0, "compute": 3.0, "idle": 4.0}
    assert workers["b"] == {"transfer": 4.0, "compute": 3.0, "idle": 3.0}


def test_a_far_clock_is_compared_when_the_way_is_shortest():
    """The remote clock is 100 s ahead. Messages take 3 + 1, 1 + 1, 4 + 0 s; the second round trip gives exactly 100."""
    now, ways = [0.0], iter([(3, 1), (1, 1), (4, 0), (5, 5), (2, 4)])

    def ask():
        there, back = next(ways)
        now[0] += there
        read = now[0] + 100
        now[0] += back
        return read

    assert spans.clock_shift(ask, lambda: now[0]) == -100


def test_what_is_not_recorded_is_as_it_was():
    items = [1, 2]
    assert (
        spans.timed_items("data", "x", items) is items
        and spans.timed_calls("data", "x", len) is len
        and spans.take_record() is None
    )
