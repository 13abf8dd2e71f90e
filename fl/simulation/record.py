"""What a run needs to continue: the record of a commit, beside the states of clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fl.errors import ConfigError

if TYPE_CHECKING:
    from fl.simulation.simulation import Simulation


def record_of(run: Simulation) -> Mapping[str, Any]:
    """Return the record of a run after its present round."""
    model = run.config.strategy.model(run.state)
    return {
        "round": run.round,
        "rounds": run.config.rounds,
        "state": run.state,
        # for readers that run no code of the run: the model, unless it is the state or its field `model`
        "model": None if model is run.state or model is getattr(run.state, "model", None) else model,
        "sampler": run.sampler,
        "exchanges": run.exchanges.record(),  # it may have clients train, so their states come after it
        "stopping": run.stopping.record(),
        "setup_done": run.setup_done,
        "accuracy_matrix": run.accuracy_matrix,
    }


def restore(run: Simulation, record: Mapping[str, Any]) -> None:
    """Have a run continue from a record.

    Raises:
        ConfigError: the run has done more rounds than the configuration asks for.
    """
    run.round, run.state, run.sampler = record["round"], record["state"], record["sampler"]
    run.setup_done, run.accuracy_matrix = record["setup_done"], record["accuracy_matrix"]
    run.exchanges.restore(record["exchanges"])
    run.stopping.restore(record["stopping"])
    if run.config.rounds < run.round:
        raise ConfigError("rounds", f"{run.config.rounds} is less than the {run.round} rounds done; rounds=+10 adds")
    if run.config.rounds > record["rounds"]:  # more rounds are asked for, whatever ended the run before
        run.stopping.reason = ""
