"""The section `checkpoint:` of a configuration: when a run is written to disk."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When a run is written to disk.

    Args:
        every: Rounds between commits; a crash loses at most this many. At least 1. Default: 1. With an asynchronous
            server the default is the number of server steps made by the clients at work, because a commit waits for
            them.
        best: Keep the best model by evaluation.select. It is committed when it is found.
    """

    every: int | None = None
    best: bool = True

    def __post_init__(self) -> None:
        at_least(1, every=self.every)
