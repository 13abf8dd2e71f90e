"""ProtoFL's client, phase 1: features of the own class are pulled to one prototype.

    loss = 1 - cos(g(f(x)), e)        f: the model, g: the added linear layer `projection`, e: the client's prototype

The server gives each client its prototype before round 0 (`strategies/protofl.py`), and the client keeps it. Without
one, e = 0 and the client does not move the model. A score is cos(g(f(x)), e); phase 2, `clients/flow.py`, is better.
Kim, Kwak, Jung, Shin, Kim, Kim 2023, arXiv:2307.12450. The paper has no public code: this is a reconstruction from its
abstract.
Equals FedAvg: no setting; there are no classes to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    LocalTraining,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    Tree,
    Update,
    checks,
    register,
    require_one_class,
)

from .measure import blocks


class WithProjection(Extended):
    """A model of features with the projection g."""

    def forward(self, x: Tensor, project: bool = False) -> Tensor:
        """Return the features f(x) (B, d), or their projections g(f(x)) (B, D)."""
        features = self.original(x)
        return self.added(features) if project else features


def distance(projected: Tensor, prototype: Tensor) -> Tensor:
    """Return 1 - cos of projections (B, D) and a prototype (D,), (B,).

    >>> distance(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """
    return 1 - F.cosine_similarity(projected, prototype, dim=-1)


@register("client", "protofl")
@dataclass(frozen=True, kw_only=True)
class ProtoFL(LocalTraining):
    """Local training towards the client's prototype.

    Args:
        projection: number of outputs of g, which is the length D of features of the teacher and of prototypes; at
            least 2. Default: the number of outputs of the model.
    """

    projection: int | None = None

    sends: ClassVar[tuple[str, ...]] = ("model", "feature")
    optional: ClassVar[tuple[str, ...]] = ("feature",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(2, projection=self.projection)

    def check_task(self, task: Task) -> None:
        require_one_class(task, "client ProtoFL")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithProjection(module, "projection", nn.Linear(outputs, self.projection or outputs))

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return {"prototype": torch.zeros_like(inputs.initial.trained["projection.bias"])}

    def answer(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if name == "describe":
            return Reply(Update({"feature": self._mean_feature(ctx)}, len(ctx.train)))
        return Reply(Update({}, len(ctx.train)), {"prototype": ctx.received["prototype"][0]})

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name != "train":
            return np.zeros_like(labelled), np.zeros_like(labelled)
        return super().workload_of_views(labelled, unlabelled, round_, rounds, name)

    def _mean_feature(self, ctx: ClientContext) -> Tensor:
        """Return the mean of the teacher's normalised features of the training rows, (D,); 0 without rows."""
        net = ctx.net(ctx.received["model"])
        with torch.no_grad():
            features = torch.cat([F.normalize(net(batch["x"], project=True), dim=-1) for batch in blocks(ctx)])
        return features.sum(0) / max(len(ctx.train), 1)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        return distance(net(batch["x"], project=True), at.state["prototype"])

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net = ctx.net(ctx.received["model"])
        if ctx.state is None:
            return net
        return lambda x: 1 - distance(net(x, project=True), ctx.state["prototype"])
