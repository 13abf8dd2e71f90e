"""Run rounds with another plan and keep nothing of them: `fl tune` times plans this way."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from fl.execution.training.plan import Plan
from fl.simulation.simulation import Simulation, new_runner
from fl.simulation.stopping import Stopping
from fl.simulation.totals import Row


def rehearse(simulation: Simulation, rounds: Iterable[int], plan: Plan) -> list[Row]:
    """Run rounds from the simulation's present state with another plan, and return their metrics.

    The simulation stays as it is; only client states change.
    """
    trial = copy.copy(simulation)
    trial.run_setup = simulation.run_setup.with_plan(plan)
    trial.config = trial.run_setup.config
    trial.exchanges = new_runner(trial.run_setup, trial.executor, trial.states, trial.folder)
    trial.exchanges.restore(copy.deepcopy(simulation.exchanges.record()))
    trial.stopping, trial.pending, trial.accuracy_matrix = Stopping(trial.config), [], []
    try:
        for trial.round in rounds:
            trial.one_round()
    finally:
        simulation.folder.forget()
        simulation.states.commit()  # frees what many rehearsals would leave on disk
        simulation.states.sweep(1, 1)  # no commit needs them
    return trial.pending
