"""The next token at every place.    loss of a sample = mean over its known tokens of -log p(y_t | x_1..x_t)

Tokens with y = -1 (pads) are ignored; a sample that knows none has loss 0. The metrics pool over tokens, so a short sample weighs less
in them than in the training loss, which is a mean over samples:

    loss        nats per token, sum of -log p / tokens        perplexity  exp(loss)        accuracy  share of tokens that score highest
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.registry import register
from fl.tasks.task import Metric, Task


def negative_log_likelihood(outputs: Tensor, y: Tensor) -> Tensor:
    """(B, L): -log softmax(outputs)_y of scores (B, L, V), 0 where y (B, L) is negative."""
    at = y.clamp(min=0).unsqueeze(-1)
    return -torch.log_softmax(outputs, -1).gather(-1, at).squeeze(-1) * (y >= 0)


def hits(outputs: Tensor, y: Tensor) -> Tensor:
    """(B, L): whether the highest of scores (B, L, V) is at y (B, L); never where y is negative."""
    return outputs.argmax(-1) == y


class PerToken(Metric):
    """then(sum of values(outputs, y) (B, L) / known tokens), summed in float64."""

    batched: ClassVar[bool] = True

    def __init__(self, values: Callable[[Tensor, Tensor], Tensor], then: Callable[[float], float] = float):
        self.values, self.then = values, then

    def measure(self, outputs, batch, segments, count) -> Any:
        _check(outputs)
        zeros = torch.zeros(count, dtype=torch.float64)
        totals = self.values(outputs, batch["y"]).double().sum(-1)
        return zeros.index_add(0, segments, totals), zeros.index_add(0, segments, (batch["y"] >= 0).double().sum(-1))

    def finish(self, acc):
        total, tokens = acc
        return self.then(float(total / tokens)) if tokens > 0 else float("nan")


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is beyond what a double holds."""
    return math.exp(loss) if loss < 700 else math.inf


@register("task", "language_modelling")
@dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """y (B, L): the next token at each place, -1 for none; see the module. `vocabulary`: tokens that there are (default: those up to the
    largest in y)."""

    vocabulary: int | None = None

    def num_outputs(self, arrays):
        y = arrays["y"]
        if y.ndim != 2 or y.dtype.kind not in "iu":
            raise ValueError(
                f"'y' {y.dtype} {y.shape} is not (rows, places) of tokens; of shakespeare take target: sequence"
            )
        there = int(y.max()) + 1
        if self.vocabulary is not None and self.vocabulary < there:
            raise ValueError(f"vocabulary: {self.vocabulary} is less than the {there} tokens of the data; leave it out")
        return self.vocabulary or there

    def loss(self, outputs, batch):
        _check(outputs)
        known = (batch["y"] >= 0).sum(-1)
        return negative_log_likelihood(outputs, batch["y"]).sum(-1) / known.clamp(min=1)

    def metrics(self):
        return {
            "loss": PerToken(negative_log_likelihood),
            "perplexity": PerToken(negative_log_likelihood, perplexity),
            "accuracy": PerToken(hits),
        }


def _check(outputs: Tensor) -> None:
    if outputs.ndim != 3:
        raise ValueError(
            f"outputs: {tuple(outputs.shape)} are not scores at every place; take a model with predicts: all"
        )
