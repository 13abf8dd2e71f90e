"""`executor: auto`: a pure function of settings, plan and machine."""

import pytest
import yaml

from fl.config.config import resolve
from fl.config.reading import read
from fl.execution.section import Execution
from fl.execution.workers.choose import Work, asked_for, choose
from fl.simulation.build import set_up_run
from fl.simulation.simulation import Simulation
from fl.simulation.workload import CORE_FLOPS, STEP_SECONDS, training_work

LITTLE, MUCH = Work(5.0, 10, 10), Work(100.0, 10, 10)  # seconds, rounds, clients at the same time
ONE_BY_ONE = Work(1000.0, 10, 1)


def chosen(plan="loop", work=LITTLE, cores=2, **settings):
    choice = choose(Execution(**settings), plan, lambda: work, lambda: cores)
    return choice.executor, choice.workers, choice.why


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"executor": "serial", "workers": 3, "work": MUCH}, ("serial", 3, "execution.executor: serial")),
        ({"executor": "ray", "workers": 3, "plan": "compiled"}, ("ray", 3, "execution.executor: ray")),
        ({"address": "auto", "workers": 3, "plan": "compiled"}, ("ray", 3, "execution.address needs Ray")),
        ({"client_timeout": 9.0, "workers": 3, "plan": "compiled"}, ("ray", 3, "execution.client_timeout needs Ray")),
        ({"plan": "compiled", "work": MUCH, "workers": 2}, ("serial", 2, "compiled training needs no processes")),
        ({"workers": 2}, ("ray", 2, "execution.workers: 2")),
        ({"workers": 1, "work": MUCH}, ("serial", 1, "execution.workers: 1")),
        ({"work": MUCH, "cores": 1}, ("serial", 1, "one core")),
        ({"work": LITTLE}, ("serial", 1, "too little training for processes")),
        ({"work": MUCH}, ("ray", 2, "saves about 50 s of training")),  # 100 s - 100 s / 2 - 10 rounds * 5 ms
        ({"work": MUCH, "cores": 4}, ("ray", 4, "saves about 75 s of training")),
        ({"work": ONE_BY_ONE, "cores": 4}, ("serial", 1, "too little training for processes")),
    ],
)
def test_auto(given, expected):
    assert chosen(**given) == expected


def test_ray_begins_to_start_before_the_plan_is_known_where_the_settings_ask_for_it():
    assert asked_for(Execution()) is None and asked_for(Execution(workers=2)) is None
    assert asked_for(Execution(executor="ray", workers=2)).executor == "ray"
    assert asked_for(Execution(address="auto", workers=2)).executor == "ray"


CONFIG = {
    "rounds": 4,
    "data": {"name": "noise", "clients": 6, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.0},
    "model": "softmax",
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"batch": 5, "epochs": 2},
}


def test_the_work_of_a_run_is_estimated():
    """3 clients x 4 rounds; each takes 2 epochs of 4 batches of 5 samples; z = W x costs 2 * inputs * outputs FLOPs."""
    run_setup = set_up_run(resolve(CONFIG | {"execution": {"plan": "loop"}}))
    outputs, inputs = next(p.shape for p in run_setup.module.parameters() if p.ndim == 2)
    expected = 3 * 4 * (8 * STEP_SECONDS + 40 * 3 * 2 * inputs * outputs / CORE_FLOPS)
    work = training_work(run_setup)
    assert work.seconds == pytest.approx(expected)
    assert (work.rounds, work.parallel) == (4, 3)


def test_a_run_says_where_it_trains_and_keeps_auto(tmp_path):
    """A resumed run may be on another machine, so config.yaml holds `auto` and not the choice."""
    with Simulation(resolve(read(CONFIG, {"execution.plan": "loop"})), tmp_path / "loop") as simulation:
        assert "training loop in this process (" in simulation.headline
    with Simulation(resolve(read(CONFIG, {"execution.workers": 2})), tmp_path / "compiled") as simulation:
        assert "in 2 threads of this process (compiled training needs no processes)" in simulation.headline
    written = yaml.safe_load((tmp_path / "compiled" / "config.yaml").read_text())
    assert written["execution"]["executor"] == "auto"
