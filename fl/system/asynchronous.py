"""Asynchronous server modes: buffered (FedAsync, FedBuff) and tiered (FedAT). `fl.system.clock` plays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, not_negative
from fl.registry import register
from fl.system.server_mode import ServerMode


@dataclass(frozen=True, kw_only=True)
class Asynchronous(ServerMode):
    """Base of asynchronous modes.

    Args:
        max_staleness: Most server steps since a client's download, 0 or more; later arrivals are discarded. Default:
            no limit.
    """

    max_staleness: int | None = None

    def __post_init__(self) -> None:
        not_negative(max_staleness=self.max_staleness)

    def tiers_of(self, seconds: np.ndarray) -> list[np.ndarray]:
        """Return the ids of each tier's clients, ascending. `seconds` (N,): duration of each client's round trip."""
        raise NotImplementedError

    def slots(self, sizes: Sequence[int]) -> list[int]:
        """Return how many clients of each tier work at the same time. `sizes`: number of clients per tier."""
        raise NotImplementedError

    @property
    def enough(self) -> int | None:
        """Number of arrivals that trigger a server step; None: the last arrival of a tier's round triggers it."""
        raise NotImplementedError


@register("server", "buffered", "async")
@dataclass(frozen=True, kw_only=True)
class Buffered(Asynchronous):
    """A fixed number of clients work at all times; the server steps when `buffer` of them have arrived.

    buffer=1 is FedAsync: Xie, Koyejo, Gupta 2019, arXiv:1903.03934. More is FedBuff: Nguyen et al. 2022,
    arXiv:2106.06639. Slots that become free at the time of a step are filled after it, from the new version.
    Neutral: with identical devices, buffer=concurrency equals synchronous rounds.

    Args:
        concurrency: Number of clients that work at the same time; at least 1.
        buffer: Number of arrivals per server step; at least 1.
        max_staleness: Most server steps since a client's download, 0 or more; later arrivals are discarded. Default:
            no limit.
    """

    concurrency: int
    buffer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, concurrency=self.concurrency, buffer=self.buffer)

    def tiers_of(self, seconds: np.ndarray) -> list[np.ndarray]:
        return [np.arange(len(seconds))]

    def slots(self, sizes: Sequence[int]) -> list[int]:
        if self.concurrency > sizes[0]:
            raise ValueError(f"concurrency: {self.concurrency} is more than the population of {sizes[0]}")
        return [self.concurrency]

    @property
    def enough(self) -> int | None:
        return self.buffer


@register("server", "tiered")
@dataclass(frozen=True, kw_only=True)
class Tiered(Asynchronous):
    """Tiers of clients with similar speed; each tier has its own synchronous rounds and does not wait for other tiers.

    FedAT: Chai et al. 2021, arXiv:2010.05958. The server steps when a tier's round ends with at least one arrival.
    Tiers have equal size and are formed by the duration of a round trip without jitter, fastest first, ties by id.

    Args:
        tiers: Number of tiers; at least 1.
        clients: Number of clients in a tier's round; at least 1. A smaller tier uses all its clients.
        max_staleness: Most server steps since a client's download, 0 or more; later arrivals are discarded. Default:
            no limit.
    """

    tiers: int
    clients: int

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, tiers=self.tiers, clients=self.clients)

    def tiers_of(self, seconds: np.ndarray) -> list[np.ndarray]:
        return [np.sort(members) for members in np.array_split(np.argsort(seconds, kind="stable"), self.tiers)]

    def slots(self, sizes: Sequence[int]) -> list[int]:
        if not all(sizes):
            raise ValueError(f"tiers: {self.tiers} is more than the population of {sum(sizes)}")
        return [min(self.clients, size) for size in sizes]

    @property
    def enough(self) -> int | None:
        return None
