"""Same bits: serial, Ray with one and two workers, after a worker or the driver is killed; nodes: test_nodes.py.

Five methods cover the cases: FedAvg (sums), SCAFFOLD (client states), trimmed mean (collects all updates), a toy with
three exchanges and carries, and private SCAFFOLD (noise, a bound that adapts). The final models' digests must be
equal, and metrics and ledgers, too.
"""

import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import fl
from fl.execution.workers.ray_pool import keep_workers
from tests.process import start
from tests.watching import AfterRound

TOYS = Path(__file__).parent.parent / "toys.py"
METHODS = {
    "fedavg": {"strategy": "fedavg"},
    "scaffold": {"strategy": "scaffold"},
    "trimmed_mean": {"strategy": {"name": "trimmed_mean", "beta": 0.2}},
    "three_exchanges": {"strategy": f"{TOYS}:ThreeExchanges"},
}
PRIVACY = {
    "sampling": {"rate": 0.2},
    "clipping": {"adaptive": {"sigma_b": 2.0}},
    "noise_multiplier": 1.0,
    "delta": 1e-3,
}
METHODS["private"] = {"strategy": "scaffold", "cohort": None, "privacy": PRIVACY}
WORKERS_STAY = False
ROUNDS = 14  # two more than the last round that a killer waits for
KILLS = 4


def config(method: str, **more) -> dict:
    return {
        "rounds": ROUNDS,
        "data": "digits",
        "partition": {"name": "dirichlet", "clients": 40, "alpha": 0.3, "min_size": 4},
        "splits": {"val": 0.1, "test": 0.1},
        "model": {"name": "mlp", "hidden": [32], "dropout": 0.2},
        "cohort": {"size": 11},
        "client": {"epochs": 2, "batch": 8, "lr": 0.1},
        "evaluation": {"every": 5},
        "execution": {"executor": "serial", "chunk": 2},
        **METHODS[method],
        **more,
    }


pytestmark = pytest.mark.ray  # share one cluster and the serial runs
TIMES = ("wall_seconds", "busy_seconds", "server_seconds", "retried")


def facts(result) -> tuple:
    """Return all results of a run that must not depend on the executor."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in result.metrics]
    return result.digest, json.dumps(rows), result.ledger.to_pylist()


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Return a function: method -> its run with the serial executor, performed at the first request."""
    folder = tmp_path_factory.mktemp("serial")
    return functools.cache(lambda method: fl.run(config(method), out=folder / method))


@pytest.fixture(scope="module")
def ray():
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    with keep_workers():
        yield
    ray.shutdown()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("method", [m if m == "scaffold" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_ray_equals_serial(method, workers, serial, ray, tmp_path):
    result = fl.run(config(method), out=tmp_path / "run", **{"execution.executor": "ray", "execution.workers": workers})
    assert facts(result) == facts(serial(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_workers_change_nothing(method, serial, ray, tmp_path):
    """Both workers are killed in turn while they train; their clients run again elsewhere."""
    # the simulation's own processes, real signals: the killer waits a little after each round begins
    result, killed = _run_and_kill_workers(config(method), tmp_path / "run", kills=2)
    assert killed == 2
    assert facts(result) == facts(serial(method))


def _run_and_kill_workers(raw, out, kills):
    from fl.config.config import resolve
    from fl.config.reading import read
    from fl.simulation.simulation import Simulation

    done = []
    with Simulation(resolve(read(raw, {"execution.executor": "ray", "execution.workers": 2})), out) as simulation:

        def kill():
            members = simulation.executor.members
            victim = members[len(done) % len(members)]
            time.sleep(0.02)  # kill in the middle of the exchange
            os.kill(victim.pid, signal.SIGKILL)
            done.append(victim)

        killers = []

        def begin_to_kill(row):
            if row["round"] in (2, 9) and len(killers) < kills:
                killers.append(threading.Thread(target=kill))
                killers[-1].start()
            elif killers and row["round"] in (5, 12):
                killers[-1].join()  # wait for the killer, so that rounds remain after it

        return simulation.run([AfterRound(begin_to_kill)]), len(done)


DRIVER = """
import os, random, signal, sys
import fl

calls = random.Random({attempt}).randrange({most})

def count(frame, event, argument):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)

class Count(fl.Callback):
    def round(self, row):
        if {kills}:
            sys.setprofile(count)

{start}
"""
CALLS = 40_000  # Python function calls, more than in a round and its commit


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_driver_resumes_to_the_same_bits(method, serial, tmp_path):
    """kill -9 ends the driver at random function calls after its first commit; resume until the run ends."""
    out = tmp_path / "run"
    for attempt in range(KILLS + 1):
        begin = (
            f"fl.resume({str(out)!r}, callbacks=[Count()])"
            if attempt
            else f"fl.run({config(method)}, out={str(out)!r}, callbacks=[Count()])"
        )
        process = start(DRIVER.format(attempt=attempt, most=CALLS, kills=attempt < KILLS, start=begin))
        process.join()
        assert process.exitcode == (-signal.SIGKILL if attempt < KILLS else 0)
    result = fl.resume(out)  # already finished: nothing to do, and nothing changes
    assert facts(result) == facts(serial(method))


def test_a_run_may_be_prolonged(serial, tmp_path):
    """Half of the rounds and then the other half equal all rounds."""
    fl.run(config("scaffold", rounds=ROUNDS // 2), out=tmp_path / "run")
    result = fl.resume(tmp_path / "run", rounds=f"+{ROUNDS // 2}")
    assert result.digest == serial("scaffold").digest


def test_what_ended_a_run_keeps_it_ended(tmp_path):
    """A target reached in round 0: resuming adds nothing, more rounds continue the run, the start time is kept."""
    whole = config("fedavg", rounds=2, stop={"target": {"train/loss": 100.0}})
    first = fl.run(whole, out=tmp_path / "run")
    began = (tmp_path / "run" / "environment.json").read_text()
    again = fl.resume(tmp_path / "run")
    assert (len(first.metrics), len(again.metrics), again.digest) == (1, 1, first.digest)
    assert len(fl.resume(tmp_path / "run", rounds="+1").metrics) == 2
    assert (tmp_path / "run" / "environment.json").read_text() == began
