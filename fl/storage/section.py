"""The section `checkpoint:` of a configuration: when a run is written to disk."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a run is written to disk.

    Args:
        every: rounds between checkpoints, 1 or more; a crash loses at most this many rounds. Default: 1. With an
            asynchronous server: steps of the server; default: the number of clients that train at the same time,
            because a checkpoint waits for all of them.
        best: keep the best model by `evaluation.select`; it is written in the round in which it is found.
    """

    every: int | None = None
    best: bool = True

    def __post_init__(self) -> None:
        at_least(1, every=self.every)
