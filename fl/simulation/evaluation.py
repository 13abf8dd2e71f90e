"""Evaluation: metrics of a model on the server's test set and on clients' own data, computed by the workers.

eval/*      the server's test set           val/*   clients' validation rows, pooled
clients/*   how a metric is spread over the clients, on their own test rows
taskN/*     of a stream, the test rows of each task met so far; eval/* then is their unweighted mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fl.execution.training.plan import Plan
from fl.execution.worker import EVALUATION_BLOCK, EVALUATION_CHUNK
from fl.method.messages import Broadcast
from fl.method.reduction import Product
from fl.method.strategy import Evaluate
from fl.simulation.exchange import ExchangeRunner, Row, weighted_mean
from fl.tasks.task import minimised
from fl.tensors import random


def evaluate(exchanges: ExchangeRunner, broadcast: Broadcast) -> Row:
    """All metrics that the run's configuration asks for; `broadcast` holds the model, and what clients receive with it."""
    run_setup, row = exchanges.run_setup, {}
    if run_setup.config.evaluation.server and run_setup.dataset.test is not None:
        tasks = [_on_server(exchanges, broadcast, period) for period in range(exchanges.period + 1)]
        row |= {f"eval/{name}": float(np.mean([task[name] for task in tasks])) for name in tasks[0]}
        if len(run_setup.periods) > 1:
            row |= {f"task{s}/{name}": value for s, task in enumerate(tasks) for name, value in task.items()}
    period, plan = run_setup.periods[exchanges.period], Plan("loop", EVALUATION_CHUNK, "clients share forward passes")
    for split, held in (("val", period.partition.val), ("test", period.partition.test)):
        clients = _evaluated(exchanges, held)
        if not len(clients):
            continue
        done = exchanges.dispatch(
            kind="evaluate",
            work=run_setup.config.evaluation.stage,
            cohort=clients,
            broadcast=broadcast,
            reduction=Product(period.task.metrics()),
            plan=plan,
            split=split,
        )
        own = done.columns.metrics(len(clients))
        exchanges.folder.clients.add(exchanges.booked, split, clients, held[clients], own)
        if split == "val":
            row |= {f"val/{name}": value for name, value in done.value.items()}
            continue
        for name, values in own.items():
            row |= {f"clients/{name}_{key}": x for key, x in spread(values, held[clients], minimised(name)).items()}
    return row


def assess(exchanges: ExchangeRunner, request: Evaluate) -> dict[str, Row]:
    """What a strategy asks for in the middle of a round: set of rows -> metric -> value."""
    broadcast = Broadcast.of(request.broadcast)
    if request.cohort is None:
        return {name: _on_server(exchanges, broadcast, exchanges.period, rows) for name, rows in request.rows.items()}
    cohort, answer = np.unique(np.asarray(request.cohort, np.int64)), {}
    for name, rows in request.rows.items():
        done = exchanges.dispatch(
            kind="evaluate",
            work=request.stage,
            cohort=cohort,
            broadcast=broadcast,
            reduction=Product(exchanges.run_setup.periods[exchanges.period].task.metrics()),
            plan=Plan("loop", 1, "each client's own"),
            rows=np.asarray(rows, np.int64),
        )
        answer[name] = done.value
    return answer


def _on_server(exchanges: ExchangeRunner, broadcast: Broadcast, period: int, rows: np.ndarray | None = None) -> Row:
    """Metrics on rows of the server's test set; by default those that a period asks for."""
    part = exchanges.run_setup.periods[period]
    if rows is None:
        rows = np.arange(len(exchanges.run_setup.dataset.test["x"])) if part.test is None else part.test
    done = exchanges.dispatch(
        kind="evaluate_server",
        work="received",
        period=period,
        cohort=np.arange(-(-len(rows) // EVALUATION_BLOCK)),
        broadcast=broadcast,
        reduction=Product(part.task.metrics()),
        plan=Plan("loop", 1, "blocks of the server's data"),
        rows=np.asarray(rows, np.int64),
    )
    return done.value


def forgetting(matrix: Sequence[Sequence[float]]) -> Row:
    """Of a[t][s], the accuracy on task s after task t (s <= t, T the last t):

    acc = mean_s a[T][s]    fgt = mean_{s<T} (max_{s<=t<T} a[t][s] - a[T][s])    bwt = mean_{s<T} (a[T][s] - a[s][s])

    Chaudhry, Dokania, Ajanthan, Torr 2018, arXiv:1801.10112 (forgetting); Lopez-Paz, Ranzato 2017, arXiv:1706.08840.
    """
    last = matrix[-1]
    row = {"acc": float(np.mean(last))}
    if len(matrix) > 1:
        before = range(len(last) - 1)
        row["fgt"] = float(np.mean([max(a[s] for a in matrix[s:-1]) - last[s] for s in before]))
        row["bwt"] = float(np.mean([last[s] - matrix[s][s] for s in before]))
    return row


def _evaluated(exchanges: ExchangeRunner, held: np.ndarray) -> np.ndarray:
    """The clients that evaluations are made on: those with rows for it, or as many of them as asked for, drawn once."""
    config, trainable = exchanges.run_setup.config, exchanges.run_setup.trainable
    clients, wanted = np.flatnonzero(held), config.evaluation.clients
    if wanted == "held_out":
        return clients[clients >= trainable]
    clients = clients[clients < trainable]
    if wanted == "all" or wanted >= len(clients):
        return clients
    return np.sort(clients[random.permutation(len(clients), config.seed, "evaluation")[:wanted]])


ENOUGH = 10  # test samples of a client that counts among the worst: of fewer, one mistake is a low accuracy


def spread(values: np.ndarray, num_examples: np.ndarray, low_is_good: bool = False) -> Row:
    """How a metric x (N,) is spread over clients, those without a value (NaN) left out:

    mean    weighted (by samples)    std = sqrt(mean (x - mean)^2)
    worst10: the mean of the worst ceil(n / 10) of the n clients with `ENOUGH` samples; of all, if none has
    gini = sum_ij |x_i - x_j| / (2 N^2 mean), 0 where all are equal; not there if a value is negative
    """
    known = ~np.isnan(values)
    if known.any():
        values, num_examples = values[known], num_examples[known]
    counted = values[num_examples >= ENOUGH] if (num_examples >= ENOUGH).any() else values
    worst = np.sort(-counted if low_is_good else counted)[: math.ceil(len(counted) / 10)].mean()
    row = {
        "mean": float(values.mean()),
        "weighted": weighted_mean(values, num_examples),
        "std": float(values.std()),
        "worst10": float(-worst if low_is_good else worst),
    }
    if (values >= 0).all():
        row["gini"] = gini(values)
    return row


def gini(values: np.ndarray) -> float:
    """sum_ij |x_i - x_j| / (2 N^2 mean) of x (N,) >= 0, by the ranks of x: sum_i (2 i - N - 1) x_(i) / (N sum x)."""
    n, total = len(values), values.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(values) / (n * total)) if total > 0 else 0.0
