"""The `evaluation` and `stop` sections of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fl.method.client import ClientAlgorithm


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and on whom: every `every` rounds and after the last, on the server's test set (`server`) and on `clients`
    ("all" that train, a number of them drawn once, 0, or those `held_out` by splits.clients): val/* on their val split,
    clients/* on their test split.

    stage: the model as `received`, as `trained` locally, or as `adapted` by the client algorithm `adapt` to the first `shots`
    training samples (default: all of them). select: the metric that the best checkpoint has best
    (default: val/accuracy or val/loss where there is a val split, else train/loss); names ending in loss are minimised.
    """

    every: int = 1
    server: bool = True
    clients: int | Literal["all", "held_out"] = "all"
    stage: Literal["received", "trained", "adapted"] = "received"
    adapt: ClientAlgorithm | None = None
    shots: int | None = None
    select: str | None = None

    def __post_init__(self):
        if self.every < 1:
            raise ValueError(f"every: {self.every} is not at least 1")
        if (self.stage == "adapted") != (self.adapt is not None):
            raise ValueError(f"adapt: {self.adapt} with stage {self.stage!r}; a client algorithm goes with 'adapted'")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"shots: {self.shots} is not at least 1")
        if isinstance(self.clients, int) and self.clients < 0:
            raise ValueError(f"clients: {self.clients} is negative")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """target: metric -> value that ends the run once reached.  patience: evaluations without a better evaluation.select.
    simulated_seconds: of virtual time, after which the run ends with the round at hand."""

    target: dict[str, float] = field(default_factory=dict)
    patience: int | None = None
    simulated_seconds: float | None = None

    def __post_init__(self):
        if self.simulated_seconds is not None and not self.simulated_seconds > 0:
            raise ValueError(f"simulated_seconds: {self.simulated_seconds} is not positive")
