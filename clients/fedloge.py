"""FedLoGe: a body trained against a fixed frame, and two heads trained on its detached features.    per mini-batch

    f = phi(x);    loss = CE(norm f S, y) + CE(g(stop f), y) + CE(l_i(stop f), y)
    (phi, g, l_i) <- local steps on the loss;    send the change of phi and g, keep l_i

phi and g are the model: g is its last linear layer. S (h, C), a simplex frame (`fl.simplex`), and the private head l_i
are the part `loge`. The three terms move different tensors, so that one backward pass and one optimiser serve all. Only
clipping would mix them, and is refused.
predict: realigned g + realigned l_i, where g_c <- rho g_c / |g_c| and l_ic <- |l_ic| g_c / |g_c| with the biases of g;
with realignment off, g + l_i as trained. A client that never trained, and the server, predict with g.  The training
loss in the metrics is the sum of the three terms.

Xiao et al. 2024, arXiv:2401.08977.
Differs from the authors' program: absent classes are those without training rows (it uses the client's test rows), and
score 30 below the lowest score, so that losses stay finite; S has no bias and both signs; l_i's rows have the unit
directions of g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    Params,
    Phase,
    StepContext,
    Task,
    TrainingInputs,
    checks,
    class_counts,
    classifier,
    join,
    register,
    simplex,
    with_norms,
)

from .partial import Partial

FRAME, LOCAL = "loge.frame.weight", "loge.local"


class Heads(nn.Module):
    """The frame S and a client's own head. The weight of the layer `frame` is S^T.

    Args:
        shared: the model's own last linear layer.
    """

    def __init__(self, shared: nn.Linear):
        super().__init__()
        features, classes = shared.in_features, shared.out_features
        self.local = nn.Linear(features, classes, bias=shared.bias is not None)
        self.frame = nn.utils.skip_init(nn.Linear, features, classes, bias=False)
        self.frame.weight.data.copy_(simplex(features, classes).T)


class WithHeads(Extended):
    """A model with a fixed frame and a private head beside its own head.

    Args:
        original: the model.
        classes: number C of classes.
    """

    def __init__(self, original: nn.Module, classes: int):
        name, layer = classifier(original, classes)
        super().__init__(original, "loge", Heads(layer))
        self.shared_head = name

    def forward(self, x: Tensor, parts: bool = False) -> Any:
        """Return g(f), or (f S, g(f), l(f)) as `parts`; gradients of g and l stop at f."""
        if not parts:
            return self.original(x)
        features: list[Tensor] = []

        def detached(layer: nn.Module, f: Tensor) -> Tensor:
            features.append(f)
            scores: Tensor = layer(f.detach())
            return scores

        shared = self.with_layer(self.shared_head, detached, x)
        return self.added.frame(features[0]), shared, self.added.local(features[0].detach())


@register("client", "fedloge")
@dataclass(frozen=True, kw_only=True)
class FedLoGe(Partial):
    """Local training of a body against a frame, and of a shared and a private head.

    Args:
        norm: norm of the frame's columns in the loss, positive. .1 is the paper's, for hundreds of rounds.
        absent: what a client predicts for classes without training rows of its own: `keep` their scores, or `mask`
            them.
    """

    norm: float = 0.1
    absent: Literal["keep", "mask"] = "keep"

    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(norm=self.norm)
        checks.one_of(("keep", "mask"), absent=self.absent)
        if self.clip is not None:
            raise ValueError(f"clip: {self.clip} would mix the gradients of body and heads; leave it out")
        if self.trains is not None:
            raise ValueError(f"trains: {self.trains} is not for fedloge; fix tensors with model.freeze")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithHeads(module, outputs)

    def start(self, inputs: TrainingInputs) -> Params:
        start = super().start(inputs)
        return join(start, inputs.received["frame"]) if "frame" in inputs.received else start

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = self.phases(round_, rounds)
        names = {**inputs.received["model"], **inputs.state}
        return (replace(phase, trains=tuple(name for name in names if name != FRAME)),)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        frame, shared, local = net(batch["x"], parts=True)
        return task.loss(self.norm * frame, batch) + task.loss(shared, batch) + task.loss(local, batch)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received = ctx.received["model"]
        if ctx.state is None:
            return ctx.net(received)
        net = ctx.net(self.with_realigned(join(received, ctx.state), ctx))

        def scores(x: Tensor) -> Tensor:
            _, shared, local = net(x, parts=True)
            both: Tensor = shared + local
            return both if known is None else masked(both, known)

        known = class_counts(ctx.train, ctx.module_facts.outputs) > 0 if self.absent == "mask" else None
        return scores

    def with_realigned(self, model: Params, ctx: ClientContext) -> Params:
        """Return the model with both heads realigned as the strategy asks for."""
        rho: float | Literal["mean", "off"] = ctx.config.get("rho", "off")
        if rho == "off":
            return model
        weight, bias = f"{ctx.config['head']}.weight", f"{ctx.config['head']}.bias"
        own = f"{LOCAL}.weight"
        heads = {weight: with_norms(model[weight], rho), own: with_norms(model[weight], model[own].norm(dim=1))}
        if bias in model:
            heads[f"{LOCAL}.bias"] = model[bias]
        return model.replace(heads)


def masked(scores: Tensor, known: Tensor) -> Tensor:
    """Return scores (B, C) in which classes that are not known (C,) are 30 below the sample's lowest score."""
    return torch.where(known, scores, scores.min(-1, keepdim=True).values - 30)
