"""What is kept of a client from round to round: the method's state, and beside it the engine's.

    {"method": the client algorithm's state,
     "residuals": group -> error of the codec, to add to the next update,
     "last_received": group -> value to which the next difference is added,
     "optimiser": memory of the client's optimisers, by phase,
     "statistics": running statistics of batch normalisation}

Without any engine state the record is the method's state alone (`Job.has_engine_state`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl.communication.codecs.error_feedback import Residuals
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.execution.job import Job


def method_state(job: Job, record: Tree) -> Tree:
    """Return the client algorithm's part of a record."""
    return record.get("method") if job.has_engine_state and record is not None else record


def residuals_of(record: Tree, group: str) -> Any:
    """Return what the codec lost of a group in earlier rounds, `None` if nothing is known."""
    return None if record is None else record.get("residuals", {}).get(group)


def last_received(record: Tree) -> Mapping[str, Tree]:
    """Return the groups that the client last received, by name."""
    return (record or {}).get("last_received", {})


def new_record(job: Job, previous: Tree, method: Tree, engine: Mapping[str, Tree]) -> Tree:
    """Return the record after a participation, `None` if nothing is kept.

    Args:
        job: tells whether the engine keeps anything.
        previous: the record before.
        method: the method's new state; `None` keeps the one before.
        engine: the engine's new entries; residuals of other groups stay.
    """
    if not job.has_engine_state:
        return method
    record = {**(previous or {}), **engine}
    if "residuals" in engine:
        record["residuals"] = {**(previous or {}).get("residuals", {}), **engine["residuals"]}
    return record if method is None else {**record, "method": method}


def same_entries(previous: Sequence[Tree], method: Tree, residuals: Mapping[str, Residuals]) -> bool:
    """Whether all clients keep exactly `method` and `residuals` from now on: their records can be written at once."""
    fresh = {"method", "residuals"} if method is not None else {"residuals"}
    return all(p is None or (set(p) <= fresh and set(p["residuals"]) <= set(residuals)) for p in previous)
