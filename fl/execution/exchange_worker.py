"""One dispatch in progress on one worker: what client work and evaluations share."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.communication.transmit import Sizes
from fl.data.partition import ViewName
from fl.data.views import NO_ROWS, View
from fl.errors import ClientError, MachineError
from fl.execution.client_state import method_state
from fl.execution.columns import Columns
from fl.execution.dispatch import ExchangeDispatch, PartialResult
from fl.execution.downloads import Downloads
from fl.execution.isolation import isolated
from fl.execution.machine_faults import is_machine_fault
from fl.execution.shared_values import SharedValues, SharedValueWritten
from fl.execution.stages import during, stage_of
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.fold import Fold
from fl.models.binding import Initial
from fl.models.probe import ModuleChanged
from fl.tensors import random
from fl.tensors.generators import seed_generators
from fl.tensors.trees import Tree
from fl.user_code import explain

if TYPE_CHECKING:
    from fl.execution.worker import Worker

SERVER = -1  # the "client" that predicts on the server's data: it has no data and no state


class ExchangeWorker:
    """Works on chunks of cohort positions and collects what comes of them.

    Attributes:
        fold: the reduction, as far as this worker can do it.
        columns: numbers by cohort position.
        errors: messages about clients that were dropped.
        seconds: time spent working.
        category: of spans in a profile.
    """

    category = "compute"

    def __init__(self, worker: Worker, dispatch: ExchangeDispatch):
        self.worker, self.job, self.dispatch = worker, worker.job, dispatch
        self.fold = Fold(dispatch.reduction, len(dispatch.cohort))
        self.columns, self.seconds = Columns(), 0.0
        self.errors: list[str] = []
        self.device = self.job.device
        self.model = self.job.models[0]
        if dispatch.skeleton is not None:
            if self.job.by_client is not None:
                raise ValueError("skeleton: with model.by_client each client has a module of its own")
            self.model = replace(self.model, module=self.device.put_module(dispatch.skeleton))
        self.module = self.model.module
        self.statistics = self.job.statistics
        period = self.job.periods[dispatch.period]
        self.partition, self.task = period.partition, period.task
        self.has_unlabelled = worker.has_unlabelled[dispatch.period]
        self.state = worker.state_of(self.module)
        self.downloads = Downloads(self.job, dispatch)
        self.facts = worker.facts  # of clients' data; None for a client algorithm without any
        self.isolated: AbstractContextManager[None] = (
            isolated() if self.job.seeded else nullcontext()
        )  # our own code leaves torch as it was
        self.compared: list[SharedValues] = []  # values that clients must not write into; in the first round

    def chunk(self, positions: np.ndarray) -> None:
        """Work on consecutive cohort positions, (n,)."""
        raise NotImplementedError

    def partial_result(self) -> PartialResult:
        """Return what has come of the dispatch on this worker."""
        self.check_shared(np.empty(0, np.int64), last=True)
        return PartialResult(self.device.fetch(self.fold.nodes), self.columns.packed(), self.errors, self.seconds)

    def is_machine_fault(self, error: Exception) -> bool:
        """Return whether the machine failed, and not a client."""
        return is_machine_fault(error, (self.job.folder, self.job.scratch))

    def error(self, who: np.ndarray | str, error: Exception, default: str) -> ClientError | MachineError:
        """Return an error with its place: clients or data, round, stage (`default` if none is known), traceback."""
        if self.is_machine_fault(error):
            stage = stage_of(error, default)
            return MachineError(f"round {self.dispatch.round}, stage {stage!r}: {type(error).__name__}: {error}")
        detail = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        return ClientError(who, self.dispatch.round, stage_of(error, default), detail, explain(error))

    @property
    def runs_client_code(self) -> bool:
        """Whether code of the client algorithm runs."""
        return True

    def compare(self, data: SharedValues) -> None:
        """Look after each client whether it has written into `data` or into the broadcast."""
        broadcast = self.dispatch.broadcast
        groups = {**broadcast.shared, **self.downloads.common}
        self.compared = [SharedValues({"ctx.received": groups, "ctx.config": broadcast.config}), data]

    def check_shared(self, positions: np.ndarray, last: bool = False) -> None:
        """Raise a `ClientError` if the clients at some positions, (n,), wrote into values that all clients read.

        `last`: compare large values, too; otherwise they are compared less often (fl/execution/shared_values.py).
        """
        for values in self.compared:
            try:
                values.check(self.dispatch.cohort[positions], last)
            except SharedValueWritten as error:
                raise self.error(np.array(values.suspects), error, self.stage) from None

    @property
    def stage(self) -> str:
        """The stage of errors that name no other one."""
        return self.dispatch.work

    def count(self, direction: str, group: str, positions: np.ndarray, sizes: Sizes) -> None:
        """Count the bytes of a group, for the ledger."""
        rows = np.empty((len(positions), 3), np.int64)
        rows[:, 0], rows[:, 1], rows[:, 2] = sizes.payload_bytes, sizes.encoded_bytes, sizes.arrays
        self.columns.add(positions, {f"{direction}/{group}": rows})

    @cached_property
    def draws(self) -> np.ndarray:
        """The address of draws from global generators, before its last part: a client, or a block of data."""
        return random.hash64_prefix(1, self.job.seed, self.dispatch.number, "module")

    def begin_alone(self, owner: int) -> None:
        """Put the module in its first state, and seed global generators if they may be drawn from.

        Args:
            owner: the client, or the block of the server's data, that the module works for.
        """
        if self.job.seeded:
            seed_generators(random.last_word(self.draws, owner), self.device.kind == "cuda")
        if self.model.facts.state:
            self.state.restore()

    def end_alone(self) -> None:
        """Raise `ModuleChanged` if the module changed a state that the first look did not see change."""
        if surprises := [name for name in self.state.changes() if name not in self.model.facts.state]:
            self.state.restore()
            raise ModuleChanged(
                f"the model changed {', '.join(surprises)}, which a first pass with two samples did not show. Such a "
                "state would pass from client to client; have it change from the first pass on, or not at all"
            )

    def turn_to(self, client: int) -> None:
        """Use a client's own model from now on, if clients have different architectures."""
        if self.job.by_client is None:
            return
        self.model = self.job.by_client.of(client)
        self.module, self.statistics = self.model.module, self.model.statistics
        self.state = self.worker.state_of(self.module)

    def resume(self) -> None:
        """Begin, or go on after the worker has worked on another dispatch."""

    def pause(self) -> None:
        """End, or leave the worker to another dispatch. Raises a `ClientError` for what is found only then."""

    def client_context(
        self, client: int, received: Mapping[str, Tree], config: Mapping[str, Any], record: Tree
    ) -> ClientContext:
        """Return what a client knows. `record`: what is kept of it (fl/execution/client_state.py)."""
        job, facts, statistics = self.job, self.model.facts, self.statistics
        initial = self.model.initial
        if statistics or any(name in initial.frozen for name in facts.state):
            own = initial.frozen.clone()  # training changes them in place
            if statistics and record is not None:
                own.copy_(record["statistics"], names=statistics)
            initial = replace(initial, frozen=own)
        initial = self.initial_tensors(initial, received)
        return ClientContext(
            client=client,
            seed=job.seed,
            round=self.dispatch.round,
            rounds=job.rounds,
            participation=self.dispatch.number,
            received=received,
            config=config,
            state=self.device.put(method_state(job, record)),
            initial=initial,
            module=self.module,
            task=self.task,
            augment=job.augment,
            strong=job.strong,
            micro_batch=job.micro_batch,
            graphs=job.graphs,
            machine_code=self.dispatch.plan.kind == "compiled",
            module_facts=facts,
            facts=None if self.facts is None or client == SERVER else self.facts_of(client),
            training_loop=train,
            train=self._view(client, "train"),
            val=self._view(client, "val"),
            test=self._view(client, "test"),
            unlabelled=self._view(client, "unlabelled").without("y") if self.has_unlabelled else NO_ROWS,
        )

    def initial_tensors(self, initial: Initial, received: Mapping[str, Tree]) -> Initial:
        """Return `initial`, changed by what clients received, see `ClientAlgorithm.initial_tensors`."""
        with during("initial_tensors"), self.isolated:
            return self.job.algorithm.initial_tensors(initial, received)

    def facts_of(self, client: int) -> Tree:
        """Return the facts of a client's training data in the dispatch's period."""
        assert self.facts is not None
        with during("facts"), self.isolated:
            return self.facts.of(self.dispatch.period, client)

    def _view(self, client: int, split: ViewName) -> View:
        if client == SERVER:
            return View(self.job.arrays, np.empty(0, np.int64))
        return View(self.job.arrays_of(client), self.partition.view_rows(client, split))
