"""What a worker does with its part of an exchange; the serial executor is one worker that gets all of it.

    positions -> broadcast of each client -> client work -> client transforms -> codec ~~> server transforms -> lift -> fold

A worker is resident: it holds the data, the model's structure and the job; an exchange brings it a `ExchangeDispatch` and it answers
a `PartialResult`: the nodes of the reduction tree that it could fold, and columns of plain numbers by cohort position.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fl.communication.codec import Codec, Identity, Key, Sizes, down_key, find_wrapper, transmit, up_key
from fl.communication.codecs.delta import Delta, alike, minus, plus
from fl.communication.codecs.error_feedback import ErrorFeedback, Residuals, compression_error, stacked_memories
from fl.data.augment import Augment
from fl.data.stream import Stage
from fl.errors import ClientError
from fl.execution.training import batched, compiled
from fl.execution.training.compiled import Compiled
from fl.execution.training.device import Device
from fl.execution.training.flat import Flat
from fl.execution.training.kernels import LinearStack
from fl.execution.training.layout import laid_out
from fl.execution.training.loop import overrides, train
from fl.execution.training.plan import Plan
from fl.execution.workers.process import configure_process
from fl.method.client import ClientAlgorithm, ClientContext, LocalTraining, Reply, View
from fl.method.messages import Broadcast, Update
from fl.method.reduction import Fold, Meta, Product, Reduction, WeightedMean
from fl.method.transform import Transform, TransformContext
from fl.models.binding import Initial
from fl.models.nn import looks_at_batch
from fl.storage.segments import Segments
from fl.tensors.trees import Tree, leaves, row, tree_map
from fl.tracking.profile import span

EVALUATION_BLOCK = 1024  # samples per forward pass of an evaluation
NOBODY = -1  # the client that the server's evaluation asks: without data, without state
SPLITS = ("train", "val", "test")
EVALUATION_CHUNK = 64  # clients whose samples share forward passes
BACKENDS: Mapping[str, type] = {  # of plans that train many clients at a time
    "compiled": Compiled,
    "stacked": LinearStack,
    "flat": Flat,
    "vmap": batched.Vmap,
}


@dataclass(frozen=True)
class Job:
    """What does not change in a run."""

    algorithm: ClientAlgorithm
    module: torch.nn.Module
    initial: Initial  # its tensors as the run began
    arrays: Mapping[str, Tensor]
    server_arrays: Mapping[str, Tensor]
    stages: tuple[Stage, ...]
    seed: int
    rounds: int
    up: Codec
    down: Codec
    transforms: tuple[Transform, ...]
    on_error: Literal["raise", "drop"]
    folder: Path  # of client states
    scratch: Path  # of what lasts one round
    adapt: ClientAlgorithm | None = None  # how clients adapt before an evaluation at stage "adapted"
    shots: int | None = None  # to so many of their samples
    augment: tuple[Augment, ...] = ()  # of training batches
    statistics: tuple[str, ...] = ()  # running ones that each client keeps
    device: Device = Device()
    micro_batch: int | None = None
    graphs: bool = False
    compiled: bool = False  # whether training is, so that workers have the machine code before they are asked

    @cached_property
    def keeps(self) -> bool:
        """Whether the engine keeps something of each client beside the method's own state: running statistics, what a codec
        lost, what the client last had of the broadcast. The state then is a dict {"own": the method's, ...}."""
        return bool(self.statistics or find_wrapper(self.up, ErrorFeedback) or find_wrapper(self.down, Delta))

    def worker(self, writer: int) -> Worker:
        return Worker(self, writer)

    def placed(self) -> Job:
        """The job with its tensors on its device; on a CPU, itself."""
        if self.device.kind == "cpu":
            return self
        put = self.device.put
        return replace(
            self,
            module=self.device.put_module(self.module),
            initial=Initial(put(self.initial.trained), put(self.initial.frozen)),
            arrays=self.device.resident(self.arrays),
            server_arrays=self.device.resident(self.server_arrays),
        )


@dataclass(frozen=True)
class ExchangeDispatch:
    """One exchange, or one evaluation, as workers need it. Columns are by cohort position."""

    kind: Literal["work", "evaluate", "evaluate_server"]
    work: str  # what clients do; for evaluations the model's stage: received, trained or adapted
    round: int
    stage: int  # of the stream, the present one or, for evaluations, the one asked about
    number: int  # of this dispatch in the run: the participation in addresses of randomness
    cohort: np.ndarray  # client ids, the one with most work first; for the server's data, block numbers
    broadcast: Broadcast  # shared and static groups decoded
    reduction: Reduction
    plan: Plan
    states: np.ndarray  # (n, 3) locations
    carries: np.ndarray  # (n, 3)
    cost: np.ndarray  # (n,) expected work, in any unit
    skeleton: torch.nn.Module | None = None
    pin: bool = False
    split: str = "test"
    rows: np.ndarray | None = None  # evaluate on these rows of the server's data
    limits: np.ndarray | None = None  # (n,): the most local steps of each client, where some have no time for all
    original: Broadcast | None = None  # as it was before the codec, for executors that encode it themselves (`remote`)
    generation: int = 0  # of the client states, see ClientStates.segment

    @property
    def free(self) -> bool:
        return self.kind == "work" and self.plan.kind == "compiled"

    @property
    def tasks(self) -> int:
        """Chunks of positions, the unit that workers take."""
        return -(-len(self.cohort) // self.plan.chunk)

    def costs(self) -> np.ndarray:
        """(tasks,) expected work."""
        edges = np.arange(0, len(self.cohort), self.plan.chunk)
        return np.add.reduceat(self.cost.astype(np.float64), edges)

    def at(self, task: int) -> tuple[int, ExchangeDispatch, int]:
        """A task's place: (which dispatch, the dispatch, the task's number in it)."""
        return 0, self, task

    def part(self, parts: Mapping[int, PartialResult]) -> PartialResult:
        """What a worker answers, from its parts of each dispatch."""
        return parts.get(0) or PartialResult({}, Columns())

    def where(self, task: int) -> str:
        """In words, for messages."""
        return f"round {self.round}, at or near client {self.cohort[task * self.plan.chunk]}"

    def missing(self, parts: Iterable[PartialResult]) -> np.ndarray:
        """The tasks that no part covers."""
        n, covered = len(self.cohort), np.zeros(len(self.cohort), bool)
        for part in parts:
            for level, k in part.nodes:
                covered[k << level : min((k + 1) << level, n)] = True
        return np.unique(np.flatnonzero(~covered) // self.plan.chunk)

    def gather(self, parts: Iterable[PartialResult], retried: int = 0) -> DispatchResult:
        """Fold the parts that the workers could not fold themselves. `retried`: tasks run again because a worker died."""
        fold, done = (
            Fold(self.reduction, len(self.cohort)),
            DispatchResult(None, Columns(), retried=retried * self.plan.chunk),
        )
        with span("reduce", "gather"):
            for part in parts:
                done.columns.extend(part.columns)
                done.errors += part.errors
                done.busy_seconds += part.seconds
                for (level, k), acc in part.nodes.items():
                    fold.add(level, k, acc)
            done.value = tree_map(
                lambda leaf: leaf.clone(), fold.finish()
            )  # parts may be views of what workers write again
        done.errors.sort()
        return done


@dataclass(frozen=True)
class DispatchGroup:
    """Dispatches that are worked at once, as one: those of an asynchronous server are small."""

    dispatches: tuple[ExchangeDispatch, ...]
    pin = False

    @cached_property
    def ends(self) -> np.ndarray:
        """(m,): the numbers at which the tasks of each end."""
        return np.cumsum([dispatch.tasks for dispatch in self.dispatches])

    @property
    def tasks(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def free(self) -> bool:
        return all(dispatch.free for dispatch in self.dispatches)

    def costs(self) -> np.ndarray:
        return np.concatenate([dispatch.costs() for dispatch in self.dispatches])

    def at(self, task: int) -> tuple[int, ExchangeDispatch, int]:
        which = int(np.searchsorted(self.ends, task, side="right"))
        dispatch = self.dispatches[which]
        return which, dispatch, task - int(self.ends[which]) + dispatch.tasks

    def part(self, parts: Mapping[int, PartialResult]) -> dict[int, PartialResult]:
        return dict(parts)

    def where(self, task: int) -> str:
        _, dispatch, own = self.at(task)
        return dispatch.where(own)

    def missing(self, parts: Iterable[Mapping[int, PartialResult]]) -> np.ndarray:
        begins = self.ends - [dispatch.tasks for dispatch in self.dispatches]
        found = [
            begin + dispatch.missing([part[which] for part in parts if which in part])
            for which, (begin, dispatch) in enumerate(zip(begins, self.dispatches))
        ]
        return np.concatenate(found)

    def gather(self, parts: Iterable[Mapping[int, PartialResult]], retried: int = 0) -> list[DispatchResult]:
        done = [
            dispatch.gather([part[which] for part in parts if which in part])
            for which, dispatch in enumerate(self.dispatches)
        ]
        done[0].retried = retried
        return done


class Columns:
    """Numbers by cohort position, collected piece by piece: add a row or many, read as arrays in position order."""

    def __init__(self):
        self.pieces: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def add(self, positions: np.ndarray, values: Mapping[str, Any]) -> None:
        """values: a row for each position, or one for all of them."""
        for name, value in values.items():
            array = np.asarray(value)
            if array.shape[:1] != positions.shape:
                array = np.broadcast_to(array, (len(positions), *array.shape[1:]))
            self.pieces.setdefault(name, []).append((positions, array))

    def extend(self, other: Columns) -> None:
        for name, pieces in other.pieces.items():
            self.pieces.setdefault(name, []).extend(pieces)

    def column(self, name: str, n: int, missing: Any) -> np.ndarray:
        """(n, ...): the values of positions 0..n-1, `missing` where there is none."""
        pieces = self.pieces.get(name, [])
        dtype = np.result_type(*(p.dtype for _, p in pieces)) if pieces else type(missing)
        out = np.full((n, *(pieces[0][1].shape[1:] if pieces else ())), missing, dtype)
        for positions, values in pieces:
            out[positions] = values
        return out

    def metrics(self, n: int) -> dict[str, np.ndarray]:
        """The columns metric/NAME by NAME, NaN where there is none."""
        return {name[7:]: self.column(name, n, np.nan) for name in self.pieces if name.startswith("metric/")}

    def reordered(self, order: np.ndarray) -> Columns:
        """Columns whose position i is our position order[i]."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        moved = Columns()
        moved.pieces = {name: [(place[at], values) for at, values in pieces] for name, pieces in self.pieces.items()}
        return moved

    def packed(self) -> Columns:
        """One piece per column, so that it travels as a few arrays."""
        packed = Columns()
        for name, pieces in self.pieces.items():
            one = len(pieces) == 1  # as most are; positions that columns have in common then travel once
            packed.pieces[name] = pieces if one else [tuple(np.concatenate(parts) for parts in zip(*pieces))]
        return packed


@dataclass
class PartialResult:
    """What one worker made of an exchange."""

    nodes: dict[tuple[int, int], Any]
    columns: Columns
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0  # spent working


@dataclass
class DispatchResult:
    """What came of a dispatch: the reduced value and the columns by cohort position."""

    value: Any
    columns: Columns
    errors: list[str] = field(default_factory=list)
    busy_seconds: float = 0.0  # summed over workers
    retried: int = 0  # clients run again because a worker died


class Worker:
    """See the module. `writer` numbers the segments this worker writes."""

    def __init__(self, job: Job, writer: int):
        configure_process()
        job.device.prepare()
        if job.compiled:
            compiled.load()
        self.job, self.writer = job.placed(), writer
        self.slices = [stage.partition.train_slices() for stage in job.stages]
        self.states = Segments(job.folder)
        self.scratch = Segments(job.scratch)
        self.scratch.write_to(writer)
        self.round: int | None = None  # whose scratch it is
        self.apart = looks_at_batch(job.module) or bool(job.statistics)  # no two clients' samples in one forward pass

    def run(self, order: ExchangeDispatch | DispatchGroup, tasks: Iterable[tuple[int, int]], segment: int) -> Any:
        """Work through runs [a, b) of task numbers."""
        self.states.write_to(segment)
        open_: dict[int, ExchangeWorker] = {}
        for first, last in tasks:
            for task in range(first, last):
                which, dispatch, own = order.at(task)
                if which not in open_:
                    open_[which] = self.begin(dispatch)
                a, start = own * dispatch.plan.chunk, time.perf_counter()
                with span(open_[which].category, "task", task):
                    open_[which].chunk(np.arange(a, min(a + dispatch.plan.chunk, len(dispatch.cohort))))
                open_[which].seconds += time.perf_counter() - start
        return order.part({which: exchange.part() for which, exchange in open_.items()})

    def close(self) -> None:
        self.states.close()

    def begin(self, dispatch: ExchangeDispatch) -> ExchangeWorker:
        if dispatch.round != self.round:  # carries and spilled updates last a round
            self.round = dispatch.round
            self.scratch.empty()
        return ExchangeWorker(self, dispatch)


class ExchangeWorker:
    """One exchange in progress on one worker. A client's part and the server's part of it meet in `deliver`: in a deployment
    `leave` runs on the client's machine, `arrive` on the server's."""

    def __init__(self, worker: Worker, dispatch: ExchangeDispatch):
        self.worker, self.job, self.dispatch = worker, worker.job, dispatch
        self.fold = Fold(dispatch.reduction, len(dispatch.cohort))
        self.columns, self.errors, self.seconds = Columns(), [], 0.0
        # whether updates can be added up on the device, without a codec or a rule that the CPU works
        self.added_there = isinstance(self.job.up, Identity) and not self.job.transforms and dispatch.reduction.linear
        parts = dispatch.reduction.parts if isinstance(dispatch.reduction, Product) else {}
        alone = parts.get("model") if self.added_there and len(parts) == 1 else None
        self.mean = alone if isinstance(alone, WeightedMean) else None
        self.device = self.job.device
        self.module = self.job.module if dispatch.skeleton is None else self.device.put_module(dispatch.skeleton)
        stage = self.job.stages[dispatch.stage]
        self.partition, self.task = stage.partition, stage.task
        broadcast = dispatch.broadcast
        visible = {name: tree for name, tree in broadcast.shared.items() if name not in broadcast.hidden}
        static = {name: static.value for name, static in broadcast.static.items()}
        self.received = self.device.put({**visible, **static})
        self.feedback, self.delta = find_wrapper(self.job.up, ErrorFeedback), find_wrapper(self.job.up, Delta)
        difference = find_wrapper(self.job.down, Delta) if dispatch.kind == "work" else None
        self.differences = [name for name in visible if difference and difference.covers(name)]
        self.category = "compute" if dispatch.kind == "work" else "evaluate"
        self.chunk = {
            "work": self._loop if dispatch.plan.kind == "loop" else self._batched,
            "evaluate": self._evaluate,
            "evaluate_server": self._evaluate_server,
        }[dispatch.kind]

    def part(self) -> PartialResult:
        """What has come of it here."""
        return PartialResult(self.device.fetch(self.fold.nodes), self.columns.packed(), self.errors, self.seconds)

    # -- client work ----------------------------------------------------------------------------------------------
    def _loop(self, positions: np.ndarray) -> None:
        for position in positions:
            at = position[None]
            self.guarded(at, partial(self._one, at))

    def _batched(self, positions: np.ndarray) -> None:
        if self.job.on_error == "raise" or len(positions) == 1:
            self.guarded(positions, partial(self._many, positions))
        elif not self.guarded(positions, partial(self._many, positions), quiet=True):
            for position in positions:  # find who it was; each alone
                self.guarded(position[None], partial(self._many, position[None]))

    def guarded(self, positions: np.ndarray, work: Callable[[], None], quiet: bool = False) -> bool:
        """Run work; on an error raise it with its place, or drop the clients."""
        try:
            self.stage = "broadcast"
            work()
            return True
        except Exception as error:
            clients = self.dispatch.cohort[positions]
            if self.job.on_error == "raise":
                raise self._error(clients, error) from None
            if not quiet:
                self.errors.append(f"client {clients[0]}, stage {self.stage!r}: {type(error).__name__}: {error}")
                self._drop(positions)
            return False

    def _error(self, who: np.ndarray | str, error: Exception) -> ClientError:
        detail = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return ClientError(who, self.dispatch.round, self.stage, detail)

    def _drop(self, positions: np.ndarray) -> None:
        self.columns.add(positions, {"dropped": True})
        for position in positions:
            self.fold.add(0, int(position), None)

    def _one(self, at: np.ndarray) -> None:
        """Client work for the client at one position."""
        d, client = self.dispatch, int(self.dispatch.cohort[at[0]])
        with span("data", "state"):
            before = self.worker.states.read(d.states[at[0]])
        with span("encode", "receive"):
            received, config = self.receive(at, client, before)
        ctx = self._context(client, received, config, before)
        self.stage = d.work
        if d.limits is not None:
            ctx = replace(ctx, limit=int(d.limits[at[0]]))
        with span("compute", d.work, client):
            reply = self._work(self.job.algorithm, d.work, ctx, self.worker.scratch.read(d.carries[at[0]]))
        if reply.carry is not None:
            self.columns.add(at, {"carry": np.array([self.worker.scratch.append(self.device.fetch(reply.carry))])})

        def keep(memory: dict[str, Residuals]) -> None:
            beside: dict[str, Tree] = {"memory": memory} if self.feedback else {}
            if self.job.statistics:
                beside["statistics"] = ctx.initial.frozen.select(self.job.statistics)
            if self.differences:
                beside["had"] = {name: received[name] for name in self.differences}
            kept = self.device.fetch(self._kept(before, reply.state, beside))
            if kept is not None:
                self.columns.add(at, {"state": np.array([self.worker.states.append(kept)])})

        self.deliver(at, reply.update, received, [before], stacked=False, careful=True, keep=keep)

    def _work(self, algorithm: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        with laid_out(self.module, self.dispatch.plan.layout), self.device.computing():
            return algorithm.work(name, ctx, self.device.put(carry))

    def _many(self, positions: np.ndarray) -> None:
        """Client work for the clients at consecutive positions, trained together."""
        d, clients = self.dispatch, self.dispatch.cohort[positions]
        starts, sizes = (column[clients] for column in self.worker.slices[d.stage])
        before = own = [None] * len(clients)
        known, stacked = d.states[positions, 0] >= 0, None
        if known.any():
            with span("data", "states"):
                if not self.job.keeps:  # then nobody asks for the state of a single one
                    stacked = self.worker.states.read_rows(d.states[positions[known]])
                if stacked is None:
                    before = [self.worker.states.read(location) for location in d.states[positions]]
                    own = [self._own(state) for state in before]
        chunk = batched.Chunk(
            clients,
            self.job.seed,
            d.round,
            self.job.rounds,
            d.number,
            self.received,
            d.broadcast.config,
            self.device.put(own),
            self.job.arrays,
            self.partition.indices,
            starts,
            sizes,
            self.job.initial,
            self.module,
            self.task,
            self.job.augment,
            None if stacked is None else (known, self.device.put(stacked)),
        )

        def keep(memory: dict[str, Residuals]) -> None:
            if self.feedback:
                self.columns.add(positions, {"state": self._append_all(before, states, memory)})
            elif states is not None:
                self.columns.add(positions, {"state": self.worker.states.append_rows(states, len(positions))})

        for careful in (False, True):
            self.stage = d.work
            with span("compute", d.work), self.device.computing():
                factors = None if careful else self.factors(sizes)
                update, states = batched.train(self.job.algorithm, chunk, BACKENDS[d.plan.kind], factors)
            if factors is not None and not update.groups["model"].batch:
                delivered = self.deliver_sum(positions, update, factors)
            else:
                states = self.device.fetch(states)
                delivered = self.deliver(positions, update, self.received, before, True, careful, keep)
            if delivered:
                break

    def factors(self, sizes: np.ndarray) -> Tensor | None:
        """(C,): what clients with so many samples count, if nothing happens to their updates but that they are added up."""
        return self.mean.factors(Meta(0, torch.from_numpy(sizes))) if self.mean else None

    def _append_all(self, before: list[Tree], states: Tree, memory: Mapping[str, Residuals]) -> np.ndarray:
        """Write what clients that trained together keep, at once if they keep the same things; the locations."""
        count, fresh = len(before), {"own", "memory"} if states is not None else {"memory"}
        if all(b is None or (set(b) <= fresh and set(b["memory"]) <= set(memory)) for b in before):
            kept = {"memory": dict(memory)} if states is None else {"memory": dict(memory), "own": states}
            return self.worker.states.append_rows(kept, count)
        kept = [self._kept(b, row(states, i), {"memory": row(dict(memory), i)}) for i, b in enumerate(before)]
        return np.array([self.worker.states.append(one) for one in kept])

    def _context(
        self, client: int, received: Mapping[str, Tree], config: Mapping[str, Any], state: Tree
    ) -> ClientContext:
        job = self.job
        nothing = np.empty(0, np.int64)
        rows = {split: nothing if client == NOBODY else self.partition.view_rows(client, split) for split in SPLITS}
        views = {split: View(job.arrays, rows[split]) for split in SPLITS}
        initial = job.initial
        if job.statistics:
            held = initial.frozen.clone()  # training changes them in place
            if state is not None:
                held.copy_(state["statistics"], names=job.statistics)
            initial = replace(initial, frozen=held)
        return ClientContext(
            client=client,
            seed=job.seed,
            round=self.dispatch.round,
            rounds=job.rounds,
            participation=self.dispatch.number,
            received=received,
            config=config,
            state=self.device.put(self._own(state)),
            initial=initial,
            module=self.module,
            task=self.task,
            augment=job.augment,
            micro_batch=job.micro_batch,
            graphs=job.graphs,
            training_loop=train,
            **views,
        )

    def _own(self, state: Tree) -> Tree:
        """The method's part of what is kept of a client."""
        return state.get("own") if self.job.keeps and state is not None else state

    def _kept(self, before: Tree, own: Tree, beside: Mapping[str, Tree]) -> Tree:
        """What is kept of a client from now on: its method's state, and beside it the engine's (see `Job.keeps`)."""
        if not self.job.keeps:
            return own
        kept = {**(before or {}), **beside}
        if "memory" in beside:
            kept["memory"] = {**(before or {}).get("memory", {}), **beside["memory"]}
        return kept if own is None else {**kept, "own": own}

    def receive(
        self, at: np.ndarray | None, client: int, state: Tree = None
    ) -> tuple[dict[str, Tree], Mapping[str, Any]]:
        """What one client receives; bytes of what is its alone are counted at position `at`."""
        broadcast, received = self.dispatch.broadcast, dict(self.received)
        config = broadcast.config(client) if callable(broadcast.config) else broadcast.config
        for name, tree in broadcast.own(client).items():
            arrived, sizes = transmit(self.job.down, tree, None, self.own_key(client, name))
            received[name] = self.device.put(arrived)
            if at is not None:
                self.count("down", name, at, sizes)
        had = (state or {}).get("had", {}) if self.differences else {}
        for name in self.differences:
            tree, old = self.device.fetch(received[name]), had.get(name)
            if old is not None and alike(tree, old):
                arrived, sizes = transmit(self.job.down, minus(tree, old), None, self.own_key(client, name))
                received[name] = self.device.put(plus(arrived, old))
            else:
                sizes = transmit(Identity(), tree)[1]
            if at is not None:
                self.count("down", name, at, sizes)
        return received, config

    def own_key(self, client: int, group: str) -> Key:
        return down_key(self.job.seed, self.dispatch.number, group, client)

    def up_key(self, positions: np.ndarray, group: str) -> Key:
        """For the draws of the codec, if it has any."""
        if not self.job.up.draws:
            return 0
        return up_key(self.job.seed, self.dispatch.cohort[positions], self.dispatch.number, group)

    # -- the way up -----------------------------------------------------------------------------------------------
    def deliver(
        self,
        positions: np.ndarray,
        update: Update,
        received: Mapping[str, Tree],
        before: list[Tree],
        stacked: bool,
        careful: bool,
        keep: Callable[[dict[str, Residuals]], None],
    ) -> bool:
        """Transforms, codec and reduction for the update of one client, or of several stacked, who have `received` that and were
        known by the states `before`. `keep` is given what their codecs lost, before anything is added: if it fails, the sum is
        as it was.

        Unless `careful`, only their sum is looked at for NaNs and infinities; if it has any, nothing is delivered and the
        answer is False: train again and look at each client.
        """
        arrived, counted, memory = {}, {}, {}
        with span("encode", "update"):
            if not self.added_there:
                update, received = self.device.fetch(update), self.device.fetch(received)
            for name, tree in self.leave(positions, update, stacked).items():
                sent = self.outgoing(name, tree, received, before, stacked)
                decoded, counted[name] = transmit(
                    self.job.up, sent, len(positions) if stacked else None, self.up_key(positions, name)
                )
                if self.feedback:
                    memory[self.memory_name(name)] = compression_error(sent, decoded)
                arrived[name] = self.incoming(name, decoded, received, stacked)
        with span("data", "state"):
            keep(memory)
        with span("reduce", "update"):
            return self.arrive(positions, replace(update, groups=arrived), counted, stacked, careful)

    def deliver_sum(self, positions: np.ndarray, update: Update, factors: Tensor) -> bool:
        """`deliver` for clients whose updates were added up as they were trained."""
        with span("encode", "update"):
            counted = transmit(self.job.up, update.groups["model"])[1]
        with span("reduce", "update"):
            if not _finite(update.groups):
                return False
            count = len(positions)
            node = {"model": (update.groups["model"], self.fold.summed(factors))}
            self.fold.add_stacked(int(positions[0]), count, node)
            self.account(positions, update, {"model": counted}, np.zeros(len(positions), bool))
        return True

    def memory_name(self, group: str) -> str:
        return f"{self.dispatch.work}/{group}"

    def outgoing(self, name: str, tree: Tree, received: Mapping[str, Tree], before: list[Tree], stacked: bool) -> Tree:
        """A group as it goes into the codec: as a difference, with what was lost before."""
        base = self._base(name, tree, received, stacked)
        tree = tree if base is None else minus(tree, base)
        if self.feedback is None:
            return tree
        memories = [None if b is None else b.get("memory", {}).get(self.memory_name(name)) for b in before]
        return self.feedback.fed(tree, stacked_memories(memories, tree) if stacked else memories[0])

    def incoming(self, name: str, decoded: Tree, received: Mapping[str, Tree], stacked: bool) -> Tree:
        """The group that a decoded one stands for."""
        base = self._base(name, decoded, received, stacked)
        return decoded if base is None else plus(decoded, base)

    def _base(self, name: str, tree: Tree, received: Mapping[str, Tree], stacked: bool) -> Tree:
        """What the group is sent as a difference to, or `None`."""
        base = received.get(self.job.algorithm.delta_reference.get(name, name))
        if self.delta is None or name == "model" or base is None or not self.delta.covers(name):
            return None
        return base if alike(tree, base, stacked) else None

    def leave(self, positions: np.ndarray, update: Update, stacked: bool) -> Mapping[str, Tree]:
        """The groups as their clients hand them to the codec."""
        groups, ctx = update.groups, self._transform_context(positions, update, stacked)
        for transform in self.job.transforms:
            self.stage = type(transform).__name__
            groups = transform.client(groups, ctx)
        self.stage = "encode"
        return groups

    def arrive(
        self, positions: np.ndarray, update: Update, counted: Mapping[str, Sizes], stacked: bool, careful: bool
    ) -> bool:
        """The server's part, of groups as decoded; `counted`: what each took. See `deliver`."""
        d, job = self.dispatch, self.job
        clients, decoded = d.cohort[positions], update.groups
        ctx = self._transform_context(positions, update, stacked)
        for transform in reversed(job.transforms):
            self.stage = type(transform).__name__
            with span("encode", self.stage):
                decoded = transform.server(decoded, ctx)

        self.stage, bad = "reduce", np.zeros(len(positions), bool)
        ids = torch.from_numpy(clients) if stacked else int(clients[0])
        together = stacked and d.reduction.batched and not careful
        meta = Meta(ids, update.num_examples, 0, update.owned and together, self._spill)
        if together:
            node = self.fold.stacked(d.reduction.lift(decoded, meta), len(positions))
            if not _finite(node):
                return False
            self.fold.add_stacked(int(positions[0]), len(positions), node)
        else:
            bad = _non_finite(decoded, len(positions)) if stacked else np.array([not _finite(decoded)])
            if bad.any() and job.on_error == "raise":
                raise FloatingPointError(f"the update of client {clients[bad][0]} is not finite")
            self._add_rows(positions, decoded, replace(meta, owned=update.owned and not stacked), bad, stacked)
        self.account(positions, update, counted, bad)
        return True

    def account(self, positions: np.ndarray, update: Update, counted: Mapping[str, Sizes], bad: np.ndarray) -> None:
        """The columns of updates, but for the `bad` (C,), which are dropped."""
        for name, sizes in counted.items():
            self.count("up", name, positions, sizes)
        columns = {f"metric/{name}": _array(value) for name, value in update.metrics.items()}
        if bad.any():
            good, whole = ~bad, len(positions)
            self.columns.add(positions[good], {name: np.broadcast_to(v, whole)[good] for name, v in columns.items()})
        else:
            self.columns.add(positions, columns)
        self.columns.add(positions, {"num_examples": _array(update.num_examples), "dropped": bad})

    def _transform_context(self, positions: np.ndarray, update: Update, stacked: bool) -> TransformContext:
        job, d = self.job, self.dispatch
        return TransformContext(job.seed, d.round, d.number, d.cohort[positions], update.num_examples, stacked)

    def _add_rows(
        self, positions: np.ndarray, groups: Mapping[str, Tree], meta: Meta, bad: np.ndarray, stacked: bool
    ) -> None:
        """Leaves one by one; all are lifted before any is added, so that an error leaves the fold as it was."""
        accs: list[Any] = []
        for i, is_bad in enumerate(bad):
            if is_bad:
                accs.append(None)
            elif stacked:
                own = replace(meta, client=int(meta.client[i]), num_examples=int(meta.num_examples[i]))
                accs.append(self.dispatch.reduction.lift(row(groups, i), own))
            else:
                accs.append(self.dispatch.reduction.lift(groups, meta))
        for position, acc in zip(positions, accs):
            self.fold.add(0, int(position), acc)
        for position in positions[bad]:
            self.errors.append(f"client {self.dispatch.cohort[position]}: update not finite")

    def _spill(self, vector: Tensor) -> Any:
        return self.worker.scratch.append_vector(vector)

    def count(self, direction: str, group: str, positions: np.ndarray, sizes: Sizes) -> None:
        rows = np.empty((len(positions), 3), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = sizes.payload_bytes, sizes.encoded_bytes, sizes.arrays
        self.columns.add(positions, {f"{direction}/{group}": rows})

    # -- evaluation -----------------------------------------------------------------------------------------------
    def _evaluate(self, positions: np.ndarray) -> None:
        """Metrics of clients on a split of their own data, or on rows of the server's; where all predict alike, one forward
        pass serves many."""
        d, algorithm = self.dispatch, self.job.algorithm
        clients = d.cohort[positions]
        if (
            d.rows is None
            and d.work == "received"
            and _predicts_alike(algorithm)
            and d.broadcast.uniform
            and not self.worker.apart
        ):
            with self._evaluating(clients):
                rows = [self.partition.view_rows(int(c), d.split) for c in clients]
                net = self._context(int(clients[0]), self.received, {}, None).net(self.received["model"])
                self._measure(positions, net, rows, self.job.arrays)
            return
        for position, client in zip(positions, clients):
            with self._evaluating(np.array([client])):
                received, config = self.receive(None, int(client))
                ctx = self._context(int(client), received, config, self.worker.states.read(d.states[position]))
                net = self._predictor(ctx)
                rows, arrays = (
                    (getattr(ctx, d.split).rows, self.job.arrays)
                    if d.rows is None
                    else (d.rows, self.job.server_arrays)
                )
                self._measure(position[None], net, [rows], arrays)

    @contextmanager
    def _evaluating(self, who: np.ndarray | str) -> Iterator[None]:
        """Errors name the clients or the data, the round and the model's stage."""
        self.stage = f"evaluate/{self.dispatch.work}"
        try:
            yield
        except Exception as error:
            raise self._error(who, error) from None

    def _predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        """What a client predicts with at the stage that the evaluation asks for."""
        algorithm = self.job.algorithm
        if self.dispatch.work == "adapted":
            assert self.job.adapt is not None
            algorithm = self.job.adapt
            ctx = replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[: self.job.shots]))
        if self.dispatch.work != "received":
            ctx = algorithm.context_after_training(ctx, self._work(algorithm, "train", ctx, None))
        with self.device.computing():
            return algorithm.predictor(ctx)

    def _evaluate_server(self, positions: np.ndarray) -> None:
        """Metrics of the model on blocks of the server's data."""
        rows = self.dispatch.rows
        blocks = [rows[k * EVALUATION_BLOCK : (k + 1) * EVALUATION_BLOCK] for k in self.dispatch.cohort[positions]]
        config = self.dispatch.broadcast.config
        with self._evaluating(f"block {', '.join(map(str, self.dispatch.cohort[positions]))} of the server's data"):
            config = config(NOBODY) if callable(config) else config
            with self.device.computing():
                net = self.job.algorithm.predictor(self._context(NOBODY, self.received, config, None))
            self._measure(positions, net, blocks, self.job.server_arrays)

    def _measure(
        self,
        positions: np.ndarray,
        net: Callable[[Tensor], Tensor],
        rows: list[np.ndarray],
        arrays: Mapping[str, Tensor],
    ) -> None:
        """Metrics of several row lists under one model: folded, and each list's own as columns."""
        metrics = self.dispatch.reduction.parts
        owners = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        view = View(arrays, np.concatenate(rows))
        accs: dict[str, Any] = {}
        with torch.inference_mode(), self.device.computing():
            for a in range(0, max(len(view), 1), EVALUATION_BLOCK):
                batch = view.take(slice(a, a + EVALUATION_BLOCK))
                segments = torch.as_tensor(owners[a : a + EVALUATION_BLOCK])
                outputs = net(batch["x"])
                for name, metric in metrics.items():
                    part = metric.measure(outputs, batch, segments, len(rows))
                    accs[name] = metric.merge(accs[name], part) if name in accs else part
        accs = self.device.fetch(accs)
        for name, metric in metrics.items():
            self.columns.add(positions, {f"metric/{name}": metric.each(accs[name], len(rows))})
        self.columns.add(positions, {"num_examples": np.array([len(r) for r in rows])})
        if self.dispatch.reduction.batched:
            self.fold.add_stacked(int(positions[0]), len(positions), self.fold.stacked(accs, len(positions)))
        else:
            for i, position in enumerate(positions):
                self.fold.add(0, int(position), row(accs, i))


def _predicts_alike(algorithm: ClientAlgorithm) -> bool:
    """Whether all clients that receive the same predict the same, by the received model."""
    plain = type(algorithm).predictor in (ClientAlgorithm.predictor, LocalTraining.predictor)
    return plain and not (isinstance(algorithm, LocalTraining) and overrides(algorithm, "start"))


def _array(value: Any) -> np.ndarray:
    """A number or a tensor (C,) as an array (1,) or (C,)."""
    return np.atleast_1d(value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value))


def _finite(tree: Tree) -> bool:
    """Whether it holds no NaN and no infinity. A sum is not finite if a term is not, and one pass is enough; where a sum overflows,
    the elements are looked at."""
    floating = [leaf for leaf in leaves(tree) if leaf.is_floating_point()]
    return all(math.isfinite(leaf.sum()) or bool(torch.isfinite(leaf).all()) for leaf in floating)


def _non_finite(groups: Mapping[str, Tree], count: int) -> np.ndarray:
    """(C,) bool: whose update holds a NaN or an infinity, of C stacked ones."""
    bad = np.zeros(count, bool)
    for leaf in leaves(groups):
        if leaf.is_floating_point():
            bad |= ~torch.isfinite(leaf.reshape(count, -1)).all(-1).cpu().numpy()
    return bad
