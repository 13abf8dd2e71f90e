"""The strategy's work after the last round: `Strategy.final`, an evaluation of its result, and a row of its own.

No commit contains this work. A run that is resumed with more rounds continues from the state after its last round.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fl.method.strategy import Strategy
from fl.simulation.agreement import check_finite
from fl.simulation.exchange import EMPTY_COHORT
from fl.simulation.requests import run_generator
from fl.simulation.totals import Row
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.simulation.simulation import Simulation


def run_final(run: Simulation) -> tuple[Any, Row | None]:
    """Let the strategy do its work after the last round, and evaluate its result.

    Returns:
        the strategy's state, and the row of metrics; None for the row if there was no work.
    """
    strategy = run.config.strategy
    if type(strategy).final is Strategy.final:
        return run.state, None
    start = time.perf_counter()
    with span("server", "final"):
        run.exchanges.begin(run.round, run.round, EMPTY_COHORT)
        generator = strategy.final(run.state, run.context(EMPTY_COHORT))
        state, metrics = run_generator(generator, run.exchanges, run.executor)
    if state is run.state and not metrics and not run.exchanges.index:
        return state, None
    check_finite(strategy, state, "final")
    row = {"round": run.round, "stage": "final", **run.exchanges.totals.summary(), **metrics}
    row |= run.evaluate(state, EMPTY_COHORT)
    row |= run.folder.ledger.totals(run.round)
    row["wall_seconds"] = time.perf_counter() - start
    return state, row
