"""Evaluation: metrics of a model on the server's test set and on clients' own data, computed by the workers.

eval/*      the server's test set
val/*       clients' validation rows, pooled
clients/*   how a metric is spread over the clients, on their own test rows
train_rows/*   clients' training rows, pooled
unlabelled_rows/*   clients' rows without labels, pooled; workers have their true labels for this alone
taskN/*     in a stream: the test rows of each task so far; eval/* is then their unweighted mean

Several stages: the metrics of the first have these names, the others begin with their stage, as in trained/val/loss.
A metric that does not pool has no pooled value; val/* and train_rows/* then have its spread over the clients.
"""

from __future__ import annotations

import math

import numpy as np

from fl.config.sections import Evaluation, Stage
from fl.data.partition import ViewName
from fl.errors import ConfigError
from fl.method.messages import Broadcast
from fl.method.requests import Evaluate
from fl.simulation.exchange import ExchangeRunner
from fl.simulation.setup import RunSetup, split_counts
from fl.simulation.totals import Row, weighted_mean
from fl.tasks.statistics import forgetting, gini
from fl.tasks.task import EVALUATION_BLOCK, minimised, pooled

SPLIT_PREFIXES: dict[ViewName, str] = {
    "val": "val",
    "test": "clients",
    "train": "train_rows",
    "unlabelled": "unlabelled_rows",
}


def evaluate(exchanges: ExchangeRunner, broadcast: Broadcast, name: str = "") -> Row:
    """Return all metrics that the configuration asks for.

    Args:
        exchanges: carries out the evaluations.
        broadcast: the model, and the groups that clients receive with it.
        name: name of the model, a prefix of its metrics; "" for none.
    """
    setup = exchanges.run_setup
    row: Row = {}
    if setup.config.evaluation.server and setup.dataset.test is not None:
        tasks = [_on_server(exchanges, broadcast, period) for period in range(exchanges.period + 1)]
        row |= {f"eval/{metric}": float(np.mean([task[metric] for task in tasks])) for metric in tasks[0]}
        if len(setup.periods) > 1:
            row |= {f"task{s}/{metric}": value for s, task in enumerate(tasks) for metric, value in task.items()}
    for prefix, stage in stage_prefixes(setup.config.evaluation):
        for split in setup.config.evaluation.splits:
            found = _on_clients(exchanges, broadcast, stage, split, f"{name and name + '/'}{prefix}{split}")
            row |= {f"{prefix}{metric}": value for metric, value in found.items()}
    return {f"{name}/{metric}": value for metric, value in row.items()} if name else row


def all_evaluated(setup: RunSetup, period: int) -> np.ndarray:
    """Return the clients that are evaluated on any split in a period, ascending."""
    clients = [setup.evaluated(period, split) for split in setup.config.evaluation.splits]
    return np.unique(np.concatenate([np.empty(0, np.int64), *clients]))


def stage_prefixes(evaluation: Evaluation) -> list[tuple[str, Stage]]:
    """Return the prefix of the metrics of each stage: none for the first one.

    >>> stage_prefixes(Evaluation(stage=("received", "trained")))
    [('', 'received'), ('trained/', 'trained')]
    """
    first, *others = evaluation.stages
    return [("", first), *((f"{stage}/", stage) for stage in others)]


def _on_clients(exchanges: ExchangeRunner, broadcast: Broadcast, stage: Stage, split: ViewName, label: str) -> Row:
    """Return metrics of clients on a split of their own rows. `label` names them in the table of client metrics."""
    setup = exchanges.run_setup
    clients, period = setup.evaluated(exchanges.period, split), setup.periods[exchanges.period]
    if not len(clients):
        return {}
    counts, metrics = split_counts(period.partition, split), period.task.metrics()
    result = exchanges.dispatch(
        kind="evaluate",
        work=stage,
        cohort=clients,
        broadcast=broadcast,
        reduction=pooled(metrics),
        plan=setup.plan.in_loop("clients share forward passes", clients_per_chunk(counts[clients])),
        split=split,
    )
    answered = ~result.columns.column("dropped", len(clients), False)  # a deployment may have lost clients
    each = {name: values[answered] for name, values in result.columns.metrics(len(clients)).items()}
    clients = clients[answered]
    exchanges.folder.clients.add(exchanges.ledger_round, label, clients, counts[clients], each)
    prefix = SPLIT_PREFIXES[split]
    row: Row = {} if split == "test" else {f"{prefix}/{name}": value for name, value in result.value.items()}
    for name, values in each.items():
        if split == "test" or not metrics[name].pools:
            figures = spread(values, counts[clients], minimised(name))
            row |= {f"{prefix}/{name}_{key}": figure for key, figure in figures.items()}
    return row


def metric_names(setup: RunSetup) -> list[str]:
    """Return the names of the metrics of an evaluation of one model."""
    evaluation = setup.config.evaluation
    metrics = {name: metric for period in setup.periods for name, metric in period.task.metrics().items()}
    pooling = [name for name, metric in metrics.items() if metric.pools]
    names = [f"eval/{name}" for name in pooling] if evaluation.server and setup.dataset.test is not None else []
    for stage, _ in stage_prefixes(evaluation):
        for split in evaluation.splits:
            if not any(np.any(split_counts(period.partition, split)) for period in setup.periods):
                continue
            prefix, spread_over = f"{stage}{SPLIT_PREFIXES[split]}", set(metrics)
            if split != "test":
                names += [f"{prefix}/{name}" for name in pooling]
                spread_over -= set(pooling)
            names += [f"{prefix}/{name}_{figure}" for name in metrics if name in spread_over for figure in FIGURES]
    return names


def add_period(matrix: list[list[float]], row: Row, period: int) -> Row:
    """Add the accuracies at the end of a stream's period to their matrix, and return the stream's metrics.

    Args:
        matrix: accuracy on each task after each task, see `forgetting`.
        row: metrics of the evaluation; without accuracies by task, nothing happens.
        period: the period that ends.
    """
    if "task0/accuracy" not in row:
        return {}
    matrix.append([row[f"task{s}/accuracy"] for s in range(period + 1)])
    return {f"stream/{name}": value for name, value in forgetting(matrix).items()}


def assess(exchanges: ExchangeRunner, request: Evaluate, evaluating: bool) -> dict[str, Row]:
    """Carry out an evaluation that a strategy asks for; return set of rows -> metric -> value.

    Args:
        exchanges: the run's exchanges.
        request: the strategy's request.
        evaluating: whether it comes from `evaluation`, whose answers do not reach the strategy's state.

    Raises:
        ConfigError: a private run would tell the strategy about single clients.
    """
    broadcast = Broadcast.of(request.broadcast)
    if exchanges.run_setup.dataset.parties:
        raise ValueError(
            "Evaluate: workers have no labels in a vertical federation; yield Exchange(..., free=True) and measure on "
            "the server, with ctx.test"
        )
    if request.cohort is None:
        return {name: _on_server(exchanges, broadcast, exchanges.period, rows) for name, rows in request.rows.items()}
    if exchanges.private is not None and not evaluating:
        raise ConfigError(
            "privacy",
            "the strategy evaluates the models of single clients outside of `evaluation`, and what it learns has no "
            "noise; use another strategy, or leave privacy out",
        )
    cohort, answer = np.unique(np.asarray(request.cohort, np.int64)), {}
    for name, rows in request.rows.items():
        result = exchanges.dispatch(
            kind="evaluate",
            work=request.stage,
            cohort=cohort,
            broadcast=broadcast,
            reduction=pooled(exchanges.run_setup.periods[exchanges.period].task.metrics()),
            plan=exchanges.run_setup.plan.in_loop("each client has its own model"),
            rows=np.asarray(rows, np.int64),
        )
        answer[name] = result.value
    return answer


def _on_server(exchanges: ExchangeRunner, broadcast: Broadcast, period: int, rows: np.ndarray | None = None) -> Row:
    """Return metrics on rows of the server's test set; by default the rows of a period."""
    part, test = exchanges.run_setup.periods[period], exchanges.run_setup.dataset.test
    if rows is None:
        assert test is not None
        rows = np.arange(len(test["x"])) if part.test is None else part.test
    result = exchanges.dispatch(
        kind="evaluate_server",
        work="received",
        period=period,
        cohort=np.arange(-(-len(rows) // part.task.evaluation_block)),
        broadcast=broadcast,
        reduction=pooled(part.task.metrics()),
        plan=exchanges.run_setup.plan.in_loop("blocks of the server's data"),
        rows=np.asarray(rows, np.int64),
    )
    return result.value


def clients_per_chunk(counts: np.ndarray) -> int:
    """Return how many clients share forward passes, a power of two: enough to fill one, and 64 to 1024.

    Args:
        counts: evaluated samples of each client, (n,), n > 0.

    >>> [clients_per_chunk(np.full(5, samples)) for samples in (1, 3, 500)]
    [1024, 512, 64]
    """
    fill = math.ceil(EVALUATION_BLOCK / float(counts.mean()))
    return min(max(1 << (fill - 1).bit_length(), 64), 1024)


FIGURES = ("mean", "weighted", "std", "worst10", "gini")  # of `spread`
ENOUGH = 10  # test samples of a client that counts for worst10: with fewer, one mistake means a low accuracy


def spread(values: np.ndarray, num_examples: np.ndarray, low_is_good: bool = False) -> Row:
    """Return how a metric x (N,) is spread over clients. Clients without a value (NaN) are left out.

    mean    weighted (by samples)    std = sqrt(mean (x - mean)^2)
    worst10: mean of the worst ceil(n / 10) of the n clients with `ENOUGH` samples; of all clients if none has enough
    gini = sum_ij |x_i - x_j| / (2 N^2 mean), 0 if all are equal; missing if a value is negative
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
