"""Which records of earlier exchanges the tasks of a dispatch read: states, carries, held updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fl.execution.dispatch import DispatchGroup, ExchangeDispatch
from fl.execution.evaluation import predicts_together
from fl.execution.submissions import Submission

if TYPE_CHECKING:
    from fl.execution.job import Job

STATES, SCRATCH = 0, 1  # places in `Job.stores`


def stored_records(job: Job, dispatch: ExchangeDispatch | DispatchGroup, tasks: np.ndarray) -> np.ndarray:
    """Return the records that some tasks read.

    Args:
        job: of the run.
        dispatch: the work.
        tasks: task numbers, (m,), ascending.

    Returns:
        int64 (n, 5): task, store (see `Job.stores`), segment, offset, length in bytes; tasks ascending.
    """
    if isinstance(dispatch, DispatchGroup):
        ends = dispatch.ends
        starts = ends - [one.tasks for one in dispatch.dispatches]
        found = []
        for one, start, end in zip(dispatch.dispatches, starts, ends):
            records = stored_records(job, one, tasks[(tasks >= start) & (tasks < end)] - start)
            records[:, 0] += start
            found.append(records)
        return np.concatenate(found)
    owners = np.arange(len(dispatch.cohort)) // dispatch.plan.chunk
    positions = np.flatnonzero(np.isin(owners, tasks))
    if dispatch.kind == "submit":
        assert dispatch.submissions is not None
        rows = [
            (owners[position], SCRATCH, *location)
            for position in positions.tolist()
            for location in _locations(dispatch.submissions[position])
        ]
        return np.array(rows, np.int64).reshape(-1, 5)
    nothing = dispatch.kind == "evaluate_server" or (dispatch.kind == "evaluate" and predicts_together(job, dispatch))
    if nothing:
        return np.empty((0, 5), np.int64)
    both = [
        np.column_stack([owners[positions], np.full(len(positions), store), locations[positions]])
        for store, locations in ((STATES, dispatch.states), (SCRATCH, dispatch.carries))
    ]
    records = np.concatenate(both).astype(np.int64)
    records = records[records[:, 2] >= 0]
    return records[np.argsort(records[:, 0], kind="stable")]


def _locations(submission: Submission | None) -> list[tuple[int, int, int]]:
    """Return where the tensors lie that a client sends."""
    if submission is None:
        return []
    attack = submission.attack or {}
    vectors = [vector for name, held in submission.groups.items() for vector in held.present(attack.get(name)).values()]
    return [vector.location for vector in vectors]
