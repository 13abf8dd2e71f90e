"""Client work of one dispatch on one worker: one client at a time, or a chunk of clients trained together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.communication.codecs.error_feedback import Residuals
from fl.execution.client_state import last_received, method_state, new_record, same_entries
from fl.execution.dispatch import ExchangeDispatch
from fl.execution.exchange_worker import ExchangeWorker
from fl.execution.held_uploads import HeldUploads
from fl.execution.isolation import as_error
from fl.execution.shared_values import SharedValues, SharedValueWritten
from fl.execution.stages import during, stage_of
from fl.execution.training import batched
from fl.execution.training.at_once import Window
from fl.execution.training.chunk import Chunk
from fl.execution.training.compiled import Compiled
from fl.execution.training.customised import overrides, users_training
from fl.execution.training.flat import Flat
from fl.execution.training.fused import Fused
from fl.execution.training.kernels import LinearStack
from fl.execution.training.memory_format import use_memory_format
from fl.execution.training.prepared import preparation_of
from fl.execution.training.vmap import Vmap
from fl.execution.update_checks import TensorsDiffer, UpdateGroups, check_reply, stacked_values
from fl.execution.uploads import Uploads
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.models.probe import ModuleChanged
from fl.storage.segments import states_of
from fl.tensors.generators import GeneratorWatch
from fl.tensors.trees import Tree, row
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.execution.worker import Worker

WINDOW = 1 << 24  # numbers of all models of a window of clients, in case a hook makes arrays of such a size
BACKENDS: Mapping[str, type] = {  # of plans that train many clients at a time
    "fused": Fused,
    "compiled": Compiled,
    "stacked": LinearStack,
    "flat": Flat,
    "vmap": Vmap,
}


class ClientWork(ExchangeWorker):
    """Has clients work and uploads their updates. In a deployment `uploads` hands the updates over instead."""

    def __init__(self, worker: Worker, dispatch: ExchangeDispatch):
        super().__init__(worker, dispatch)
        self.uploads = Uploads(self) if dispatch.attackers is None else HeldUploads(self)
        self.groups = UpdateGroups(dispatch.reduction, self.job.algorithm, dispatch.work)

    def drop(self, positions: np.ndarray) -> None:
        """Leave clients out of the reduction."""
        self.columns.add(positions, {"dropped": True})
        for position in positions:
            self.fold.add(0, int(position), None)

    def ends_the_run(self, error: Exception) -> bool:
        """Return whether the run stops; otherwise the clients are left out of the round."""
        kinds = (ModuleChanged, TensorsDiffer, SharedValueWritten)
        no_client = isinstance(error, kinds) or self.is_machine_fault(error)
        return no_client or self.job.on_error == "raise"

    def room(self, positions: np.ndarray) -> np.ndarray | None:
        """Return the free space for the new states of clients, (n, 3); None: they are appended."""
        return None if self.dispatch.room is None else self.dispatch.room[positions]

    def failed(self, positions: np.ndarray, error: Exception) -> None:
        """Raise the error with its place, or drop the clients, as the configuration has it."""
        clients = self.dispatch.cohort[positions]
        if self.ends_the_run(error):
            raise self.error(clients, error, "broadcast") from None
        stage = stage_of(error, "broadcast")
        self.errors.append(f"client {clients[0]}, stage {stage!r}: {type(error).__name__}: {error}")
        self.drop(positions)


class LoopWork(ClientWork):
    """One client at a time."""

    def chunk(self, positions: np.ndarray) -> None:
        """Have the clients at `positions` work, one after another."""
        for position in positions:
            at = position[None]
            try:
                self.turn_to(int(self.dispatch.cohort[position]))
                ctx, record = self._receive(at)
                with (
                    span("compute", self.dispatch.work, ctx.client),
                    during(self.dispatch.work),
                    self.device.computing(),
                ):
                    self.begin_alone(ctx.client)
                    carry = self.device.put(self.worker.scratch.read(self.dispatch.carries[at[0]]))
                    own = SharedValues({"ctx.state": ctx.state, "carry": carry}) if self.compared else None
                    with self.isolated, use_memory_format(self.module, self.dispatch.plan.memory_format):
                        reply = self.job.algorithm.work(self.dispatch.work, ctx, carry)
                    if own:
                        own.check([ctx.client])
                    self.end_alone()
                check_reply(reply, self.job.algorithm, self.dispatch.work)
                self.groups.check(ctx.client, reply.update.groups, ctx.received, ctx.initial.trained)
                self._send(at, ctx, record, reply)
            except BaseException as error:
                self.failed(at, as_error(error))
            self.check_shared(at)

    def _receive(self, at: np.ndarray) -> tuple[ClientContext, Tree]:
        """Return (context, last record) of the client at one position, (1,)."""
        d, client = self.dispatch, int(self.dispatch.cohort[at[0]])
        with span("data", "state"), states_of(d.cohort[at], d.states[at]):
            record = self.worker.states.read(d.states[at[0]])
        with span("encode", "receive"):
            last = last_received(record) if self.downloads.differences else {}
            received, config, sizes = self.downloads.of(client, last, method_state(self.job, record))
            for name, of_group in sizes.items():
                self.count("down", name, at, of_group)
        ctx = self.client_context(client, received, config, record)
        if d.limits is not None:
            ctx = replace(ctx, limit=int(d.limits[at[0]]))
        if self.job.keeps_optimisers and record is not None:
            ctx = replace(ctx, optimiser=self.device.put(record.get("optimiser")))
        return ctx, record

    def _send(self, at: np.ndarray, ctx: ClientContext, record: Tree, reply: Reply) -> None:
        """Upload the update of the client at one position, (1,), and store its carry and its new state."""
        if reply.carry is not None:
            self.columns.add(at, {"carry": np.array([self.worker.scratch.append(self.device.fetch(reply.carry))])})

        def keep(residuals: dict[str, Residuals]) -> None:
            self._keep(at, ctx, record, reply, residuals)

        self.uploads.upload(at, reply.update, ctx.received, [record], stacked=False, careful=True, keep=keep)

    def _keep(
        self, at: np.ndarray, ctx: ClientContext, record: Tree, reply: Reply, residuals: dict[str, Residuals]
    ) -> None:
        """Write what is kept of the client at one position."""
        engine: dict[str, Tree] = {"residuals": residuals} if self.uploads.feedback else {}
        if self.statistics:
            engine["statistics"] = ctx.initial.frozen.select(self.statistics)
        if self.downloads.differences:
            engine["last_received"] = {name: ctx.received[name] for name in self.downloads.differences}
        if reply.optimiser is not None:
            engine["optimiser"] = reply.optimiser
        kept = self.device.fetch(new_record(self.job, record, reply.state, engine))
        if kept is not None:
            self.columns.add(at, {"state": np.array([self.worker.states.append(kept, self.room(at))])})


class BatchedWork(ClientWork):
    """Chunks of clients, trained together."""

    def __init__(self, worker: Worker, dispatch: ExchangeDispatch):
        super().__init__(worker, dispatch)
        self.windows: dict[int, Window] = {}

    @property
    def runs_client_code(self) -> bool:
        """Compiled training runs none, unless the method takes its own steps or hooks are a user's."""
        algorithm = self.job.algorithm
        return self.dispatch.plan.kind != "compiled" or (
            isinstance(algorithm, LocalTraining)
            and (overrides(algorithm, "step") or users_training(algorithm, self.task))
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """Config values of the broadcast, which all clients share."""
        config = self.dispatch.broadcast.config
        return {} if callable(config) else config

    def resume(self) -> None:
        """Watch the module and the global generators, unless clients run no code."""
        self.generators = GeneratorWatch() if self.runs_client_code else None
        self.worked: list[np.ndarray] = []  # positions since

    def pause(self) -> None:
        """Raise a `ClientError` if code drew from a global generator, or if the module changed its state."""
        if self.generators is None or not self.worked:
            return
        moved, changes = self.generators.since_last(), self.state.changes()
        if moved or changes:
            self.state.restore()
            what = (
                f"the model changed {', '.join(changes)}" if changes else "the model or the method drew random numbers"
            )
            error = ModuleChanged(
                f"{what} while clients were trained together, which a first pass with two samples did not show. "
                "Set execution.plan: loop, which trains one client at a time"
            )
            raise self.error(self.dispatch.cohort[np.concatenate(self.worked)], error, self.stage)

    def chunk(self, positions: np.ndarray) -> None:
        """Train the clients at `positions` together; after an error one by one, to find the client that failed."""
        self.worked.append(positions)
        try:
            self._many(positions)
        except BaseException as caught:
            error = as_error(caught)
            if len(positions) == 1 or self.ends_the_run(error):
                self.failed(positions, error)
                return
            for position in positions:
                self.chunk(position[None])
        self.check_shared(positions)

    def _many(self, positions: np.ndarray) -> None:
        """Train the clients at consecutive positions together, and upload their updates."""
        d, clients = self.dispatch, self.dispatch.cohort[positions]
        algorithm = self.job.algorithm
        assert isinstance(algorithm, LocalTraining)  # what a batched plan is made for
        for careful in (False, True):
            chunk, records = self._chunk(positions)  # read again: new states may have taken the memory of the old ones
            weights = None if careful else self.uploads.weights(chunk.sizes)
            with (
                span("compute", d.work),
                during(d.work),
                self.device.computing(),
                self.isolated,
            ):
                reply = batched.train(algorithm, chunk, BACKENDS[d.plan.kind], weights, self._window(positions))
            self.groups.check(int(clients[0]), reply.update.groups, chunk.received, chunk.initial.trained)
            update, common = reply.update, self.downloads.common
            keep = self._keeper(positions, records, self.device.fetch(reply.state), self.device.fetch(reply.carry))
            if weights is not None and batched.is_summed(update):
                uploaded = self.uploads.upload_sums(positions, update, weights, keep)
            else:
                uploaded = self.uploads.upload(positions, update, common, records, True, careful, keep)
            if uploaded:
                break

    def _chunk(self, positions: np.ndarray) -> tuple[Chunk, Sequence[Tree]]:
        """Return the chunk at some positions, and what is kept of its clients."""
        d, job, clients = self.dispatch, self.job, self.dispatch.cohort[positions]
        starts, sizes = (column[clients] for column in self.worker.slices[d.period])
        records = states = [None] * len(clients)
        known, stacked = d.states[positions, 0] >= 0, None
        if known.any():
            with span("data", "states"), states_of(clients, d.states[positions]):
                if not job.has_engine_state:  # otherwise single records are needed
                    stacked = self.worker.states.read_rows(d.states[positions[known]])
                if stacked is None:
                    records = [self.worker.states.read(location) for location in d.states[positions]]
                    states = [method_state(job, record) for record in records]
        chunk = Chunk(
            clients,
            job.seed,
            d.round,
            job.rounds,
            d.number,
            self.downloads.common,
            self.config,
            self.device.put(states),
            job.arrays,
            self.partition.indices,
            starts,
            sizes,
            self.initial_tensors(job.initial, self.downloads.common),
            self.module,
            self.task,
            job.augment,
            None if stacked is None else (known, self.device.put(stacked)),
            job.strong,
            self.partition.unlabelled[clients] if self.has_unlabelled else None,
            None if self.facts is None else self._stacked("facts", clients, [self.facts_of(int(c)) for c in clients]),
        )
        algorithm = job.algorithm
        assert isinstance(algorithm, LocalTraining)  # what a batched plan is made for
        together = preparation_of(algorithm, chunk, BACKENDS[d.plan.kind]) is not None
        if overrides(algorithm, "prepare") and not together:
            own = states if stacked is None else _by_client(known, stacked)
            chunk = replace(chunk, prepared=self._stacked("prepare", clients, self._prepared(clients, own)))
        return chunk, records

    def _window(self, positions: np.ndarray) -> tuple[Window, slice]:
        """Return the clients whose hooks are called with those at some positions, and which of them these are."""
        chunk, first, last = self.dispatch.plan.chunk, int(positions[0]), int(positions[-1])
        size = chunk * max(1, WINDOW // (chunk * max(1, self.job.initial.trained.numel)))
        number = first // size
        if number not in self.windows:
            clients = self.dispatch.cohort[number * size : (number + 1) * size]
            self.windows[number] = Window(self.worker.slices[self.dispatch.period][1][clients])
        return self.windows[number], slice(first - number * size, last + 1 - number * size)

    def _prepared(self, clients: np.ndarray, states: Sequence[Tree]) -> list[Tree]:
        """Return what each of `clients` (C,) with these states prepares."""
        algorithm, found = self.job.algorithm, []
        assert isinstance(algorithm, LocalTraining)
        for client, state in zip(clients.tolist(), states):
            ctx = self.client_context(client, self.downloads.common, self.config, None)
            ctx = replace(ctx, state=self.device.put(state))
            with span("compute", "prepare", client), during("prepare"), self.device.computing(), self.isolated:
                found.append(algorithm.inputs(ctx).prepared)
        return found

    def _stacked(self, hook: str, clients: np.ndarray, values: list[Tree]) -> Tree:
        """Return what a hook has returned for each of `clients` (C,), each leaf (C, ...)."""
        return stacked_values(hook, type(self.job.algorithm).__name__, clients, values)

    def _keeper(
        self, positions: np.ndarray, records: Sequence[Tree], states: Tree, carries: Tree
    ) -> Callable[[dict[str, Residuals]], None]:
        """Return what writes the clients' carries and new records, given what their codecs lost."""

        def keep(residuals: dict[str, Residuals]) -> None:
            if carries is not None:
                self.columns.add(positions, {"carry": self.worker.scratch.append_rows(carries, len(positions))})
            if self.uploads.feedback:
                where = self._append_records(positions, records, states, residuals)
                self.columns.add(positions, {"state": where})
            elif states is not None:
                where = self.worker.states.append_rows(states, len(positions), self.room(positions))
                self.columns.add(positions, {"state": where})

        return keep

    def _append_records(
        self, positions: np.ndarray, records: Sequence[Tree], states: Tree, residuals: Mapping[str, Residuals]
    ) -> np.ndarray:
        """Write records, at once if all clients keep the same entries; return their locations, (n, 3)."""
        room = self.room(positions)
        if same_entries(records, states, residuals):
            method = {} if states is None else {"method": states}
            return self.worker.states.append_rows({"residuals": dict(residuals), **method}, len(records), room)
        kept = [
            new_record(self.job, record, row(states, i), {"residuals": row(dict(residuals), i)})
            for i, record in enumerate(records)
        ]
        rooms = [None] * len(kept) if room is None else room
        return np.array([self.worker.states.append(one, own) for one, own in zip(kept, rooms)])


def _by_client(known: np.ndarray, stacked: Tree) -> list[Tree]:
    """Return the states of clients (C,): rows of `stacked` for those that are `known`, None for the others."""
    rows = iter(range(int(known.sum())))
    return [row(stacked, next(rows)) if has else None for has in known]
