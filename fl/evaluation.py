"""Evaluation: metrics of a model on the server's test set and on clients' own data, computed by the workers.

eval/*      the server's test set           val/*   clients' validation rows, pooled
clients/*   how a metric is spread over the clients, on their own test rows
"""

from __future__ import annotations

import math

import numpy as np

from fl import random
from fl.exchange import Exchanges, Row, weighted_mean
from fl.execution.plan import Plan
from fl.execution.worker import EVALUATION_BLOCK, EVALUATION_CHUNK
from fl.messages import Broadcast
from fl.reduction import Product


def evaluate(exchanges: Exchanges, broadcast: Broadcast) -> Row:
    """All metrics that the run's configuration asks for; `broadcast` holds the model, and what clients receive with it."""
    assembly, row = exchanges.assembly, {}
    metrics, test = Product(assembly.config.task.metrics()), assembly.dataset.test
    if assembly.config.evaluation.server and test is not None:
        blocks = np.arange(-(-len(test["x"]) // EVALUATION_BLOCK))
        plan = Plan("loop", 1, "blocks of the server's data")
        done = exchanges.dispatch(
            kind="evaluate_server", work="received", cohort=blocks, broadcast=broadcast, reduction=metrics, plan=plan
        )
        row |= {f"eval/{name}": value for name, value in done.value.items()}
    partition, plan = assembly.partition, Plan("loop", EVALUATION_CHUNK, "clients share forward passes")
    for split, held in (("val", partition.val), ("test", partition.test)):
        clients = _evaluated(exchanges, held)
        if not len(clients):
            continue
        done = exchanges.dispatch(
            kind="evaluate",
            work=assembly.config.evaluation.stage,
            cohort=clients,
            broadcast=broadcast,
            reduction=metrics,
            plan=plan,
            split=split,
        )
        own = done.columns.metrics(len(clients))
        exchanges.folder.add_clients(exchanges.booked, split, clients, held[clients], own)
        if split == "val":
            row |= {f"val/{name}": value for name, value in done.value.items()}
            continue
        for name, values in own.items():
            row |= {f"clients/{name}_{key}": x for key, x in spread(values, held[clients], "loss" in name).items()}
    return row


def _evaluated(exchanges: Exchanges, held: np.ndarray) -> np.ndarray:
    """The clients that evaluations are made on: those with held-out rows, or as many of them as asked for, drawn once."""
    config = exchanges.assembly.config
    clients, wanted = np.flatnonzero(held), config.evaluation.clients
    if wanted == "all" or wanted >= len(clients):
        return clients
    return np.sort(clients[random.permutation(len(clients), config.seed, "evaluation")[:wanted]])


def spread(values: np.ndarray, num_examples: np.ndarray, low_is_good: bool = False) -> Row:
    """How a metric is spread over clients: mean, weighted (by samples), std, and worst10, the mean of the worst
    ceil(N / 10) clients."""
    worst = np.sort(-values if low_is_good else values)[: math.ceil(len(values) / 10)].mean()
    return {
        "mean": float(values.mean()),
        "weighted": weighted_mean(values, num_examples),
        "std": float(values.std()),
        "worst10": float(-worst if low_is_good else worst),
    }
