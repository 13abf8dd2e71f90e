"""Federated Reconnaissance: new classes in the field, learnt as prototypes of a fixed encoder and merged exactly.

    once      encoder <- meta-training on the server's own (base) classes
    mission   clients send (c, n, m) for their classes;    S_c <- S_c + n m,   N_c <- N_c + n,   mu_c = S_c / N_c
              the table (c, N_c, mu_c) goes to all clients; they predict with the nearest prototype

Hendryx, KC, Walls, Morrison 2021, arXiv:2109.00150.  Sums are kept in float64.  A round is a mission.  The encoder is
sent to a client once, the whole table in every mission.  Uplink per client and mission: (D + 1) numbers and an id for
each class, whatever the number of images and the size of the encoder.  `strategies/episodes.py` has the
meta-training.
Differs from the authors' program: clients send increments, so that re-visited classes get their right weight.
Metrics: start/base; after/{base, field}, the merged table on the base classes and on all field classes seen; with
`before` also before/{base, seen, new, mean}: a client's own table before the merge, on the base classes, the field
classes seen until then, and those of its own mission; the mean over clients.
Equals FedAvg: no setting; a round trains nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl import (
    Broadcast,
    ClassMean,
    Evaluate,
    Exchange,
    Meta,
    Params,
    Reduction,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Static,
    Strategy,
    Table,
    checks,
    join,
    register,
)

from .episodes import class_sums, meta_train

Reported = tuple[tuple[int, Tensor], ...]  # (client, its classes)
Accuracies = Generator[Evaluate, Any, dict[str, float]]


@dataclass(frozen=True)
class State:
    """The encoder and the table of classes.

    Args:
        model: the encoder: all tensors and running statistics; fixed after setup.
        table: sums of embeddings (float64) and counts by class; None before the first sample.
    """

    model: Params
    table: Table | None


class ClassSums(ClassMean):
    """Per class the sums over clients of n m (float64) and of n."""

    def finish(self, acc: Table) -> Table:
        return acc


class Reports(Reduction):
    """(the sums, the classes of each client), for evaluations before the merge."""

    def lift(self, value: Table, meta: Meta) -> tuple[Table, Reported]:
        return ClassSums().lift(value, meta), ((int(meta.client), value.keys),)

    def merge(self, a: tuple[Table, Reported], b: tuple[Table, Reported]) -> tuple[Table, Reported]:
        return ClassSums().merge(a[0], b[0]), a[1] + b[1]


@register("strategy", "reconnaissance")
@dataclass(frozen=True, kw_only=True)
class Reconnaissance(Strategy):
    """Learn new classes as prototypes.

    Args:
        episodes: episodes of meta-training on the server, at least 0.
        ways: classes of an episode, at least 2.
        shots: samples of each class that make its prototype, at least 1.
        queries: samples of each class that are classified, at least 1.
        lr: learning rate of the meta-training, positive; it is halved every 2,000 episodes.
        rotate: rotate each class of an episode by a random multiple of 90 degrees.
        base: keep the prototypes of the server's own classes in the table.
        before: also evaluate each client before the merge, which takes most of the run's time.
    """

    episodes: int = 50_000
    ways: int = 5
    shots: int = 5
    queries: int = 5
    lr: float = 1e-3
    rotate: bool = True
    base: bool = True
    before: bool = False

    client: ClassVar[str] = "reconnaissance"
    later_metrics: ClassVar[tuple[str, ...]] = ("after/*", "before/*")
    example_config: ClassVar[dict[str, Any]] = {"strategy.episodes": 0}

    def __post_init__(self) -> None:
        checks.at_least(0, episodes=self.episodes)
        checks.at_least(2, ways=self.ways)
        checks.at_least(1, shots=self.shots, queries=self.queries)
        checks.positive(lr=self.lr)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(join(model, ctx.frozen) if len(ctx.frozen) else model, None)

    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if not ctx.server:
            if self.episodes:
                raise ValueError("episodes: the data have no classes for the server to train on; set episodes: 0")
            return state, {}
        x, y = ctx.server["x"], ctx.server["y"]
        if self.episodes:
            settings = (self.episodes, self.ways, self.shots, self.queries, self.lr, self.rotate, ctx.seed)
            state = replace(state, model=(yield ServerWork(meta_train, (ctx.module, state.model, x, y, *settings))))
        if not self.base:
            return state, {}
        table = yield ServerWork(class_sums, (ctx.module, state.model, x, y))
        state = replace(state, table=table)
        return state, (yield from self._accuracies(state, {"start/base": rows_of(table.keys, ctx)}, ctx))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast(shared={"table": as_means(state.table)}, static={"encoder": Static(0, state.model)})

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        before = self.before and bool(ctx.test)
        outcome = yield Exchange(self.broadcast(state, ctx), {"table": Reports() if before else ClassSums()})
        if outcome.value is None:
            return state, {}
        sums, reports = outcome.value["table"] if before else (outcome.value["table"], ())
        table = sums if state.table is None else state.table.merge(sums)
        merged = replace(state, table=table)
        metrics: dict[str, float] = {"classes": len(table.keys)}
        if reports:
            metrics |= yield from self._accuracies_before(state, reports, ctx)
        base, field = kinds(table, ctx)
        sets = {"after/base": rows_of(base, ctx), "after/field": rows_of(field, ctx)}
        return merged, metrics | (yield from self._accuracies(merged, sets, ctx))

    def _accuracies(self, state: State, sets: dict[str, np.ndarray], ctx: ServerContext, **clients: Any) -> Accuracies:
        """Evaluate, and return set -> accuracy for the sets that have rows."""
        sets = {name: rows for name, rows in sets.items() if len(rows)}
        if not sets:
            return {}
        answer = yield Evaluate(self.broadcast(state, ctx), sets, **clients)
        return {name: metrics["accuracy"] for name, metrics in answer.items()}

    def _accuracies_before(self, state: State, reports: Iterable[tuple[int, Tensor]], ctx: ServerContext) -> Accuracies:
        """Return the mean accuracies of the clients' own tables."""
        base, seen = kinds(state.table, ctx)
        answers: dict[str, list[float]] = {}
        for client, classes in sorted(reports, key=lambda report: report[0]):
            sets = {"base": rows_of(base, ctx), "seen": rows_of(seen, ctx), "new": rows_of(classes, ctx)}
            found = yield from self._accuracies(state, sets, ctx, cohort=[client], stage="trained")
            for name, accuracy in found.items():
                answers.setdefault(f"before/{name}", []).append(accuracy)
        means = {name: float(np.mean(values)) for name, values in answers.items()}
        return means | ({"before/mean": float(np.mean(list(means.values())))} if means else {})


def kinds(table: Table | None, ctx: ServerContext) -> tuple[Tensor, Tensor]:
    """Return the classes with a prototype: the server's base classes, and the field classes."""
    keys = torch.empty(0, dtype=torch.int64) if table is None else table.keys
    base = torch.isin(keys, ctx.server["y"]) if ctx.server else torch.zeros(len(keys), dtype=torch.bool)
    return keys[base], keys[~base]


def rows_of(classes: Tensor, ctx: ServerContext) -> np.ndarray:
    """Return the rows of the server's test set whose class is in `classes`."""
    return torch.isin(ctx.test["y"], classes).nonzero()[:, 0].numpy() if ctx.test else np.empty(0, np.int64)


def as_means(table: Table | None) -> Table | None:
    """Return the table that is sent: means in float32 and counts in int32, from sums (k, D) and counts."""
    if table is None:
        return None
    return Table(table.keys, (table.values / table.counts[:, None]).float(), table.counts.int())
