"""Clusterings: balanced soft assignments, and measures of clusters against classes that ignore the clusters' names.

    S (N, K) -> Q (N, K), rows sum to 1, columns to about N / K                                     `sinkhorn`
    T[k, c] = number of samples of class c in cluster k                                             `contingency`
    accuracy = max over one-to-one maps pi of  sum_k T[k, pi(k)] / N                                `matched_accuracy`
    NMI = 2 I(cluster; class) / (H(cluster) + H(class))                                             `nmi`

Tables of parts add up, so measures made from them pool exactly over batches and clients.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn(similarity: Tensor, scale: float = 25.0, iterations: int = 100) -> Tensor:
    """Return a soft assignment (N, K) whose rows sum to 1, and whose columns sum to about N / K.

    Sinkhorn and Knopp's scaling of softmax(scale * similarity). It stops when the column factors of two iterations
    differ by less than 1 % in sum; this is tested in every tenth iteration. Computed in float64, without gradients.

    Args:
        similarity: similarity of N samples to K clusters, (N, K), such as cosines.
        scale: inverse temperature.
        iterations: largest number of iterations.

    >>> sinkhorn(torch.zeros(3, 2)).tolist()
    [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    n, k = similarity.shape
    if not n:
        return similarity.detach().clone()
    p = (scale * similarity.detach().double()).softmax(-1).clamp_min(1e-200).T  # (K, N)
    columns = torch.full((n,), 1.0 / n, dtype=torch.float64)
    rows = torch.ones(k, dtype=torch.float64)
    for iteration in range(iterations):
        rows = (1.0 / k) / (p @ columns)
        before, columns = columns, (1.0 / n) / (rows @ p)
        if iteration % 10 == 0 and (before / columns - 1).abs().sum() < 0.01:
            break
    return (n * columns[:, None] * p.T * rows).to(similarity.dtype)


def contingency(clusters: Tensor, classes: Tensor, size: int) -> Tensor:
    """Return the number of samples by cluster and class, float64 (size, size).

    Args:
        clusters: cluster of each sample, int64 (N,), in 0 .. size - 1.
        classes: class of each sample, int64 (N,), in 0 .. size - 1.
        size: number of clusters and of classes.

    >>> contingency(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]), 2).tolist()
    [[0.0, 2.0], [1.0, 0.0]]
    """
    return torch.bincount(clusters * size + classes, minlength=size * size).view(size, size).double()


def matching(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows, columns), the one-to-one pairs with the largest sum in a table (R, C); min(R, C) pairs.

    Kuhn 1955, the Hungarian method. Rows are ascending.

    >>> [side.tolist() for side in matching(torch.tensor([[2.0, 3.0], [1.0, 3.0]]))]
    [[0, 1], [0, 1]]
    """
    from scipy.optimize import linear_sum_assignment  # importing it takes a tenth of a second

    rows, columns = linear_sum_assignment(similarity.detach().cpu().double().numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def matched(table: Tensor) -> Tensor:
    """Return the number of correct samples by class, (C,), under the best one-to-one map of clusters (K) to classes.

    Args:
        table: number of samples by cluster and class, (K, C), see `contingency`.
    """
    rows, columns = matching(table)
    correct = torch.zeros(table.shape[1], dtype=table.dtype)
    correct[columns] = table[rows, columns]
    return correct


def matched_accuracy(predicted: Tensor, true: Tensor) -> float:
    """Return the largest accuracy over all one-to-one renamings of the predicted clusters; NaN without samples.

    Args:
        predicted: cluster of each sample, int64 (N,), from 0.
        true: class of each sample, int64 (N,), from 0.

    >>> matched_accuracy(torch.tensor([2, 2, 0, 0]), torch.tensor([0, 0, 1, 0]))
    0.75
    """
    if not len(true):
        return float("nan")
    table = contingency(predicted, true, 1 + int(max(predicted.max(), true.max())))
    return float(matched(table).sum() / len(true))


def nmi(table: Tensor) -> float:
    """Return the normalised mutual information of a table by cluster and class, (K, C); NaN without samples.

    It is divided by the mean of both entropies. With one cluster and one class it is 1.

    >>> nmi(torch.tensor([[0.0, 2.0], [3.0, 0.0]])), nmi(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    (1.0, 0.0)
    """
    total = table.sum()
    if not total > 0:
        return float("nan")
    joint = table.double() / total
    by_cluster, by_class, both = (_entropy(p) for p in (joint.sum(1), joint.sum(0), joint))
    if by_cluster + by_class == 0:
        return 1.0
    return float(2 * (by_cluster + by_class - both).clamp(min=0) / (by_cluster + by_class))


def _entropy(p: Tensor) -> Tensor:
    """The entropy of a distribution, in nats."""
    return -torch.special.xlogy(p, p).sum()
