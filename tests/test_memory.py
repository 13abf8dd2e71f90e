"""Memory is flat: a ten times larger cohort costs driver and workers nothing, a million idle clients only their rows.

Each run that measures has its own process, because a peak (VmHWM) never falls. Workers report their peak after the
last round.
"""

import collections
import gc
import json

import pytest
from torch import Tensor

import fl
from experiments.benchmarks.recommendation import measure_in_process, settings
from tests.process import python

MB = 1 << 20

PROBE = """
import json, tempfile, time
start = time.perf_counter()
import fl

def peak(process):
    lines = open(f"/proc/{process}/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

found = {}

class Watch(fl.Callback):
    def start(self, run):
        self.run = run

    def round(self, row):
        found.setdefault("first_round_seconds", time.perf_counter() - start)
        found["workers"] = [peak(m.pid) for m in getattr(self.run.executor, "members", [])]
        found["driver"] = peak("self")

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fl.run(CONFIG, out=folder, callbacks=[Watch()])
    print(json.dumps(found))
"""


def probe(executor, data, model, cohort, rounds):
    """Return the peak bytes of driver and workers, and the seconds from the start to the end of the first round."""
    config = {
        "rounds": rounds,
        "data": {"name": "noise", **data},
        "partition": "natural",
        "splits": {"val": 0.0, "test": 0.0},
        "model": model,
        "cohort": {"size": cohort},
        "strategy": "fedavg",
        "client": {"batch": 20, "lr": 0.01},
        "execution": {"executor": executor, "workers": 2},
    }
    done = python(PROBE.replace("CONFIG", repr(config)))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_larger_cohort_costs_no_memory(executor):
    data = {"shape": [784], "classes": 62, "clients": 1000, "samples": 5}
    small, large = (probe(executor, data, {"name": "mlp", "hidden": [200, 200]}, cohort, 3) for cohort in (100, 1000))
    pairs = [
        (small["driver"], large["driver"]),
        *zip(sorted(small.get("workers", [])), sorted(large.get("workers", []))),
    ]
    growth = [after - before for before, after in pairs]
    print(f"{executor}: peaks {[(a // MB, b // MB) for a, b in pairs]} MB, growth {[g // MB for g in growth]} MB")
    assert len(pairs) == (3 if executor == "ray" else 1)
    assert max(growth) < 50 * MB  # the updates of 900 more clients are 720 MB


@pytest.mark.slow
def test_a_million_clients_cost_their_rows():
    few, many, samples, features = 1000, 1_000_000, 3, 10
    data = {"shape": [features], "classes": 10, "samples": samples}
    small, large = (probe("serial", data | {"clients": n}, "softmax", 100, 1) for n in (few, many))
    # x, y, client and index per row; an offset and two counts of held-out rows per client
    needed = (many - few) * (samples * (4 * features + 3 * 8) + 3 * 8)
    growth = large["driver"] - small["driver"]
    print(f"first round after {large['first_round_seconds']:.1f} s, growth {growth // MB} MB, arrays {needed // MB} MB")
    assert growth < 3 * needed  # sorting makes temporary copies


@pytest.mark.ray
def test_users_with_states_cost_no_memory():
    """Each user keeps a table of its own on disk; memory stays from the sixth of 50 rounds to the last."""
    found = measure_in_process(1000, 2, "fedrap")
    assert max(found["driver"]) - found["driver"][5] < 20 * MB
    assert max(found["workers"]) - found["workers"][5] < 20 * MB
    assert found["disk"] < 1000 * 2 * 10**4  # 100,000 such users take less than 2 GB


# -- reference cycles -------------------------------------------------------------------------------------------------
SMALL = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 8, "samples": 6},
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": "softmax",
    "cohort": {"size": 6},
    "strategy": "fedavg",
    "client": {"batch": 3, "lr": 0.1},
    "evaluation": {"every": 1, "clients": 6},
    "execution": {"executor": "serial"},
}
LOOP = {"execution": {"executor": "serial", "plan": "loop"}}
RUNS = {
    "batched": {},
    "loop": LOOP,
    "batched, with states": {"strategy": "scaffold"},
    "loop, with states": {"strategy": "scaffold", **LOOP},
    "batched, with residuals": {"codec": {"up": {"name": "top_k", "ratio": 0.5}}},
    "loop, with residuals": {"codec": {"up": {"name": "top_k", "ratio": 0.5}}, **LOOP},
    "differences": {"codec": {"down": ["delta", "fp16"]}, **LOOP},
    "attackers": {"adversary": {"name": "sign_flip", "share": 0.4}},
    "per client": {"strategy": "median"},
    "own models": {"strategy": "ditto"},
}


def begin_to_watch():
    """Keep Python from looking for reference cycles, and leave out the objects that exist already."""
    gc.collect()
    gc.freeze()
    gc.disable()


def end_watching():
    """Return how many tensors and objects of this project were only held by reference cycles, by type or function."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    gc.enable()
    gc.unfreeze()
    held = [o for o in gc.garbage if isinstance(o, Tensor) or getattr(o, "__module__", "").startswith("fl.")]
    found = collections.Counter(getattr(o, "__qualname__", type(o).__qualname__) for o in held)
    gc.garbage.clear()
    return dict(found)


def left_by(config, folder):
    """Run a configuration; return what its process, or one of its workers, left in reference cycles."""
    found = []

    class Watch(fl.Callback):
        rounds = 0

        def start(self, run):
            self.call = run.executor.call

        def ready(self, run):
            self.call(begin_to_watch)

        def round(self, row):
            self.rounds += 1
            if self.rounds == config["rounds"]:
                found.append(self.call(end_watching))

    fl.run(config, out=folder, callbacks=[Watch()])
    return found


@pytest.mark.parametrize("name", RUNS)
def test_rounds_leave_no_reference_cycles(name, tmp_path):
    """Python looks for cycles so seldom that a worker would keep the records of all clients of many rounds."""
    assert left_by(SMALL | RUNS[name], tmp_path) == [{}]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.ray)], ids=["serial", "ray"])
def test_users_with_states_leave_no_reference_cycles(workers, tmp_path):
    assert left_by(settings(200, workers, "fedrap") | {"rounds": 3}, tmp_path) == [{}]


def test_a_reference_cycle_is_found_out():
    begin_to_watch()
    counter = Leaks()
    del counter
    assert end_watching() == {"Leaks": 1}


class Leaks:
    """An object that refers to itself."""

    __module__ = "fl.leaks"

    def __init__(self):
        self.own = self
