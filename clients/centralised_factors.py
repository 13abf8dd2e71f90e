"""Matrix factorisation on the pooled rows of all users, for comparison.    score(u, i) = p_u . q_i

One client has all training rows, with the array `user` of the data set (`splits.pooled`); the table of user vectors is
a part of the model. Negatives are drawn for each row as the recommendation methods draw them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl import (
    Adam,
    Batch,
    ClientContext,
    Extended,
    Optimiser,
    Params,
    Ranking,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    TrainingResult,
    Tree,
    View,
    checks,
    ranking,
    register,
)

from .recommendation import Recommendation, item_table


class WithUsers(Extended):
    """A table of items and a table of users: ids (B,) and users (B,) -> scores (B,)."""

    def forward(self, x: Tensor, users: Tensor | None = None) -> Tensor:
        """Return the scores (B,) of pairs; without users, of the first user."""
        rows = self.original(x)
        users = torch.zeros_like(x) if users is None else users
        return (rows * self.added(users.long())).sum(-1)


@register("client", "centralised_factors")
@dataclass(frozen=True, kw_only=True)
class CentralisedFactors(Recommendation):
    """Matrix factorisation of pooled rows.

    Args:
        users: number of users, positive.
        user_std: standard deviation of the first values of user vectors, at least 0.
        optimiser: the rule of a step.
        lr: learning rate, at least 0, or a schedule over rounds or steps.
    """

    users: int
    user_std: float = 0.1
    lr: Any = 0.01
    optimiser: Optimiser = field(default_factory=Adam)

    sends: ClassVar[tuple[str, ...]] = ("model",)
    optional: ClassVar[tuple[str, ...]] = ()
    example_config: ClassVar[Mapping[str, Any]] = {
        "data": {"name": "interactions", "users": 8, "items": 40, "per_user": 12},
        "task": {"name": "ranking", "candidates": 20},
        "model": {"name": "item_table", "dim": 3},
        "evaluation": {"clients": 0},
        "client.users": 8,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(users=self.users)
        checks.not_negative(user_std=self.user_std)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        table = nn.Embedding(self.users, item_table(module).embedding_dim)
        nn.init.normal_(table.weight, std=self.user_std)
        return WithUsers(module, "users", table)

    def samples_of(self, ctx: ClientContext, purpose: str = "negatives") -> View:
        assert isinstance(ctx.task, Ranking)
        rows, items = ctx.train.take(), item_table(ctx.module).num_embeddings
        x, users = rows["x"].numpy(), rows["user"].numpy()
        taken, owners = ctx.train.arrays["x"].numpy(), ctx.train.arrays["user"].numpy()
        if ctx.task.negatives == "clean":
            taken, owners = x, users
        order = np.argsort(owners, kind="stable")
        starts = np.searchsorted(owners[order], np.arange(self.users + 1))
        drawn, whose = [], []
        for user, count in enumerate(np.bincount(users, minlength=self.users) * self.negatives):
            if count:
                excluded = taken[order[starts[user] : starts[user + 1]]]
                drawn.append(ranking.negative_items(excluded, items, count, ctx.seed, user, ctx.participation, purpose))
                whose.append(np.full(count, user))
        y = torch.cat([torch.ones(len(x)), torch.zeros(len(x) * self.negatives)])
        arrays = {"x": np.concatenate([x, *drawn]), "user": np.concatenate([users, *whose])}
        return View({**{name: torch.from_numpy(a) for name, a in arrays.items()}, "y": y}, np.arange(len(y)))

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.received["model"]

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        return task.loss(net(batch["x"], batch["user"]), batch)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"model": end.delta}, None

    def packed(self, ctx: ClientContext, samples: View, reply: Reply) -> Reply:
        return reply

    def taken(self, ctx: ClientContext) -> np.ndarray:
        return ctx.train.arrays["x"][ctx.train.arrays["user"] == ctx.client].numpy()

    def scores(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net = ctx.net(ctx.received["model"])
        return lambda ids: net(ids.flatten(), torch.full_like(ids.flatten(), ctx.client)).view(ids.shape)
