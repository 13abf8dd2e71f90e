"""Parts of open-world learning at a client: partners of rows, losses of rows without label, and local centroids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fl import clustering

TEMPERATURE = 0.1  # of the assignments to centroids
LEAST = 1e-7  # lower bound of a probability before its logarithm


def partners(y: Tensor, z: Tensor) -> Tensor:
    """Return the partner of each row, (B,).

    A labelled row's partner is the next row of its class in the batch, cyclically; alone, it is its own. A row without
    label (y = -1) has the row with the largest cosine as partner, itself left out.

    Args:
        y: classes (B,), -1 without label.
        z: features (B, D).

    >>> partners(torch.tensor([4, 2, 4, -1, 4]), torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 3], [0, -1]])).tolist()
    [2, 1, 4, 1, 0]
    """
    count, unit = len(y), F.normalize(z.detach(), dim=-1)
    if count == 1:
        return torch.zeros(1, dtype=torch.int64)
    nearest = (unit @ unit.T).fill_diagonal_(-2.0).argmax(1)
    ahead = (torch.arange(count) - torch.arange(count)[:, None] - 1) % count  # 0: the next row; count - 1: the row
    following = ahead.masked_fill(y != y[:, None], count).argmin(1)
    return torch.where(y >= 0, following, nearest)


def suppression(counts: Tensor, beta: float) -> Tensor:
    """Return the weight of each class, beta^(1 - N_c / max N), from the counts N (C,); all are beta if all N are 0.

    >>> suppression(torch.tensor([4.0, 2.0, 0.0]), 0.25).tolist()
    [1.0, 0.5, 0.25]
    """
    return beta ** (1 - counts / counts.max().clamp(min=1))


def assignments(z: Tensor, centroids: Tensor) -> Tensor:
    """Return t = softmax(z / |z| G^T / .1), (B, C), of features z (B, D) to the centroids G (C, D)."""
    return (F.normalize(z, dim=-1) @ centroids.T / TEMPERATURE).softmax(-1)


def eased_loss(logits: Tensor, y: Tensor, rise: float) -> Tensor:
    """Return one loss per row, (B,), whose mean is the mean cross-entropy of the rows with label.

    The logit of the target is raised first, which eases the task. Rows without label (y = -1) have 0.

    Args:
        logits: (B, C).
        y: classes (B,), -1 without label.
        rise: what is added to the logit of the target.
    """
    labelled, target = y >= 0, y.clamp(min=0)
    if rise:
        logits = logits + rise * F.one_hot(target, logits.shape[1])
    return F.cross_entropy(logits, target, reduction="none") * labelled * (len(y) / labelled.sum().clamp(min=1))


def pair_loss(p: Tensor, partner: Tensor) -> Tensor:
    """Return mean_i -log <p_i, q_i> of probabilities p and those of the partners q, (B, C) each, a tensor ()."""
    return -(p * partner).sum(1).clamp_min(LEAST).log().mean()


def cluster_loss(t: Tensor, partner: Tensor) -> Tensor:
    """Return mean_i -sum_c t_ic log q_ic of assignments t and those of the partners q, (B, C) each, a tensor ()."""
    return -(t * partner.clamp_min(LEAST).log()).sum(1).mean()


def pseudo_loss(logits: Tensor, t: Tensor, unlabelled: Tensor, threshold: float) -> Tensor:
    """Return the mean cross-entropy to argmax t over the rows without label with max t > threshold; 0 without any."""
    surest, label = t.detach().max(-1)
    kept = unlabelled & (surest > threshold)
    return F.cross_entropy(logits[kept], label[kept]) if kept.any() else logits.new_zeros(())


def suppressed_loss(p: Tensor, weights: Tensor) -> Tensor:
    """Return L_u of probabilities p (n, C) and class weights (C,), a tensor (); 0 without rows."""
    if not len(p):
        return p.new_zeros(())
    top, k = p.max(-1)
    return (weights[k] * (1 - top)).mean() / p.shape[1]


def local_centroids(memory: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return centroids (count, D) of unit norm of normalised features (n, D); (0, D) without features.

    They start as random rows. Five times, each feature joins the cluster of its largest share in Sinkhorn's assignment
    (10 iterations), and a centroid becomes the normalised mean of its features. An empty one becomes a random row.
    """
    n = len(memory)
    if not n:
        return memory
    z = memory[torch.randperm(n, generator=generator)[torch.arange(count) % n]]
    for _ in range(5):
        cluster = clustering.sinkhorn(memory @ z.T, iterations=10).argmax(1)
        sums = torch.zeros_like(z).index_add_(0, cluster, memory)
        empty = torch.bincount(cluster, minlength=count) == 0
        sums[empty] = memory[torch.randint(n, (int(empty.sum()),), generator=generator)]
        z = F.normalize(sums, dim=-1)
    return z
