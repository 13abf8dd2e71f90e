"""FedLoGe: for globally long-tailed data. FedAvg of a body and a head g; a fixed frame teaches the body.

    stage 1    (phi, g) <- sum_i p_i (phi_i, g_i);    l_i stays with client i            (`clients/fedloge.py`)
    stage 2    g_c <- rho g_c / |g_c|                 for predictions: the norms carry the frequencies of the classes

Xiao et al. 2024, arXiv:2401.08977.  The frame S has floor(sparsity h C) entries that are 0; the server fits the others
once, before round 0.  Traffic per client and round: |phi| + h C + C floats each way, as FedAvg.  A sparse S goes down
once to each client, h C floats; with sparsity 0 it comes from the seed and costs no bytes.
eval/* and the saved model have the realigned g; the state keeps g as trained.  frame/* and unaligned/* are the server's
metrics of the scores f S and of g as trained.  Evaluate on a balanced test set.
Differs from the authors' program: rho is by default the mean norm of g's rows (there 1.7).  S is fitted with unit
columns, which are normalised at the end, and `client.norm` scales it in the loss; so a learning rate of 1e-4 at norm .1
is 1e-3 here.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from fl import (
    Broadcast,
    Evaluate,
    EvaluationGenerator,
    Params,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Static,
    checks,
    head_layer,
    random,
    register,
    with_norms,
)

from . import fedavg
from .partial import Partial, without
from .sparse_frame import entries_kept, sparse_frame

FRAME = "loge.frame.weight"


@dataclass(frozen=True)
class State(fedavg.State):
    """The model with g as trained, what the server optimiser remembers, and the name of the layer g."""

    head: str

    def with_head(self, rho: float | Literal["mean", "off"]) -> Params:
        """Return the model with the rows of g realigned."""
        weight = f"{self.head}.weight"
        return self.model if rho == "off" else self.model.replace({weight: with_norms(self.model[weight], rho)})

    def scoring_by_frame(self) -> Params:
        """Return the model with the frame in place of g, so that its scores are f S."""
        layer = {f"{self.head}.weight": self.model[FRAME]}
        bias = f"{self.head}.bias"
        return self.model.replace(layer | ({bias: self.model[bias] * 0} if bias in self.model else {}))


@register("strategy", "fedloge")
@dataclass(frozen=True, kw_only=True)
class FedLoGe(Partial):
    """Average the body and the shared head; realign the head for predictions.

    Args:
        sparsity: fraction of the frame's entries that are 0, in [0, 1). 0 is the dense frame.
        fit_steps: steps of Adam that fit a sparse frame, at least 0.
        fit_lr: their learning rate, positive.
        rho: norm of the rows of the realigned heads, positive; `mean` is the mean norm of g's rows; `off` predicts with
            the heads as trained.
    """

    private: ClassVar[None] = None  # type: ignore[misc]  # it is the clients' head
    sparsity: float = 0.6
    fit_steps: int = 10_000
    fit_lr: float = 1e-3
    rho: float | Literal["mean", "off"] = "mean"

    client: ClassVar[str] = "fedloge"
    example_config: ClassVar[dict[str, Any]] = {"strategy.sparsity": 0.3, "strategy.fit_steps": 20}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1)", sparsity=self.sparsity)
        checks.not_negative(fit_steps=self.fit_steps)
        checks.positive(fit_lr=self.fit_lr)
        if isinstance(self.rho, str):
            checks.one_of(("mean", "off"), rho=self.rho)
        else:
            checks.positive(rho=self.rho)

    def default_private(self, model: Params, module: nn.Module) -> list[str]:
        return [name for name in model if name.startswith("loge.local.")]

    def shared_names(self, model: Params, ctx: ServerContext) -> list[str]:
        return without(super().shared_names(model, ctx), [FRAME])

    def init(self, model: Params, ctx: ServerContext) -> State:
        head = head_layer(ctx.module, [name for name, _ in ctx.module.named_parameters()])
        shapes = {name: model[name].shape for name in (FRAME, f"{head}.weight") if name in model}
        if len(shapes) < 2 or len(set(shapes.values())) > 1 or not self.default_private(model, ctx.module):
            raise ValueError(
                "name: fedloge trains the model's last linear layer and the parts loge.* of its client; use client: "
                "fedloge, leave them out of model.freeze, and use no adapter for that layer"
            )
        self.entries(model, ctx)  # a sparsity that empties a class stops the run here
        state = super().init(model, ctx)
        return State(state.model, state.optimiser, head)

    def entries(self, model: Params, ctx: ServerContext) -> Tensor:
        """Return the entries of the frame that may differ from 0, bool (h, C)."""
        classes, features = model[FRAME].shape
        return entries_kept(features, classes, self.sparsity, random.torch_generator(ctx.seed, "fedloge", "frame"))

    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if not self.sparsity:
            return state, {}
        frame = state.model[FRAME].T
        fitted = yield ServerWork(sparse_frame, (frame, self.entries(state.model, ctx), self.fit_steps, self.fit_lr))
        return replace(state, model=state.model.replace({FRAME: fitted.T})), {}

    def broadcast(self, state: fedavg.State, ctx: ServerContext) -> Broadcast:
        assert isinstance(state, State)
        model = state.model.select(self.shared_names(state.model, ctx))
        private = self.private_names(state.model, ctx)
        config = {"private": private, "rho": self.rho, "head": state.head}
        static = {"frame": Static(0, state.model.select([FRAME]))} if self.sparsity else {}
        return Broadcast({"model": model}, static=static, config=config)

    def model(self, state: State) -> Params:
        return state.with_head(self.rho)

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        metrics = yield from super().evaluation(state, ctx)
        if not ctx.test:
            return metrics
        rows = {"rows": np.arange(len(ctx.test["y"]))}
        found: dict[str, Any] = {}
        for name, model in (("frame", state.scoring_by_frame()), ("unaligned", state.model)):
            sets = yield Evaluate(model, rows)
            found |= {f"{name}/{metric}": value for metric, value in sets["rows"].items()}
        return {**metrics, **found}
