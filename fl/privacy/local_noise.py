"""Local privacy: each client clips its own update and adds noise before it sends it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl.method.transform import Groups, Transform, TransformContext
from fl.privacy.clipping import sensitivity
from fl.privacy.mechanism import Release
from fl.privacy.plan import PrivacyPlan
from fl.privacy.private_sum import clip, parts_of, require_dense
from fl.privacy.rounding import rounded
from fl.privacy.streams import Streams
from fl.tensors.trees import row, stack, tree_map


@dataclass(frozen=True)
class LocalNoise(Transform):
    """u_i <- clip(u_i) + noise_i on the client's side. The engine appends it to the run's transforms.

    Any two updates of a client differ by at most 2 * bound after clipping, so the noise multiplier is relative to that.

    Args:
        plan: noise multiplier, mechanism and clipping.
    """

    plan: PrivacyPlan

    def client(self, groups: Groups, ctx: TransformContext) -> Groups:
        section, batch = self.plan.section, torch.Size((len(ctx.clients),) if ctx.stacked else ())
        for name, tree in groups.items():
            require_dense(name, tree)
        clipped, _ = clip(groups, section.clipping, section.clipping.init(), section.mechanism.norm, batch)
        if self.plan.noise_multiplier == 0:
            return clipped
        parts = parts_of(section.clipping, groups, len(batch))
        norm = section.mechanism.norm
        bounds = section.clipping.bounds_at(section.clipping.init(), 1 if parts is None else len(parts), norm)
        scale, streams = self.plan.noise_multiplier * 2 * sensitivity(bounds, norm), Streams(ctx.seed)
        noises, std = [], section.mechanism.std(Release(0, scale, self.plan.sampling, streams))
        for i, client in enumerate(ctx.clients):
            like = row(clipped, i) if ctx.stacked else clipped
            release = Release(ctx.participation, scale, self.plan.sampling, streams, int(client))
            noises.append(dict(section.mechanism.noise(section.mechanism.init(), like, release)[0]))
        return rounded(tree_map(_sum, clipped, stack(noises) if ctx.stacked else noises[0]), std)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    return a + b
