"""Sparse frames, FedLoGe's: unit vectors with entries that are 0, fitted to lie far apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EDGE = 1 - 1e-6  # largest cosine whose angle has a gradient


def entries_kept(dimensions: int, classes: int, sparsity: float, generator: torch.Generator) -> Tensor:
    """Return the entries of a sparse frame that are not 0, bool (h, C): all but floor(sparsity h C) random ones.

    Raises:
        ValueError: a class has no entry left.
    """
    total = dimensions * classes
    zeros = math.floor(round(sparsity * total, 6))
    kept = torch.ones(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=generator)[:zeros]] = False
    kept = kept.view(dimensions, classes)
    if not kept.any(0).all():
        raise ValueError(
            f"sparsity: {sparsity} leaves class {int(kept.any(0).int().argmin())} without an entry among the "
            f"{dimensions} features; use a smaller sparsity, or a model with more features"
        )
    return kept


def sparse_frame(frame: Tensor, kept: Tensor, steps: int, lr: float) -> Tensor:
    """Return a frame (h, C) with unit columns whose entries outside `kept` are 0, and whose smallest angles are wide.

    It starts at the given frame and takes steps of Adam on

        sum_c (|s_c| - 1)^2 - mean_c arccos max_{c' != c} cos(s_c, s_c').

    Args:
        frame: the first values (h, C).
        kept: entries that may differ from 0, bool (h, C).
        steps: number of steps.
        lr: learning rate.
    """
    s = (frame * kept).requires_grad_()
    same = torch.eye(frame.shape[1], dtype=torch.bool)
    adam = torch.optim.Adam([s], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            norms = s.norm(dim=0)
            unit = s / norms.clamp(min=1e-12)
            nearest = (unit.T @ unit).masked_fill(same, -1.0).amax(1).clamp(-EDGE, EDGE)
            loss = (norms - 1).square().sum() - nearest.arccos().mean()
            (gradient,) = torch.autograd.grad(loss, s)
            s.grad = gradient * kept
            adam.step()
    found = s.detach()
    return found / found.norm(dim=0).clamp(min=1e-12)
