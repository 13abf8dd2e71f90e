"""A worker: a resident object with the data, the model's structure and the job.

The serial executor is one worker, or a few threads.

task -> chunk of cohort positions -> what each client receives -> client work -> codec ~~> reduction
        (downloads.py)               (client_work.py, training/)   (uploads.py)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fl.data.views import View
from fl.execution.client_facts import ClientFacts
from fl.execution.client_work import BatchedWork, LoopWork
from fl.execution.dispatch import DispatchGroup, ExchangeDispatch
from fl.execution.evaluation import ClientEvaluation, ServerEvaluation
from fl.execution.exchange_worker import ExchangeWorker
from fl.execution.hidden_state import HiddenState, HiddenStateWatch
from fl.execution.isolation import isolated
from fl.execution.shared_values import SharedValues
from fl.execution.submissions import SubmitWork
from fl.execution.training import compiled
from fl.execution.training.customised import overrides
from fl.execution.workers.process import MemoryWatch, configure_process
from fl.method.facts import data_facts
from fl.method.local_training import LocalTraining
from fl.models.probe import ModuleState
from fl.storage.segments import Segments
from fl.tensors.trees import Tree
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.execution.job import Job


class Worker:
    """Works through tasks of dispatches.

    Args:
        job: what does not change during the run.
        writer: number of the segments that this worker writes.
        open_store: opens the job's folders of segments.
    """

    def __init__(self, job: Job, writer: int, open_store: Callable[[Path], Segments] = Segments):
        configure_process()
        job.device.prepare()
        compiled.load(job.machine_code)
        self.job, self.writer = job.placed(), writer
        self.slices = [period.partition.train_slices() for period in job.periods]
        self.has_unlabelled = [bool(period.partition.unlabelled.any()) for period in job.periods]
        self.states, self.scratch = map(open_store, job.stores)
        self.scratch.write_to(writer)
        self.round: int | None = None  # of the files in `scratch`
        self.first_round: int | None = None
        self.module_states = [(model.module, ModuleState(model.module)) for model in self.job.models]
        self.hidden_state = HiddenStateWatch(job.watched)
        self.memory = MemoryWatch()

    @cached_property
    def facts(self) -> ClientFacts | None:
        """Facts of clients' data; None if the client algorithm has none."""
        job, algorithm = self.job, self.job.algorithm
        if not isinstance(algorithm, LocalTraining) or not overrides(algorithm, "facts"):
            return None

        def compute(period: int, client: int) -> Tree:
            part = job.periods[period]
            view = View(job.arrays, part.partition.view_rows(client, "train"))
            return job.device.put(data_facts(algorithm, view, part.task, job.facts.outputs))

        return ClientFacts(compute)

    def run(self, dispatch: ExchangeDispatch | DispatchGroup, tasks: Iterable[tuple[int, int]], segment: int) -> Any:
        """Work through runs [a, b) of task numbers; return the partial result. New client states go to `segment`."""
        self.states.write_to(segment)
        started: dict[int, ExchangeWorker] = {}
        present: ExchangeWorker | None = None
        with isolated() if self.job.seeded else nullcontext():
            for task in (task for first, last in tasks for task in range(first, last)):
                index, one, own = dispatch.at(task)
                if index not in started:
                    started[index] = self.begin(one)
                exchange, start = started[index], time.perf_counter()
                if exchange is not present:
                    if present is not None:
                        present.pause()
                    exchange.resume()
                    present = exchange
                with span(exchange.category, "task", task):
                    positions = one.positions(own)
                    exchange.chunk(positions)
                    self.memory.after_chunk()
                    if self.hidden_state.places:
                        self._check_hidden_state(exchange, positions)
                exchange.seconds += time.perf_counter() - start
            if present is not None:
                present.pause()
        return dispatch.partial_result({index: exchange.partial_result() for index, exchange in started.items()})

    def _check_hidden_state(self, exchange: ExchangeWorker, positions: np.ndarray) -> None:
        """Raise a `ClientError` if a user's part changed itself in the work at some positions, (n,)."""
        dispatch = exchange.dispatch
        try:
            self.hidden_state.check(f"round {dispatch.round}")
        except HiddenState as error:
            if dispatch.kind == "evaluate_server":
                raise exchange.error("the server's test set", error, "evaluate") from None
            stage = dispatch.work if dispatch.kind in ("work", "submit") else "evaluate"
            raise exchange.error(dispatch.cohort[positions], error, stage) from None

    def state_of(self, module: nn.Module) -> ModuleState:
        """Return the first state of a module: one of the run's, or the skeleton of a dispatch."""
        known = next((state for own, state in self.module_states if own is module), None)
        return ModuleState(module) if known is None else known

    def begin(self, dispatch: ExchangeDispatch) -> ExchangeWorker:
        """Begin a dispatch. Carries and spilled updates of an earlier round are dropped."""
        if dispatch.round != self.round:
            self.first_round = dispatch.round if self.round is None else None
            self.round = dispatch.round
            self.scratch.empty()
        exchange = self._exchange(dispatch)
        if dispatch.round == self.first_round and exchange.runs_client_code:
            exchange.compare(self.data)
        return exchange

    def _exchange(self, dispatch: ExchangeDispatch) -> ExchangeWorker:
        if dispatch.kind == "evaluate":
            return ClientEvaluation(self, dispatch)
        if dispatch.kind == "evaluate_server":
            return ServerEvaluation(self, dispatch)
        if dispatch.kind == "submit":
            return SubmitWork(self, dispatch)
        return LoopWork(self, dispatch) if dispatch.plan.kind == "loop" else BatchedWork(self, dispatch)

    @cached_property
    def data(self) -> SharedValues:
        """Hashes of what clients read in all rounds."""
        by_client = self.job.by_client
        initial = self.job.initial if by_client is None else {model.name: model.initial for model in by_client.models}
        return SharedValues({"ctx.initial": initial, "ctx.train.arrays": self.job.arrays}, thrifty=True)

    def close(self) -> None:
        """Close the files of client states, carries and spilled updates."""
        self.states.close()
        self.scratch.close()
