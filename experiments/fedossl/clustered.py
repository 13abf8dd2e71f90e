"""Supervised FedAvg whose outputs are clustered: k-means on the outputs for the test rows, one cluster per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from fl.strategies.fedavg import FedAvg, State
from sklearn.cluster import KMeans

from fl import EvaluateModel, EvaluationGenerator, FedAvgEquivalent, Params, ServerContext, ServerWork
from fl.tensors.clustering import contingency, matched_accuracy, nmi


def measured(module: torch.nn.Module, model: Params, x: torch.Tensor, y: torch.Tensor, seen: int) -> dict[str, float]:
    """Return matched accuracy and NMI of the clusters, over the rows of classes from `seen` on."""
    with torch.inference_mode():
        parts = [torch.func.functional_call(module, dict(model), (block,)) for block in x.split(1024)]
    clusters = KMeans(10, n_init=10, random_state=0).fit_predict(torch.cat(parts).numpy())
    unseen, found = y >= seen, torch.from_numpy(clusters).long()
    own = KMeans(10 - seen, n_init=10, random_state=0).fit_predict(torch.cat(parts)[unseen].numpy())
    return {
        "clustered/unseen_accuracy": matched_accuracy(found[unseen], y[unseen]),
        "clustered/unseen_nmi": nmi(contingency(found[unseen], y[unseen], 10)),
        "clustered/told_accuracy": matched_accuracy(torch.from_numpy(own).long(), y[unseen] - seen),
    }


@dataclass(frozen=True, kw_only=True)
class ClusteredFedAvg(FedAvg):
    """FedAvg that also clusters the outputs for the test rows at each evaluation.

    `told_accuracy` is with k-means on the rows of unseen classes alone, which it would have to be told.

    Args:
        seen: number of seen classes, those with the lowest numbers.
    """

    seen: int = 6

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent()

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        plain = yield EvaluateModel(state.model)
        more = yield ServerWork(measured, (ctx.module, state.model, ctx.test["x"], ctx.test["y"], self.seen))
        return {**plain, **more}
