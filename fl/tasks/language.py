"""Language modelling: the next token at each position.    loss of a sample = mean of -log p(y_t | x_1..x_t)

Positions with y = -1 (padding) are ignored; a sample without any other position has loss 0. Metrics are means over
tokens, so a short sample has less weight in them than in the training loss, which is a mean over samples:

    loss        sum of -log p / tokens, in nats per token
    perplexity  exp(loss)
    accuracy    share of tokens with the highest score
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.checks import at_least
from fl.data.checking import refuse, require_labels, whole_numbers
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.task import Metric, Task


def negative_log_likelihood(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (B, L): -log softmax(outputs)_y of scores (B, L, V); 0 where y (B, L) is negative."""
    at = y.clamp(min=0).unsqueeze(-1)
    return -torch.log_softmax(outputs, -1).gather(-1, at).squeeze(-1) * (y >= 0)


def hits(outputs: Tensor, y: Tensor) -> Tensor:
    """Return (B, L) bool: whether y (B, L) has the highest of the scores (B, L, V). False where y is negative."""
    return outputs.argmax(-1) == y


class PerToken(Metric):
    """Mean over tokens, summed in float64, then transformed.

    Args:
        values: Function (outputs, y) -> (B, L), 0 where y is negative.
        then: Function applied to the mean.
    """

    batched: ClassVar[bool] = True

    def __init__(self, values: Callable[[Tensor, Tensor], Tensor], then: Callable[[float], float] = float):
        self.values, self.then = values, then

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        _check(outputs)
        zeros = torch.zeros(count, dtype=torch.float64)
        totals = self.values(outputs, batch["y"]).double().sum(-1)
        return zeros.index_add(0, segments, totals), zeros.index_add(0, segments, (batch["y"] >= 0).double().sum(-1))

    def finish(self, acc: Any) -> float:
        total, tokens = acc
        return self.then(float(total / tokens)) if tokens > 0 else float("nan")


def perplexity(loss: float) -> float:
    """Return exp(loss); infinite if a double cannot hold it.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, inf)
    """
    return math.exp(loss) if loss < 700 else math.inf


@register("task", "language_modelling")
@dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Next-token prediction for y (B, L), -1 where there is no token. Metrics loss, perplexity and accuracy.

    Args:
        vocabulary: Number of tokens. Default: the largest token in y plus 1.
    """

    vocabulary: int | None = None

    word_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(1, vocabulary=self.vocabulary)

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take ids of tokens, also as whole floats, with -1 or -100 for padding; refuse ids beyond the vocabulary."""
        y = require_labels(arrays, where)
        if y is None or y.ndim != 2:
            return dict(arrays)  # num_outputs refuses other shapes
        y = whole_numbers(y, where, "tokens are whole numbers")
        refuse((y < 0) & (y != -1) & (y != -100), y, where, "tokens are numbered from 0; padding is -1")
        if self.vocabulary is not None:
            hint = f"it is not in the vocabulary of {self.vocabulary} tokens; set a larger task.vocabulary"
            refuse(y >= self.vocabulary, y, where, f"{hint}, or leave it out")
        return {**arrays, "y": y}

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        y = arrays["y"]
        if y.ndim != 2 or y.dtype.kind not in "iu":
            raise ValueError(
                f"'y' {y.dtype} {y.shape} is not (rows, positions) of tokens; with shakespeare use target: sequence"
            )
        found = int(y.max()) + 1
        if self.vocabulary is not None and self.vocabulary < found:
            raise ValueError(f"vocabulary: {self.vocabulary} is less than the {found} tokens of the data; leave it out")
        return self.vocabulary or found

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        _check(outputs)
        if outputs.shape[1] != batch["y"].shape[-1]:
            raise ValueError(
                f"outputs: there are scores at {outputs.shape[1]} positions, and y has {batch['y'].shape[-1]}; with "
                "model: causal set task: instruct"
            )
        known = (batch["y"] >= 0).sum(-1)
        return negative_log_likelihood(outputs, batch["y"]).sum(-1) / known.clamp(min=1)

    def metrics(self) -> Mapping[str, Metric]:
        return {
            "loss": PerToken(negative_log_likelihood),
            "perplexity": PerToken(negative_log_likelihood, perplexity),
            "accuracy": PerToken(hits),
        }


def _check(outputs: Tensor) -> None:
    if outputs.ndim != 3:
        raise ValueError(
            f"outputs: {tuple(outputs.shape)} are not scores at each position; use a model with predicts: all"
        )
