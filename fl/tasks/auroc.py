"""The area under the ROC curve."""

from __future__ import annotations

from torch import Tensor


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Return the probability that a positive sample has a larger score than a negative one; ties count half.

    NaN if all samples are positive, or none. A score that is NaN is a `ValueError`.

    >>> import torch
    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True]))
    0.875

    Args:
        scores: score of each sample, (n,).
        positive: whether each sample is positive, (n,) bool.
    """
    from scipy.stats import rankdata  # importing it takes half a second

    count = int(positive.sum())
    others = len(positive) - count
    if scores.isnan().any():
        raise ValueError("scores: some are NaN, so they have no order; training has diverged, lower the rates")
    if not count or not others:
        return float("nan")
    ranks = rankdata(scores.numpy())[positive.numpy()]
    return float((ranks.sum() - count * (count + 1) / 2) / (count * others))
