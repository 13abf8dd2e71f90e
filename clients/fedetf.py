"""FedETF: features learn to point at the vertices of a fixed frame, which is the same for all clients.    x -> scores

    z = W phi(x) + b,    scores = t E^T z / |z|      E: simplex equiangular tight frame (k, C), see `fl.simplex`
    (phi, W, b, t) <- local steps on the task's loss, E fixed;    send their change

(W, b) takes the place of the last linear layer; with k = C it is that layer. E and t are the part `etf` of the model.
E is drawn from the run's seed by server and clients, so it is in no message. t is learnt and averaged like any tensor.
The forward pass uses max(t, 0.01), and the gradient of that value moves t: t can come back from below.
`fedetf_balanced` trains on scores + balance log max(n_y, 1), n_y: the client's training samples of class y.

predict: with `alternations` > 0, a client first trains copies of E and of (W, b) in turns on the plain loss, phi fixed;
nothing of it is sent or kept.  Li, Shang, He, Lin, Wu 2023, arXiv:2303.10058.
Differs from the paper: the default loss is plain, see `strategies/fedetf.py`. Differs from the authors' program: the
Gaussian matrix behind E has both signs and a seed; class counts are those of all training samples; no head is sent
that is not used; t is part of predictions; weight decay leaves t out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    SGD,
    Adam,
    Batch,
    ClientContext,
    Extended,
    LocalTraining,
    Params,
    Phase,
    StepContext,
    Task,
    Tree,
    View,
    checks,
    class_counts,
    classifier,
    head_names,
    register,
    simplex,
)

from .partial import FixedPart, shared_names

FRAME, TEMPERATURE = "etf.frame.weight", "etf.temperature"
LEAST = 0.01  # of the temperature in the forward pass


class Frame(nn.Module):
    """Scores t E^T z / |z|, (B, C), of projections z (B, k). The weight of the layer `frame` is E^T.

    Args:
        dimensions: length k of a projection.
        classes: number C of classes.
        temperature: t at first, positive.
    """

    def __init__(self, dimensions: int, classes: int, temperature: float):
        super().__init__()
        self.temperature = nn.Parameter(torch.full((1, 1), temperature))  # (1, 1): the axes of a batch of scores
        self.frame = nn.utils.skip_init(nn.Linear, dimensions, classes, bias=False)
        self.frame.weight.data.copy_(simplex(dimensions, classes).T)

    def forward(self, z: Tensor) -> Tensor:
        """Return the scores."""
        t: Tensor = self.temperature
        t = t.detach().clamp(min=LEAST) + (t - t.detach())  # the value is bounded, the gradient goes through
        cosines: Tensor = self.frame(F.normalize(z, dim=-1))
        return t * cosines


class WithFrame(Extended):
    """A model whose last linear layer projects to k dimensions, and whose scores are those of a `Frame`.

    Args:
        original: the model.
        classes: number C of classes.
        dimensions: length k of a projection. Default: C.
        temperature: t at first, positive.
    """

    def __init__(self, original: nn.Module, classes: int, dimensions: int | None, temperature: float):
        name, layer = classifier(original, classes)
        k = dimensions or classes
        projection = layer if k == classes else nn.Linear(layer.in_features, k, bias=layer.bias is not None)
        replaced = {} if projection is layer else {name: projection}
        super().__init__(original, "etf", Frame(k, classes, temperature), replaced)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of samples x."""
        scores: Tensor = self.added(self.original(x))
        return scores


@dataclass(frozen=True, kw_only=True)
class Turns(LocalTraining):
    """Local training in turns: one part of the model after the other, several times.

    Args:
        parts: (patterns of the trained tensors, learning rate) of each part.
        times: number of times that each part is trained.
    """

    parts: tuple[tuple[tuple[str, ...], float], ...]
    times: int

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        return self.times * tuple(replace(phase, trains=names, lr=lr, decay=None) for names, lr in self.parts)


@register("client", "fedetf")
@dataclass(frozen=True, kw_only=True)
class FedETF(FixedPart):
    """Local training of features and temperature against a fixed frame.

    Args:
        dimensions: length k of a projection, at least the number of classes C. Default: C, as in the authors' program.
        temperature: t at first, at least 0.01. 10 is the authors' value for a small CNN; for ResNets it is 1.
        decay: weight decay of all trained tensors but the temperature, at least 0. The authors' value is 5e-4.
        alternations: turns of E and (W, b) before predictions, at least 0. The authors' value is 20; 0 predicts with
            the received model.
        turn_epochs: epochs of each turn, at least 1.
        frame_lr: learning rate of the client's copy of E in its turns, at least 0.
        projection_lr: learning rate of the client's copy of (W, b) in its turns, at least 0.
    """

    dimensions: int | None = None
    temperature: float = 10.0
    decay: float = 0.0
    alternations: int = 0
    turn_epochs: int = 3
    frame_lr: float = 0.1
    projection_lr: float = 0.05

    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, dimensions=self.dimensions, turn_epochs=self.turn_epochs)
        checks.at_least(LEAST, temperature=self.temperature)
        checks.not_negative(decay=self.decay, frame_lr=self.frame_lr, projection_lr=self.projection_lr)
        checks.not_negative(alternations=self.alternations, hint="0 predicts with the received model")
        if isinstance(self.optimiser, SGD | Adam) and self.optimiser.weight_decay:
            raise ValueError(
                f"optimiser: weight_decay {self.optimiser.weight_decay} would shrink the temperature, too; use "
                f"client.decay: {self.optimiser.weight_decay}, which leaves it out"
            )

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithFrame(module, outputs, self.dimensions, self.temperature)

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        if not self.decay:
            return grad
        return grad.added(self.decay * params.select([name for name in params if name != TEMPERATURE]))

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        if not self.alternations or not len(ctx.train):
            return super().predictor(ctx)
        projection = tuple(head_names(ctx.module, ctx.initial.trained))
        turns = Turns(
            parts=(((FRAME,), self.frame_lr), (projection, self.projection_lr)),
            times=self.alternations,
            epochs=self.turn_epochs,
            batch=self.batch,
            optimiser=self.optimiser,
            clip=self.clip,
            last_batch=self.last_batch,
        )
        whole = ctx.initial.trained.replace(ctx.received["model"].select(shared_names(ctx)))
        start = replace(ctx, received={"model": whole}, state=None)
        return turns.predictor(turns.context_after_training(start, turns.work("train", start, None)))


@register("client", "fedetf_balanced")
@dataclass(frozen=True, kw_only=True)
class FedETFBalanced(FedETF):
    """FedETF with the balanced softmax loss: scores + balance log max(n_y, 1) in training.

    It trains in the loop or by vmap, because the loss is its own.

    Args:
        balance: weight of the logarithms of the class counts, positive. 1 is the paper's.
    """

    balance: float = 1.0

    example_config: ClassVar[dict[str, str]] = {"strategy.name": "fedetf"}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(balance=self.balance, hint="client fedetf has the plain loss")

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        return class_counts(view, outputs).clamp(min=1).float()

    def objective(self, net: Callable[..., Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        assert isinstance(at.facts, Tensor)
        return task.loss(net(batch["x"]) + self.balance * at.facts.log(), batch)
