"""Evaluation on a worker: metrics of clients on their own data, and of the model on blocks of the server's data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fl.data.views import View
from fl.execution.client_state import method_state
from fl.execution.dispatch import ExchangeDispatch
from fl.execution.exchange_worker import SERVER, ExchangeWorker
from fl.execution.isolation import as_error
from fl.execution.training.customised import overrides
from fl.execution.training.memory_format import use_memory_format
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext
from fl.method.facts import data_facts
from fl.method.local_training import LocalTraining
from fl.models.batch_norm import depends_on_batch
from fl.storage.segments import states_of
from fl.tasks.task import Metric
from fl.tensors.trees import row

if TYPE_CHECKING:
    from fl.execution.job import Job
    from fl.execution.worker import Worker

Predictor = Callable[[Tensor], Tensor]


class Evaluation(ExchangeWorker):
    """What both kinds of evaluation share."""

    category = "evaluate"

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """What is measured: all metrics of the task on clients, those that pool on the server's data."""
        clients = self.dispatch.kind == "evaluate"
        return {name: metric for name, metric in self.task.metrics().items() if clients or metric.pools}

    @property
    def stage(self) -> str:
        """The stage of errors."""
        return f"evaluate/{self.dispatch.work}"

    def measure(
        self,
        positions: np.ndarray,
        net: Predictor,
        rows: np.ndarray,
        counts: np.ndarray,
        arrays: Mapping[str, Tensor],
    ) -> None:
        """Measure a model on several lists of rows: fold the metrics, and enter each list's own as columns.

        Args:
            positions: one cohort position per list, (n,).
            net: x -> outputs.
            rows: rows into `arrays`, one list after another.
            counts: length of each list, (n,).
            arrays: data by name, first axis the sample.
        """
        reduction, metrics = self.dispatch.reduction, self.metrics
        owners, lists = np.repeat(np.arange(len(counts)), counts), len(counts)
        view = View(arrays, rows)
        accs: dict[str, Any] = {}
        size = self.task.evaluation_block
        images = use_memory_format(self.module, self.dispatch.plan.memory_format)
        with images, torch.inference_mode(), self.device.computing():
            for a in range(0, max(len(view), 1), size):
                batch = view.take(slice(a, a + size))
                segments = torch.as_tensor(owners[a : a + size])
                outputs = net(batch["x"])
                for name, metric in metrics.items():
                    part = metric.measure(outputs, batch, segments, lists)
                    accs[name] = metric.merge(accs[name], part) if name in accs else part
        accs = self.device.fetch(accs)
        for name, metric in metrics.items():
            self.columns.add(positions, {f"metric/{name}": metric.each(accs[name], lists)})
        self.columns.add(positions, {"num_examples": counts})
        accs = {name: acc for name, acc in accs.items() if metrics[name].pools}
        if reduction.batched:
            self.fold.add_stacked(int(positions[0]), len(positions), self.fold.stacked(accs, len(positions)))
        else:
            for i, position in enumerate(positions):
                self.fold.add(0, int(position), row(accs, i))


class ClientEvaluation(Evaluation):
    """Metrics of clients on a split of their own data, or on rows of the server's data."""

    def __init__(self, worker: Worker, dispatch: ExchangeDispatch):
        super().__init__(worker, dispatch)
        self.shared = predicts_together(self.job, dispatch)

    @property
    def runs_client_code(self) -> bool:
        """The received model predicts without any."""
        return not self.shared

    def chunk(self, positions: np.ndarray) -> None:
        """Evaluate the clients at `positions`."""
        clients = self.dispatch.cohort[positions]
        if self.shared:
            try:
                self.begin_alone(int(clients[0]))
                self._together(positions, clients)
                self.end_alone()
            except BaseException as error:
                raise self.error(clients, as_error(error), self.stage) from None
            self.check_shared(positions)
            return
        for position, client in zip(positions, clients):
            try:
                self.turn_to(int(client))
                self.begin_alone(int(client))
                self._one(position[None], int(client))
                self.end_alone()
            except BaseException as error:
                raise self.error(np.array([client]), as_error(error), self.stage) from None
            self.check_shared(position[None])

    @property
    def _arrays(self) -> Mapping[str, Tensor]:
        """The clients' data, with the true labels if these are measured."""
        if self.dispatch.split != "unlabelled" or self.job.true_labels is None:
            return self.job.arrays
        return {**self.job.arrays, "y": self.job.true_labels}

    def _together(self, positions: np.ndarray, clients: np.ndarray) -> None:
        rows, counts = self.partition.views_rows(clients, self.dispatch.split)
        ctx = self.client_context(int(clients[0]), self.downloads.common, {}, None)
        self.measure(positions, ctx.net(self.downloads.common["model"]), rows, counts, self._arrays)

    def _one(self, at: np.ndarray, client: int) -> None:
        d = self.dispatch
        with states_of(d.cohort[at], d.states[at]):
            record = self.worker.states.read(d.states[at[0]])
        received, config, _ = self.downloads.of(client, {}, method_state(self.job, record))
        ctx = self.client_context(client, received, config, record)
        net = self._predictor(ctx)
        rows = getattr(ctx, d.split).rows if d.rows is None else d.rows
        self.measure(at, net, rows, np.array([len(rows)]), self._arrays if d.rows is None else self.job.server_arrays)

    def _predictor(self, ctx: ClientContext) -> Predictor:
        """Return a client's predictor: as received, after its own training, or after adapting to some samples."""
        algorithm = self.job.algorithm
        if self.dispatch.work == "adapted":
            assert self.job.adapt is not None
            algorithm = self.job.adapt
            train, facts = View(ctx.train.arrays, ctx.train.rows[: self.job.shots]), None
            if isinstance(algorithm, LocalTraining):
                facts = self.device.put(data_facts(algorithm, train, self.task, self.job.facts.outputs))
            ctx = replace(ctx, train=train, facts=facts)
        if self.dispatch.work != "received":
            with (
                use_memory_format(self.module, self.dispatch.plan.memory_format),
                self.device.computing(),
                self.isolated,
            ):
                reply = algorithm.work("train", ctx, None)
            ctx = algorithm.context_after_training(ctx, reply)
        with self.device.computing(), self.isolated:
            return algorithm.predictor(ctx)


class ServerEvaluation(Evaluation):
    """Metrics of the model on blocks of the server's data; the cohort are block numbers."""

    @property
    def runs_client_code(self) -> bool:
        """The server has no client."""
        return False

    def chunk(self, positions: np.ndarray) -> None:
        """Evaluate the blocks at `positions`."""
        numbers = self.dispatch.cohort[positions]
        try:
            self.turn_to(SERVER)
            self.begin_alone(int(numbers[0]))
            self._blocks(positions, numbers)
            self.end_alone()
        except BaseException as error:
            who = f"block {', '.join(map(str, numbers))} of the server's data"
            raise self.error(who, as_error(error), self.stage) from None

    def _blocks(self, positions: np.ndarray, numbers: np.ndarray) -> None:
        rows = self.dispatch.rows
        assert rows is not None
        size = self.task.evaluation_block
        blocks = [rows[k * size : (k + 1) * size] for k in numbers]
        config = self.dispatch.broadcast.config
        config = config(SERVER) if callable(config) else config
        with self.device.computing():
            net = self.job.algorithm.predictor(self.client_context(SERVER, self.downloads.common, config, None))
        self.measure(positions, net, np.concatenate(blocks), np.array(list(map(len, blocks))), self.job.server_arrays)


def predicts_together(job: Job, dispatch: ExchangeDispatch) -> bool:
    """Whether all clients predict by the received model, so that one forward pass serves many. No state is read."""
    return (
        dispatch.rows is None
        and dispatch.work == "received"
        and dispatch.broadcast.uniform
        and predicts_with_received_model(job.algorithm)
        and not (depends_on_batch(job.module) or job.statistics or job.by_client)
    )


def predicts_with_received_model(algorithm: ClientAlgorithm) -> bool:
    """Whether a client predicts with the received model, so that all clients that receive the same predict the same."""
    plain = type(algorithm).predictor in (ClientAlgorithm.predictor, LocalTraining.predictor)
    return plain and not (isinstance(algorithm, LocalTraining) and overrides(algorithm, "start"))
