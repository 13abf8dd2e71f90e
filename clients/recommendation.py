"""Base of the recommendation methods: a user's part of the model is private, changes of item rows travel as a table.

    score(u, i) = s(theta_u, q_i)          q_i: row i of the shared table `items.weight`, theta_u: the user's part

    1. positives: the client's training rows; per positive some negatives, drawn again in each round (task.negatives)
    2. local steps on all of them
    3. send the changes of the rows q_i that occurred, as `Table`: (4 d + 8) bytes a row, an id and a number of samples
       of 4 bytes each; other shared tensors as the group `model`
    4. keep theta_u. Of private tensors with a row for each item, keep the rows that ever occurred, as `Table`

Weight decay acts on the item rows of a batch (those with a gradient) and on all other tensors. So rows that did not
occur do not change. `decay: as_published` decays all rows in each step, as released code does; then all rows travel
and are kept.
A client predicts scores (B, 1 + candidates) of a held item and of the candidates of `fl.tasks.ranking`. If the server
sends the group `popularity` (I,), these are the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    LocalTraining,
    Params,
    Ranking,
    Reply,
    StepContext,
    Table,
    Task,
    TrainingInputs,
    TrainingResult,
    Tree,
    Update,
    View,
    checks,
    join,
    ranking,
)


def item_table(module: nn.Module) -> nn.Embedding:
    """Return the table of items of a model. A `ValueError` if it has none."""
    table = getattr(module, "items", None)
    if not isinstance(table, nn.Embedding):
        raise ValueError(
            f"model: {type(module).__name__} has no table of items; use `model: {{name: item_table, dim: 32}}`"
        )
    return table


def taken_items(ctx: ClientContext, *views: View) -> np.ndarray:
    """Return the items of some views of a client, (n,), with repetitions."""
    return np.concatenate([ctx.train.arrays["x"][torch.from_numpy(view.rows)].numpy() for view in views])


def updated_rows(old: Table | None, ids: Tensor, rows: Tensor, counts: Tensor) -> Table:
    """Return `old` with new rows (k, ...) for ids (k,), whose counts are added to the old ones.

    >>> old = Table(torch.tensor([1, 3]), torch.tensor([[1.0], [3.0]]), torch.tensor([2, 2]))
    >>> new = updated_rows(old, torch.tensor([0, 3]), torch.tensor([[5.0], [6.0]]), torch.tensor([1, 1]))
    >>> new.keys.tolist(), new.values.tolist(), new.counts.tolist()
    ([0, 1, 3], [[5.0], [1.0], [6.0]], [1, 2, 3])
    """
    if old is None:
        return Table(ids, rows, counts)
    keys = torch.unique(torch.cat([old.keys, ids]))
    values, total = rows.new_zeros(len(keys), *rows.shape[1:]), counts.new_zeros(len(keys))
    for part, new, count in ((old.keys, old.values, old.counts), (ids, rows, counts)):
        at = torch.searchsorted(keys, part)
        values[at] = new
        total[at] += count
    return Table(keys, values, total)


@dataclass(frozen=True, kw_only=True)
class Recommendation(LocalTraining):
    """Local training of item rows and of the user's private part.

    Args:
        negatives: negatives for each positive, drawn again in each round, positive.
        weight_decay: strength of the L2 penalty weight_decay / 2 |w|^2, at least 0.
        decay: rows that the weight decay acts on: those of the `batch`, or all, `as_published`.
    """

    negatives: int = 4
    weight_decay: float = 0.0
    decay: Literal["batch", "as_published"] = "batch"

    sends: ClassVar[tuple[str, ...]] = ("items", "model", "counts")
    optional: ClassVar[tuple[str, ...]] = ("items", "model", "counts")
    one_at_a_time: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = ()  # private tensors with a row for each item

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, negatives=self.negatives)
        checks.not_negative(weight_decay=self.weight_decay)
        checks.one_of(("batch", "as_published"), decay=self.decay)
        if getattr(self.optimiser, "weight_decay", 0):
            raise ValueError(
                "optimiser: its weight_decay moves rows that the client neither sends nor keeps; use "
                "client.weight_decay, with decay: as_published if all rows are to decay"
            )
        if self.trains is not None:
            raise ValueError(f"trains: {self.trains} is not for recommendation methods; use model.freeze")

    # -- samples -----------------------------------------------------------------------------------------------------
    def samples_of(self, ctx: ClientContext, purpose: str = "negatives") -> View:
        """Return positives and negatives as one view with the arrays x and y."""
        assert isinstance(ctx.task, Ranking)
        x = ctx.train.take()["x"]
        views = (ctx.train, ctx.val, ctx.test) if ctx.task.negatives == "as_published" else (ctx.train,)
        count = len(x) * self.negatives
        address = (ctx.seed, ctx.client, ctx.participation, purpose)
        drawn = ranking.negative_items(taken_items(ctx, *views), item_table(ctx.module).num_embeddings, count, *address)
        y = torch.cat([torch.ones(len(x)), torch.zeros(count)])
        return View({"x": torch.cat([x, torch.from_numpy(drawn)]), "y": y}, np.arange(len(y)))

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "count":
            return np.zeros_like(labelled), np.zeros_like(labelled)
        return super().workload_of_views(labelled * (1 + self.negatives), unlabelled, round_, rounds, name)

    def smallest_batches(self, sizes: np.ndarray, round_: int, rounds: int) -> np.ndarray:
        return super().smallest_batches(sizes * (1 + self.negatives), round_, rounds)

    # -- training ----------------------------------------------------------------------------------------------------
    def start(self, inputs: TrainingInputs) -> Params:
        received = inputs.received["model"]
        own = inputs.initial.trained.select([name for name in inputs.initial.trained if name not in received])
        if inputs.state is not None:
            own = own.replace(inputs.state["own"])
            for name, table in inputs.state["tables"].items():
                own[name][table.keys.long()] = table.values
        return join(received, own)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        return task.loss(net(batch["x"]), batch)

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        if not self.weight_decay:
            return grad
        decayed = self.weight_decay * params
        if self.decay == "batch":
            for name in decayed:
                if name.endswith(ranking.ITEMS):
                    decayed[name].mul_((grad[name] != 0).any(-1, keepdim=True))
        return grad + decayed

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        shared = list(end.received["model"])
        private = [name for name in end.params if name not in end.received["model"]]
        return {"model": end.delta.select(shared)}, {"own": end.params.select(private)}

    def train(self, ctx: ClientContext, samples: View) -> Reply:
        """Train on the samples. The reply has the whole change of the shared tensors as its group `model`."""
        return super().work("train", replace(ctx, train=samples), None)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if name == "count":
            counts = torch.bincount(ctx.train.take()["x"], minlength=item_table(ctx.module).num_embeddings)
            return Reply(Update({"counts": counts.float()}, len(ctx.train)))
        samples = self.samples_of(ctx)
        return self.packed(ctx, samples, self.train(ctx, samples))

    def packed(self, ctx: ClientContext, samples: View, reply: Reply) -> Reply:
        """Return a reply of `train` with tables of the rows that occurred among the samples."""
        ids, counts = torch.unique(samples.arrays["x"], return_counts=True)
        if self.weight_decay and self.decay == "as_published":
            ids = torch.arange(item_table(ctx.module).num_embeddings)
            counts = torch.bincount(samples.arrays["x"], minlength=len(ids))
        change, keys, counts = reply.update.groups["model"], ids.int(), counts.int()
        others = [name for name in change if name != ranking.ITEMS]
        groups: dict[str, Tree] = {"items": Table(keys, change[ranking.ITEMS][ids], counts)}
        if others:
            groups["model"] = change.select(others)
        state = reply.state
        if state is not None:
            own, old = state["own"], (ctx.state or {}).get("tables", {})
            names = [name for name in self.tables if name in own]  # not if it is frozen
            tables = {name: updated_rows(old.get(name), keys, own[name][ids], counts) for name in names}
            state = {"own": own.select([name for name in own if name not in names]), "tables": tables}
        return Reply(replace(reply.update, groups=groups, owned=False), state)

    # -- predictions -------------------------------------------------------------------------------------------------
    def scores(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        """Return the function ids (...) -> scores (...) that the client predicts with."""
        return ctx.net(self.start(self.inputs(ctx)))

    def taken(self, ctx: ClientContext) -> np.ndarray:
        """Return the items that the user has ever taken, (n,); candidates are drawn from the others."""
        return taken_items(ctx, ctx.train, ctx.val, ctx.test)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        assert isinstance(ctx.task, Ranking)
        items = item_table(ctx.module).num_embeddings
        others = torch.from_numpy(ranking.candidates(ctx.seed, ctx.client, self.taken(ctx), items, ctx.task.candidates))
        popularity = ctx.received.get("popularity")
        scores = self.scores(ctx) if popularity is None else popularity.__getitem__
        return lambda x: scores(torch.cat([x[:, None], others.expand(len(x), -1)], 1))

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        groups, model = reply.update.groups, ctx.received["model"].clone()
        model[ranking.ITEMS].index_add_(0, groups["items"].keys.long(), groups["items"].values)
        if "model" in groups:
            model = model.added(groups["model"])
        state = ctx.state if reply.state is None else reply.state
        return replace(ctx, received={**ctx.received, "model": model}, state=state)
