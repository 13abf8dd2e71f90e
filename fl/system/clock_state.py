"""Events of an asynchronous server and the state of its clock between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Start(NamedTuple):
    """A client starts at `time` from the model of `version`."""

    client: int
    dispatch: int
    version: int
    time: float


class Arrival(NamedTuple):
    """The update of dispatch number `dispatch` arrives.

    staleness = server steps done when the update is used - server steps done when the client started (`version`)
    """

    client: int
    dispatch: int
    version: int
    staleness: int


class ServerStep(NamedTuple):
    """A server step at `time`, from `version` to `version` + 1.

    arrivals    the updates used, all of tier `tier`, in order of arrival
    starts      clients that started since the step before, all from `version`
    discarded   updates that were too stale
    failed      dispatch numbers whose update never arrived
    """

    time: float
    version: int
    tier: int
    arrivals: Sequence[Arrival]
    starts: Sequence[Start]
    discarded: Sequence[Arrival]
    failed: Sequence[int]


@dataclass(frozen=True)
class ClockState:
    """The clock between two server steps.

    time         seconds of virtual time            version    server steps done
    dispatched   clients started                    vacant     (T,) free slots per tier
    in_flight    (F, 5) int64: dispatch, tier, client, version, fails; one row per client at work
    ends         (F,) float64: time at which each of them arrives or fails
    arrived      (L, 5): the same columns, for arrivals that wait for others
    staleness    (S,): number of arrivals per staleness 0..S-1, discarded ones included
    discarded, failed: totals
    """

    time: float
    version: int
    dispatched: int
    vacant: np.ndarray
    ends: np.ndarray
    in_flight: np.ndarray
    arrived: np.ndarray
    staleness: np.ndarray
    discarded: int = 0
    failed: int = 0
