"""Synchronous rounds on the virtual clock: who is in the sum, and where the time went.

A client begins when the round does, or when it comes back; it arrives when download, compute and upload are done. The round ends
with the `needed`-th arrival, at the deadline, or when there is nobody left to wait for (the server sees a connection break at
once). All is known before anybody trains: times follow from sizes, drop-outs from addresses. Ties go to the smaller id.

    seconds = download + compute + upload of the last in the sum + waiting      (for it to come back, for others, for the deadline)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fl.registry import register
from fl.system.simulated_system import LEGS, SimulatedSystem, Times

DEFAULTS = {"server": "sync"}  # kind -> part of a configuration that names none
OUTCOMES = ("in", "surplus", "late", "dropped", "away")


class ServerMode:
    """Base of parts that say when the server acts: frozen dataclasses of their parameters."""

    @property
    def chooses(self) -> bool:
        """Whether who is in the sum depends on how long things take."""
        return True


@dataclass(frozen=True)
class RoundTiming:
    """What becomes of a round. Rows (n,) are in the order of `clients` as given.

    included    in the sum
    steps       local steps that count; of those in the sum at least 1
    fate        counts into FATES: in the sum; surplus: not needed any more; late: cut off by the deadline; dropped in mid-round;
                away: went away, or never came
    spent       seconds that each was busy, up to the round's end
    times       seconds of the legs, compute as far as it was to be done
    """

    included: np.ndarray
    steps: np.ndarray
    fate: np.ndarray
    spent: np.ndarray
    times: Times
    seconds: float
    download: float
    compute: float
    upload: float
    waiting: float

    def metrics(self) -> dict[str, float]:
        """simulated_seconds with where it went, and how many met which fate."""
        went = {f"simulated_{name}_seconds": getattr(self, name) for name in (*LEGS, "waiting")}
        fates = np.bincount(self.fate, minlength=len(OUTCOMES))
        return {"simulated_seconds": self.seconds, **went} | {f"clients_{f}": int(n) for f, n in zip(OUTCOMES, fates)}


@register("server", "sync", "synchronous")
@dataclass(frozen=True, kw_only=True)
class Synchronous(ServerMode):
    """One cohort after another.

    deadline_seconds: who has not arrived by then is left out.    needed: the first so many to arrive are the sum, the cohort being
    over-selected.    partial: who would be late does as many of its local steps as fit, at least one; each step
    takes the same time, and what a client computes outside its steps is done in full.
    Neutral: none of them; everybody who does not drop out is in the sum.
    """

    deadline_seconds: float | None = None
    needed: int | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.deadline_seconds is not None and not 0 < self.deadline_seconds < math.inf:
            raise ValueError(f"deadline_seconds: {self.deadline_seconds} is not a positive number")
        if self.needed is not None and self.needed < 1:
            raise ValueError(f"needed: {self.needed} is not at least 1")
        if self.partial and self.deadline_seconds is None:
            raise ValueError("partial: true without a deadline; set deadline_seconds")

    @property
    def chooses(self) -> bool:
        return self.deadline_seconds is not None or self.needed is not None

    def round(
        self,
        world: SimulatedSystem,
        clients: np.ndarray,
        times: Times,
        *,
        start: float = 0.0,
        dispatch: int = 0,
        steps: int | np.ndarray = 1,
        extra: float | np.ndarray = 0.0,
    ) -> RoundTiming:
        """The round of a cohort in a world: its drop-outs, and who is there when."""
        ready = world.presence.ready(clients, start)
        away = np.where(
            np.isinf(ready), math.inf, world.presence.until(clients, np.where(np.isinf(ready), start, ready))
        )
        return self.play(
            clients,
            times,
            start=start,
            steps=steps,
            extra=extra,
            completes=world.completes(clients, dispatch),
            ready=ready,
            away=away,
        )

    def play(
        self,
        clients: np.ndarray,
        times: Times,
        *,
        start: float = 0.0,
        steps: int | np.ndarray = 1,
        extra: float | np.ndarray = 0.0,
        completes: np.ndarray | None = None,
        ready: np.ndarray | None = None,
        away: np.ndarray | None = None,
    ) -> RoundTiming:
        """clients (n,) distinct ids; steps (n,): each one's full work; extra (n,): the share of the compute time that
        belongs to no step, the rest is divided evenly among the steps; completes (n,): the share of its trip after which it drops
        out, 1 if it does not; ready, away (n,): when it is there to begin, when it goes."""
        clients = np.asarray(clients)
        n, limit = len(clients), math.inf if self.deadline_seconds is None else start + self.deadline_seconds
        full = np.broadcast_to(np.asarray(steps, np.int64), n)
        begin = np.full(n, float(start)) if ready is None else np.maximum(ready, start)
        comes = begin < math.inf
        begin = np.where(comes, begin, start)
        steps = fitting(times, full, begin, limit, extra) if self.partial else full
        sits = (steps == 0) & (full > 0)  # nothing fits, which is known beforehand
        times = replace(times, compute=times.compute * _computed(steps, full, extra))
        arrive = begin + times.total
        leave = np.full(n, math.inf) if away is None else np.asarray(away, float)
        leave = np.where(leave < arrive, leave, math.inf)
        breaks = np.full(n, math.inf)
        if completes is not None:
            breaks = np.where(completes < 1, begin + completes * times.total, math.inf)
        dropped = comes & ~sits & (breaks < math.inf) & (breaks <= leave)
        gone = ~comes | (~dropped & ~sits & (leave < math.inf))
        settled = np.where(comes & ~sits, np.minimum(np.minimum(breaks, leave), arrive), start)
        arrives = ~dropped & ~gone & ~sits & (arrive <= limit)
        order = np.lexsort((clients, arrive))
        order = order[arrives[order]]
        enough = self.needed is not None and len(order) >= self.needed
        order = order[: self.needed]
        end = float(arrive[order[-1]] if enough else min(limit, settled.max(initial=start)))
        included = np.zeros(n, bool)
        included[order] = True
        known = settled <= end
        fate = np.select(
            [included, dropped & known, gone & known],
            [OUTCOMES.index(f) for f in ("in", "dropped", "away")],
            1 if enough else 2,
        ).astype(np.int8)
        spent = np.clip(np.minimum(settled, end) - begin, 0, None)
        last = {leg: float(getattr(times, leg)[order[-1]]) if len(order) else 0.0 for leg in LEGS}
        return RoundTiming(
            included,
            np.where(included, steps, 0),
            fate,
            spent,
            times,
            seconds=end - start,
            **last,
            waiting=max(0.0, end - start - sum(last.values())),
        )


def _computed(steps: np.ndarray, full: np.ndarray, extra: float | np.ndarray) -> np.ndarray:
    """(n,): the share of the full compute time that `steps` of the `full` ones take, and all that is `extra`."""
    part = extra + (1 - extra) * (steps / np.maximum(full, 1))
    return np.where(steps < full, np.where(steps > 0, part, 0.0), 1.0)  # who takes no step computes nothing


def fitting(
    times: Times, steps: np.ndarray, begin: np.ndarray, limit: float, extra: float | np.ndarray = 0.0
) -> np.ndarray:
    """(n,): the most of its `steps` (n,) with which each client that begins at `begin` (n,) arrives by `limit`; 0 if
    none. `extra`: see `Synchronous.play`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (limit - begin - times.download - times.upload) / times.compute
        share = np.nan_to_num((share - extra) / (1 - np.asarray(extra)))
    near = np.floor(np.clip(share, 0, 1) * steps).astype(np.int64)
    best = np.zeros(len(steps), np.int64)
    for k in (near - 1, near, near + 1, steps):  # the quotient rounds
        k = np.clip(k, 0, steps)
        total = times.download + times.compute * _computed(k, steps, extra) + times.upload
        best = np.where(begin + total <= limit, np.maximum(best, k), best)
    return best
