"""Federated Reconnaissance: new classes in the field, learnt as prototypes of a fixed encoder and merged exactly.

    once      encoder <- meta-training on the server's own (base) classes
    mission   clients send (c, n, m) of the classes they met;    S_c <- S_c + n m,   N_c <- N_c + n,   mu_c = S_c / N_c
              the table (c, N_c, mu_c) goes to all; everybody predicts with the nearest prototype

Hendryx, KC, Walls, Morrison 2021, arXiv:2109.00150. Sums are kept in float64. Meta-training: prototypical episodes (Snell, Swersky, Zemel 2017,
arXiv:1703.05175), Adam, the rate halved every 2,000 episodes; each class of an episode rotated by a random multiple of 90 degrees.
A round is a mission. The encoder is sent to a client once, the whole table in every mission. Uplink per client and mission:
(D + 1) numbers and an id for each class touched, whatever the number of images and the size of the encoder.
Differs from the authors' program: clients send increments, so that re-visited classes get their right weight.
Metrics: start/base; before/{base, seen, new, mean}, a client's own table before anything is merged, on the base classes, the
field classes seen until then, and those of its own mission, the mean over clients (only with `before`: it is the dear part);
after/{base, field}, the merged table on the base classes and on all field classes seen.
Neutral: none; nothing is trained in a round.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.method.messages import Broadcast, Static
from fl.method.reduction import ClassMean
from fl.method.requests import Evaluate, Exchange, ServerWork
from fl.method.strategy import Strategy
from fl.registry import register
from fl.tensors import random
from fl.tensors.params import Params, join
from fl.tensors.prototypes import embed, prototypes, squared_distances
from fl.tensors.sparse import Table

BATCH = 256  # images in a forward pass on the server


@dataclass(frozen=True)
class State:
    model: Params  # the encoder: all tensors, running statistics too; fixed after setup
    table: Table | None  # sums of embeddings (float64) and counts by class; `None` before the first sample


class ClassSums(ClassMean):
    """Per class the sum over clients of n m, in float64, and of n."""

    def finish(self, acc):
        return acc


class Reports(ClassSums):
    """(the sums, who reported which classes); for evaluations before the merge."""

    linear: ClassVar[bool] = False

    def lift(self, value, meta):
        return super().lift(value, meta), ((int(meta.client), value.keys),)

    def merge(self, a, b):
        return super().merge(a[0], b[0]), a[1] + b[1]


@register("strategy", "reconnaissance")
@dataclass(frozen=True, kw_only=True)
class Reconnaissance(Strategy):
    """`episodes` of `ways` classes with `shots` samples to learn and `queries` to ask; `base`: the base classes keep their
    prototypes in the table; `before`: evaluate each client before the merge too."""

    episodes: int = 50_000
    ways: int = 5
    shots: int = 5
    queries: int = 5
    lr: float = 1e-3
    rotate: bool = True
    base: bool = True
    before: bool = False

    client: ClassVar[str] = "reconnaissance"
    example_config: ClassVar[dict[str, Any]] = {"strategy.episodes": 0}

    def __post_init__(self):
        for name, least in (("episodes", 0), ("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least {least}")
        if self.lr <= 0:
            raise ValueError(f"lr: {self.lr} is not positive")

    def init(self, model, ctx):
        return State(join(model, ctx.frozen) if len(ctx.frozen) else model, None)

    def setup(self, state, ctx):
        if not ctx.server:
            if self.episodes:
                raise ValueError("episodes: the data have no classes of the server's own to train on; set episodes: 0")
            return state, {}
        x, y = ctx.server["x"], ctx.server["y"]
        if self.episodes:
            how = (self.episodes, self.ways, self.shots, self.queries, self.lr, self.rotate, ctx.seed)
            state = replace(state, model=(yield ServerWork(meta_train, (ctx.module, state.model, x, y, *how))))
        if not self.base:
            return state, {}
        table = yield ServerWork(class_sums, (ctx.module, state.model, x, y))
        state = replace(state, table=table)
        return state, (yield from self._ask(state, {"start/base": self._rows(ctx, table.keys)}, ctx))

    def broadcast(self, state, ctx):
        return Broadcast(shared={"table": as_means(state.table)}, static={"encoder": Static(0, state.model)})

    def round(self, state, ctx):
        ask = self.before and bool(ctx.test)
        outcome = yield Exchange(self.broadcast(state, ctx), {"table": Reports() if ask else ClassSums()})
        if outcome.value is None:
            return state, {}
        sums, reports = outcome.value["table"] if ask else (outcome.value["table"], ())
        merged = replace(state, table=sums if state.table is None else state.table.merge(sums))
        metrics = {"classes": len(merged.table.keys)}
        if reports:
            metrics |= yield from self._before(state, reports, ctx)
        base, field = self._kinds(merged.table, ctx)
        sets = {"after/base": self._rows(ctx, base), "after/field": self._rows(ctx, field)}
        return merged, metrics | (yield from self._ask(merged, sets, ctx))

    # -- evaluations ---------------------------------------------------------------------------------------------
    def _kinds(self, table: Table | None, ctx) -> tuple[Tensor, Tensor]:
        """The classes with a prototype: the server's own, and those met in the field."""
        keys = torch.empty(0, dtype=torch.int64) if table is None else table.keys
        own = torch.isin(keys, ctx.server["y"]) if ctx.server else torch.zeros(len(keys), dtype=torch.bool)
        return keys[own], keys[~own]

    def _rows(self, ctx, classes: Tensor) -> np.ndarray:
        """The rows of the test set that are of `classes`."""
        return torch.isin(ctx.test["y"], classes).nonzero()[:, 0].numpy() if ctx.test else np.empty(0, np.int64)

    def _ask(self, state: State, sets: dict[str, np.ndarray], ctx, **whom: Any):
        """Set -> accuracy, of those sets that have rows."""
        sets = {name: rows for name, rows in sets.items() if len(rows)}
        if not sets:
            return {}
        answer = yield Evaluate(self.broadcast(state, ctx), sets, **whom)
        return {name: metrics["accuracy"] for name, metrics in answer.items()}

    def _before(self, state: State, reports, ctx):
        base, seen = self._kinds(state.table, ctx)
        answers: dict[str, list[float]] = {}
        for client, classes in sorted(reports, key=lambda report: report[0]):
            sets = {"base": self._rows(ctx, base), "seen": self._rows(ctx, seen), "new": self._rows(ctx, classes)}
            for name, accuracy in (yield from self._ask(state, sets, ctx, cohort=[client], stage="trained")).items():
                answers.setdefault(f"before/{name}", []).append(accuracy)
        means = {name: float(np.mean(values)) for name, values in answers.items()}
        return means | ({"before/mean": float(np.mean(list(means.values())))} if means else {})


# -- pure functions ---------------------------------------------------------------------------------------------------
def as_means(table: Table | None) -> Table | None:
    """Sums (k, D) and counts -> what is sent: means in float32, counts in int32."""
    if table is None:
        return None
    return Table(table.keys, (table.values / table.counts[:, None]).float(), table.counts.int())


def episode_loss(z: Tensor, shots: int) -> Tensor:
    """z (ways, shots + queries, D) -> the mean over queries of -log softmax_c(-|z - mu_c|^2) at the query's own class, mu_c
    the mean of the class's first `shots`."""
    ways, each, width = z.shape
    scores = -squared_distances(z[:, shots:].reshape(-1, width), z[:, :shots].mean(1))
    return F.cross_entropy(scores, torch.arange(ways).repeat_interleave(each - shots))


def episode(y: Tensor, ways: int, each: int, generator: torch.Generator, rotate: bool = False) -> tuple[Tensor, Tensor]:
    """(rows (ways, each), turns (ways,)): `each` distinct samples of each of `ways` distinct classes of y (n,), and how many
    quarter turns a class is rotated by. Classes with fewer samples are left out."""
    classes, counts = torch.unique(y, return_counts=True)
    classes = classes[counts >= each]
    if len(classes) < ways:
        raise ValueError(f"ways: {ways} of {each} samples each, but {len(classes)} classes have as many")
    drawn = classes[torch.randperm(len(classes), generator=generator)[:ways]]
    rows = []
    for c in drawn:
        own = (y == c).nonzero()[:, 0]
        rows.append(own[torch.randperm(len(own), generator=generator)[:each]])
    turns = torch.randint(4, (ways,), generator=generator) if rotate else torch.zeros(ways, dtype=torch.int64)
    return torch.stack(rows), turns


def meta_train(
    module: nn.Module,
    encoder: Params,
    x: Tensor,
    y: Tensor,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    lr: float,
    rotate: bool,
    seed: int,
) -> Params:
    """The encoder (all tensors of `module`) after one step of Adam on each of `episodes` episodes of x (n, ...), y (n,)."""
    if rotate and (x.ndim != 4 or x.shape[-1] != x.shape[-2]):
        raise ValueError(f"rotate: samples of {tuple(x.shape[1:])} are not square images; set rotate: false")
    net = _loaded(module, encoder).train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=lr)
    for i in range(episodes):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 ** (i // 2000)
        drawn = random.torch_generator(seed, "server", "episode", i)
        rows, turns = episode(y, ways, shots + queries, drawn, rotate)
        images = torch.stack([torch.rot90(x[own], int(k), (-2, -1)) if k else x[own] for own, k in zip(rows, turns)])
        z = net(images.flatten(0, 1)).unflatten(0, (ways, shots + queries))
        optimiser.zero_grad()
        episode_loss(z, shots).backward()
        optimiser.step()
    return encoder.layout.zeros().copy_({**dict(net.named_parameters()), **dict(net.named_buffers())}, names=encoder)


def class_sums(module: nn.Module, encoder: Params, x: Tensor, y: Tensor) -> Table:
    """Per class of y (n,) the sum of embeddings of x (n, ...) in float64, and their number."""
    table = prototypes(embed(_loaded(module, encoder).eval(), x, BATCH).double(), y)
    counts = table.counts.double()
    return Table(table.keys, table.values * counts[:, None], counts)


def _loaded(module: nn.Module, encoder: Params) -> nn.Module:
    """A copy of the module with the encoder's tensors."""
    net = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if name in encoder:
                tensor.data = encoder[name].clone()
    return net
