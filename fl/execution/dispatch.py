"""Work that is sent to workers, and what comes back.

ExchangeDispatch -> tasks (chunks of cohort positions) ~~> workers ~~> PartialResults -> DispatchResult
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fl.data.partition import ViewName
from fl.errors import ClientError
from fl.execution.columns import Columns
from fl.execution.training.plan import Plan
from fl.method.fold import Fold
from fl.method.messages import Broadcast
from fl.method.reduction import Reduction
from fl.tensors.trees import tree_map
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.execution.submissions import Submission


@dataclass
class PartialResult:
    """One worker's share of a result: nodes of the reduction tree by (level, index), columns by cohort position."""

    nodes: dict[tuple[int, int], Any]
    columns: Columns
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0  # of work


@dataclass
class DispatchResult:
    """The reduced value of a dispatch, and its columns by cohort position."""

    value: Any
    columns: Columns
    errors: list[str] = field(default_factory=list)
    busy_seconds: float = 0.0  # of work, summed over workers
    retried: int = 0  # clients that ran again because a worker died


@dataclass(frozen=True)
class ExchangeDispatch:
    """One exchange, or one evaluation, as workers need it. Columns are by cohort position, (n, ...).

    Attributes:
        kind: client work, an evaluation on clients, or an evaluation on the server's data; "submit": the second stage
            of client work with attackers, which reduces what the first stage held.
        work: what clients do; for evaluations which model: received, trained or adapted.
        round: the round, from 0.
        period: the stream's learning problem, the present one or the one that is evaluated.
        number: the dispatch's number in the run, the `participation` in addresses of randomness.
        cohort: client ids, largest first; block numbers for the server's data.
        broadcast: shared and static groups, decoded.
        reduction: how updates become one value.
        plan: how clients train.
        states: where each client's state lies, (n, 3).
        carries: where each client's carry from the round's earlier exchanges lies, (n, 3).
        cost: expected work in any unit, (n,).
        skeleton: a module in place of the run's.
        pin: whether each client stays with one worker through the round.
        split: which rows of each client to evaluate on.
        rows: evaluate on these rows of the server's data instead.
        limits: maximum number of local steps of each client, (n,); set when a deadline cuts training short.
        original: the broadcast before the codec, for executors that encode it themselves.
        attackers: whether each client is an attacker, (n,), in the first stage; None: updates are reduced at once.
        submissions: what each client sends in the second stage, by cohort position; None for a dropped client.
        room: free space for each client's new state, (n, 3), see `ClientStates.room`; None: states are appended.
    """

    kind: Literal["work", "evaluate", "evaluate_server", "submit"]
    work: str
    round: int
    period: int
    number: int
    cohort: np.ndarray
    broadcast: Broadcast
    reduction: Reduction
    plan: Plan
    states: np.ndarray
    carries: np.ndarray
    cost: np.ndarray
    skeleton: torch.nn.Module | None = None
    pin: bool = False
    split: ViewName = "test"
    rows: np.ndarray | None = None
    limits: np.ndarray | None = None
    original: Broadcast | None = None
    attackers: np.ndarray | None = None
    submissions: Sequence[Submission | None] | None = None
    room: np.ndarray | None = None

    @property
    def threaded(self) -> bool:
        """Whether threads may work at once: compiled training shares nothing and releases the interpreter's lock."""
        return self.kind == "work" and self.plan.kind == "compiled"

    @property
    def tasks(self) -> int:
        """Number of tasks; each is a chunk of positions."""
        return -(-len(self.cohort) // self.plan.chunk)

    def costs(self) -> np.ndarray:
        """Return the expected work of each task, (tasks,)."""
        edges = np.arange(0, len(self.cohort), self.plan.chunk)
        return np.add.reduceat(self.cost.astype(np.float64), edges)

    def at(self, task: int) -> tuple[int, ExchangeDispatch, int]:
        """Return where a task belongs: (index of the dispatch, the dispatch, the task's number in it)."""
        return 0, self, task

    def positions(self, task: int) -> np.ndarray:
        """Return the cohort positions of a task."""
        first = task * self.plan.chunk
        return np.arange(first, min(first + self.plan.chunk, len(self.cohort)))

    def partial_result(self, parts: Mapping[int, PartialResult]) -> PartialResult:
        """Return a worker's answer, from its parts by index of the dispatch."""
        return parts.get(0) or PartialResult({}, Columns())

    def clients(self, task: int) -> int:
        """Return the number of clients in a task."""
        return len(self.positions(task))

    def error(self, task: int, detail: str) -> ClientError:
        """Return an error that names the clients of a task."""
        stage = self.work if self.kind in ("work", "submit") else f"evaluate/{self.work}"
        server = self.kind == "evaluate_server"
        return ClientError(
            "the server's data" if server else self.cohort[self.positions(task)], self.round, stage, detail
        )

    def missing(self, parts: Iterable[PartialResult]) -> np.ndarray:
        """Return the tasks that no part covers."""
        n, covered = len(self.cohort), np.zeros(len(self.cohort), bool)
        for part in parts:
            for level, k in part.nodes:
                covered[k << level : min((k + 1) << level, n)] = True
        return np.unique(np.flatnonzero(~covered) // self.plan.chunk)

    def gather(self, parts: Iterable[PartialResult], retried: int = 0) -> DispatchResult:
        """Fold the nodes that the workers could not fold. `retried`: tasks that ran again because a worker died."""
        fold = Fold(self.reduction, len(self.cohort))
        result = DispatchResult(None, Columns(), retried=retried * self.plan.chunk)
        with span("reduce", "gather"):
            for part in parts:
                result.columns.extend(part.columns)
                result.errors += part.errors
                result.busy_seconds += part.seconds
                for (level, k), acc in part.nodes.items():
                    fold.add(level, k, acc)
            # parts may be views of memory that workers write again
            result.value = tree_map(lambda leaf: leaf.clone(), fold.finish())
        result.errors.sort()
        return result


@dataclass(frozen=True)
class DispatchGroup:
    """Dispatches that are worked on as one: those of an asynchronous server are small."""

    dispatches: tuple[ExchangeDispatch, ...]
    pin = False

    @cached_property
    def ends(self) -> np.ndarray:
        """The numbers at which the tasks of each dispatch end, (m,)."""
        return np.cumsum([dispatch.tasks for dispatch in self.dispatches])

    @property
    def tasks(self) -> int:
        """Number of tasks of all dispatches."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def threaded(self) -> bool:
        """Whether threads may work at once on all of them."""
        return all(dispatch.threaded for dispatch in self.dispatches)

    def costs(self) -> np.ndarray:
        """Return the expected work of each task, (tasks,)."""
        return np.concatenate([dispatch.costs() for dispatch in self.dispatches])

    def at(self, task: int) -> tuple[int, ExchangeDispatch, int]:
        """Return where a task belongs: (index of the dispatch, the dispatch, the task's number in it)."""
        index = int(np.searchsorted(self.ends, task, side="right"))
        dispatch = self.dispatches[index]
        return index, dispatch, task - int(self.ends[index]) + dispatch.tasks

    def partial_result(self, parts: Mapping[int, PartialResult]) -> dict[int, PartialResult]:
        """Return a worker's answer, by index of the dispatch."""
        return dict(parts)

    def clients(self, task: int) -> int:
        """Return the number of clients in a task."""
        _, dispatch, own = self.at(task)
        return dispatch.clients(own)

    def error(self, task: int, detail: str) -> ClientError:
        """Return an error that names the clients of a task."""
        _, dispatch, own = self.at(task)
        return dispatch.error(own, detail)

    def missing(self, parts: Iterable[Mapping[int, PartialResult]]) -> np.ndarray:
        """Return the tasks that no part covers."""
        parts = list(parts)
        starts = self.ends - [dispatch.tasks for dispatch in self.dispatches]
        found = [
            start + dispatch.missing([part[index] for part in parts if index in part])
            for index, (start, dispatch) in enumerate(zip(starts, self.dispatches))
        ]
        return np.concatenate(found)

    def gather(self, parts: Iterable[Mapping[int, PartialResult]], retried: int = 0) -> list[DispatchResult]:
        """Fold each dispatch's nodes; all retries are booked on the first."""
        parts = list(parts)
        results = [
            dispatch.gather([part[index] for part in parts if index in part])
            for index, dispatch in enumerate(self.dispatches)
        ]
        results[0].retried = retried
        return results
