"""FedoSSL's clients: classify the classes with labels, cluster all rows, and report centroids of the features.

    logits = scale cos(z, w_c)        z: inputs of the last layer        p, p': softmax of two weak views of a sample

    L_s = cross-entropy of labelled rows, with the target's logit + m scale      m = min(mean(1 - max p), margin)
    L_p = mean_i -log <p_i, p'_a(i)>          a(i): another row of the class, or the most similar row
    R   = sum_c pbar_c log pbar_c             pbar: mean of p over the batch
    L_c = mean_i -sum_c t_ic log t'_a(i)c     t = softmax(z / |z| G^T / .1), from round `cluster_from`
    L_l = cross-entropy to argmax t of rows without label with max t > threshold, from round `pseudo_from`
    L_u = mean_i beta^(1 - N_k / max N) (1 - p_ik) / C       k = argmax p_i, both views, rows without label

    loss = L_s + pair L_p + entropy R + cluster L_c + pseudo L_l + suppress L_u

G are the received centroids (C, D). N_k is the number of rows without label that were predicted as class k in the last
epoch. The mean in m is over the client's rows without label, under the received model. A batch has rows with and
without label. The client keeps the last `memory` normalised features of training, which it never sends. After training
it sends its change, `local_clusters` centroids of the memory (balanced k-means by Sinkhorn's scaling), and the mean
feature of each class with labels.
Zhang, Ma, Guo, Xu 2023, arXiv:2305.00771; 5 epochs of batch 512, SGD with lr .1, momentum .9, weight decay 5e-4.
Differs from the paper: a labelled row's partner is the next row of its class in the batch, whose order is random; the
share of labels in a batch varies; the memory is filled by one view.
Differs from the authors' program: the memory stays at the client; m is measured on training rows; L_u is in the loss.
Loop only: the loss is over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Descent,
    Extended,
    LocalSteps,
    LocalTraining,
    Params,
    Phase,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    Tree,
    Update,
    checks,
    class_means,
    last_linear,
    layer_outputs,
    register,
)

from .measure import blocks, representations
from .open_world import (
    LEAST,
    assignments,
    cluster_loss,
    eased_loss,
    local_centroids,
    pair_loss,
    partners,
    pseudo_loss,
    suppressed_loss,
    suppression,
)

TWO_VIEWS: Mapping[str, Literal["weak", "strong"]] = {"x": "weak", "x2": "weak"}


class Cosine(nn.Linear):
    """A linear layer without bias whose outputs are scale cos(z, w_c).

    Args:
        layer: the layer that it replaces; the weights are taken from it.
        scale: factor of the cosines.
    """

    def __init__(self, layer: nn.Linear, scale: float):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.scale = scale
        self.weight.data.copy_(layer.weight.data)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits (B, C) of features z (B, D)."""
        return self.scale * F.linear(F.normalize(z, dim=-1), F.normalize(self.weight, dim=-1))


class WithFeatures(Extended):
    """A model that also returns the inputs of its last layer."""

    def forward(self, x: Tensor, features: bool = False) -> Any:
        """Return the logits, or (logits, features)."""
        return self.with_inputs(self.last, x) if features else self.original(x)


def with_cosine(module: nn.Module, scale: float, outputs: int | None = None) -> WithFeatures:
    """Return the model with cosines in place of its last layer, which is compared with `outputs` if they are given."""
    name, layer = last_linear(module, outputs)
    return WithFeatures(module, "cosine", nn.Identity(), {name: Cosine(layer, scale)})


def uncertainty(ctx: ClientContext, params: Params) -> float:
    """Return the mean of 1 - max p over the client's rows without label; 0 without such rows."""
    if not len(ctx.unlabelled):
        return 0.0
    net = ctx.net(params)
    with torch.inference_mode():
        rows = blocks(replace(ctx, train=ctx.unlabelled))
        total = sum(float((1 - net(batch["x"]).softmax(-1).amax(-1)).double().sum()) for batch in rows)
    return total / len(ctx.unlabelled)


@register("client", "fedossl")
@dataclass(frozen=True, kw_only=True)
class FedoSSL(LocalTraining):
    """Classification of seen classes and clustering of all rows.

    Args:
        scale: factor of the cosines in the logits, positive.
        margin: upper bound of m, at least 0. 0 is the plain cross-entropy.
        pair: weight of L_p, at least 0.
        entropy: weight of R, at least 0.
        cluster: weight of L_c, at least 0.
        cluster_from: first round with L_c, counted from 0.
        pseudo: weight of L_l, at least 0.
        pseudo_from: first round with L_l, counted from 0.
        threshold: least max t of a pseudo-label, in [0, 1].
        suppress: weight of L_u, at least 0. 0 leaves it out, as the authors' program does.
        beta: weight in L_u of a class that is never predicted, in (0, 1].
        memory: number of features that the client keeps, positive.
        local_clusters: number of centroids that the client sends, positive.
        keep_optimiser: whether the optimiser's memory, such as its momentum, lasts from round to round.
    """

    scale: float = 10.0
    margin: float = 0.5
    pair: float = 1.0
    entropy: float = 1.0
    cluster: float = 0.5
    cluster_from: int = 5
    pseudo: float = 1.0
    pseudo_from: int = 7
    threshold: float = 0.95
    suppress: float = 2.0
    beta: float = 0.2
    memory: int = 1024
    local_clusters: int = 32
    keep_optimiser: bool = False

    sends: ClassVar[tuple[str, ...]] = ("model", "centroids", "means")
    receives: ClassVar[tuple[str, ...]] = ("model", "centroids")
    classes_only: ClassVar[bool] = True
    one_at_a_time: ClassVar[bool] = True
    loss_over_batch: ClassVar[bool] = True
    weight_view: ClassVar[Literal["train", "unlabelled", "all"]] = "all"
    example_config: ClassVar[Mapping[str, Any]] = {"labels": {"name": "open_world", "seen": 2, "share": 0.5}}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(scale=self.scale, memory=self.memory, local_clusters=self.local_clusters)
        weights = {name: getattr(self, name) for name in ("pair", "entropy", "cluster", "pseudo", "suppress")}
        checks.not_negative(margin=self.margin, cluster_from=self.cluster_from, pseudo_from=self.pseudo_from, **weights)
        checks.within("[0, 1]", threshold=self.threshold)
        checks.within("(0, 1]", beta=self.beta)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return with_cosine(module, self.scale, outputs)

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        changes = TWO_VIEWS if self._two_views else phase.changes
        return (replace(phase, view="all", changes=changes, last_batch=self.last_batch or "drop"),)

    def gradients_per_step(self) -> int:
        return 2 if self._two_views else 1

    @property
    def _two_views(self) -> bool:
        return bool(self.pair or self.cluster or self.suppress)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        classes, width = inputs.received["centroids"].shape
        return {"features": torch.zeros(0, width), "counts": torch.zeros(classes), "optimiser": {}, "steps": 0}

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        _refuse_graphs(ctx)
        inputs, (phase,), received = self.inputs(ctx), self.phases(ctx.round, ctx.rounds), ctx.received["model"]
        now = {"round": ctx.round, "uncertainty": uncertainty(ctx, received)}
        at = StepContext(
            **{**vars(inputs), "config": {**inputs.config, **now}},
            phase=phase,
            start=received,
            module_facts=ctx.module_facts,
        )
        w, rows = received.clone(), len(ctx.train) + len(ctx.unlabelled)
        steps, descent = LocalSteps(self, ctx, phase=phase, at=at), self._descent(phase, w, inputs.state)
        epoch = max(int(phase.batches_per_epoch(np.array(rows))), 1)
        counts, features = torch.zeros_like(inputs.state["counts"]), inputs.state["features"]
        for batch in steps:
            with layer_outputs(ctx.module, "") as recorded:
                gradient = steps.gradient(w)
            logits, z = (part.detach() for part in recorded[0][1])  # of the first view
            descent.step(gradient)
            features = torch.cat([features, F.normalize(z, dim=-1)])[-self.memory :].clone()
            counts += torch.bincount(logits.argmax(1)[batch["y"] < 0], minlength=len(counts))
            if steps.taken % epoch == 0:
                steps.at = replace(steps.at, state={**steps.at.state, "counts": counts})
                counts = torch.zeros_like(counts)
        kept = {"optimiser": descent.memory, "steps": descent.t} if self.keep_optimiser else {}
        state = {**steps.at.state, "features": features, **kept}
        groups = {
            "model": w - received,
            "centroids": local_centroids(features, self.local_clusters, ctx.generator("centroids")),
            "means": class_means(representations(ctx, w, None), ctx.train.take()["y"]),
        }
        return Reply(Update(groups, rows, {"loss": steps.loss}), state)

    def _descent(self, phase: Phase, w: Params, state: Mapping[str, Any]) -> Descent:
        """Return the steps on w, with the optimiser's memory of the last round if it lasts."""
        descent = Descent(phase, w)
        if self.keep_optimiser:
            if not all(isinstance(value, Params) for value in descent.memory.values()):
                rule = type(phase.optimiser).__name__
                raise ValueError(
                    f"keep_optimiser: the memory of {rule} cannot be kept; take sgd or adam, or leave it out"
                )
            if state["optimiser"]:
                descent.memory = {name: value.clone() for name, value in state["optimiser"].items()}
                descent.t = state["steps"]
        return descent

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        y, labelled = batch["y"], batch["y"] >= 0
        logits, z = net(batch["x"], features=True)
        losses = eased_loss(logits, y, self.scale * min(at.config["uncertainty"], self.margin))
        p, total = logits.softmax(-1), logits.new_zeros(())
        if self.entropy:
            total = total + self.entropy * torch.special.xlogy(p.mean(0), p.mean(0).clamp_min(LEAST)).sum()
        t = assignments(z, at.received["centroids"])
        if self.pseudo and at.config["round"] >= self.pseudo_from:
            total = total + self.pseudo * pseudo_loss(logits, t, ~labelled, self.threshold)
        if not self._two_views:
            return losses + total
        other, z2 = net(batch["x2"], features=True)
        q, partner = other.softmax(-1), partners(y, z)
        total = total + self.pair * pair_loss(p, q[partner])
        if self.cluster and at.config["round"] >= self.cluster_from:
            total = total + self.cluster * cluster_loss(t, assignments(z2, at.received["centroids"])[partner])
        if self.suppress:
            weights = suppression(at.state["counts"], self.beta)
            total = total + self.suppress * suppressed_loss(torch.cat([p[~labelled], q[~labelled]]), weights)
        return losses + total


def _refuse_graphs(ctx: ClientContext) -> None:
    if ctx.graphs:
        raise ValueError("execution.graphs: the losses of fedossl change from epoch to epoch; leave graphs out")
