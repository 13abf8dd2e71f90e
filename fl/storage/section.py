"""The `checkpoint` section of a configuration: when a run is written to disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """every: rounds between commits, what kill -9 can lose (default: 1; of an asynchronous server, as many of its steps as clients
    under way amount to: those who have begun train together, and a commit waits for them).  best: keep the best model by evaluation.select, committed as it is found."""

    every: int | None = None
    best: bool = True

    def __post_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(f"every: {self.every} is not at least 1")
