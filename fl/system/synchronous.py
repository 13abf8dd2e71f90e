"""Synchronous rounds on the virtual clock: which updates are used, and how the time is spent.

A client begins when the round begins, or when it comes back. It arrives when download, compute and upload are done.
The round ends with the `needed`-th arrival, at the deadline, or when no more clients can arrive (the server notices a
broken connection at once). If fewer than `least` updates have arrived at the deadline, it ends with the `least`-th
arrival, or when no more clients can arrive. All of this is known before any client trains: durations follow from sizes,
drop-outs from addresses. Ties go to the smaller id.

    seconds = download + compute + upload of the last client used + waiting    (for it, for others, for the deadline)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fl.checks import at_least, within
from fl.registry import register
from fl.system.server_mode import ServerMode
from fl.system.simulated_system import LEGS, SimulatedSystem, Times

DEFAULTS = {"server": "sync"}  # kind -> part of a configuration that names none
# in: used; surplus: enough others arrived first; late: after the deadline; dropped: broke off; away: left or never came
OUTCOMES = ("in", "surplus", "late", "dropped", "away")


@dataclass(frozen=True)
class RoundTiming:
    """Timing and outcomes of a round. Arrays (n,) follow the order of the cohort.

    included    whether the client's update is used
    steps       local steps done; at least 1 if the update is used, else 0
    outcome     index into OUTCOMES
    spent       seconds that the client was busy, up to the end of the round
    times       seconds of the legs; compute is that of the planned steps
    seconds     duration of the round = download + compute + upload + waiting
    """

    included: np.ndarray
    steps: np.ndarray
    outcome: np.ndarray
    spent: np.ndarray
    times: Times
    seconds: float
    download: float
    compute: float
    upload: float
    waiting: float

    def metrics(self) -> dict[str, float]:
        """Return simulated_seconds, its parts, and the number of clients per outcome."""
        parts = {f"simulated_{name}_seconds": getattr(self, name) for name in (*LEGS, "waiting")}
        counts = np.bincount(self.outcome, minlength=len(OUTCOMES))
        return {"simulated_seconds": self.seconds, **parts} | {f"clients_{o}": int(n) for o, n in zip(OUTCOMES, counts)}


@register("server", "sync", "synchronous")
@dataclass(frozen=True, kw_only=True)
class Synchronous(ServerMode):
    """Synchronous rounds: the server waits for its cohort.

    Neutral: without hyper-parameters all updates of clients that do not drop out are used.

    Args:
        deadline_seconds: Later updates are left out; seconds of virtual time, positive. Default: no deadline.
        needed: Use the first `needed` arrivals of a larger cohort (over-selection); at least 1. Default: all.
        least: Updates that the server waits for beyond the deadline; at least 1, and at most `needed`. The round then
            ends with the arrival of the `least`-th one. Default: the deadline holds, even without any update.
        partial: A client that would be late does as many local steps as fit before the deadline; if none
            fits, it does not train. Each step takes the same time; computation outside the steps is done in full.
    """

    deadline_seconds: float | None = None
    needed: int | None = None
    least: int | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        within("(0, inf)", deadline_seconds=self.deadline_seconds)
        at_least(1, needed=self.needed, least=self.least)
        if self.partial and self.deadline_seconds is None:
            raise ValueError("partial: true needs a deadline; set deadline_seconds")
        if self.least is not None and self.deadline_seconds is None:
            raise ValueError("least: without a deadline the server waits for all updates; set deadline_seconds")
        if self.least is not None and self.partial:
            raise ValueError("least: with partial: true nothing arrives after the deadline; leave one of them out")
        if self.least is not None and self.needed is not None and self.least > self.needed:
            raise ValueError(f"least: {self.least} is more than needed: {self.needed}, after which the round ends")

    @property
    def chooses(self) -> bool:
        return self.deadline_seconds is not None or self.needed is not None

    def round(
        self,
        system: SimulatedSystem,
        clients: np.ndarray,
        times: Times,
        *,
        start: float = 0.0,
        dispatch: int = 0,
        steps: int | np.ndarray = 1,
        extra: float | np.ndarray = 0.0,
    ) -> RoundTiming:
        """Play the round of a cohort in a simulated system, with its drop-outs and availability."""
        ready = system.presence.ready(clients, start)
        away = np.where(
            np.isinf(ready), math.inf, system.presence.until(clients, np.where(np.isinf(ready), start, ready))
        )
        return self.play(
            clients,
            times,
            start=start,
            steps=steps,
            extra=extra,
            completes=system.completes(clients, dispatch),
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
        """Play a round whose drop-outs and absences are given.

        Args:
            clients: (n,) distinct ids.
            times: Seconds of the legs of a full round trip.
            start: Time at which the round begins.
            steps: (n,) local steps of full work.
            extra: (n,) share of the compute time outside the steps; the rest is divided evenly among the steps.
            completes: (n,) share of the round trip after which a client drops out; 1: it does not.
            ready: (n,) time from which a client is present.
            away: (n,) time at which it leaves.
        """
        clients = np.asarray(clients)
        n, limit = len(clients), math.inf if self.deadline_seconds is None else start + self.deadline_seconds
        full = np.broadcast_to(np.asarray(steps, np.int64), n)
        begin = np.full(n, float(start)) if ready is None else np.maximum(ready, start)
        comes = begin < math.inf
        begin = np.where(comes, begin, start)
        steps = fitting(times, full, begin, limit, extra) if self.partial else full
        idle = (steps == 0) & (full > 0)  # not a single step fits; known beforehand
        times = replace(times, compute=times.compute * _computed(steps, full, extra))
        arrive = begin + times.total
        leave = np.full(n, math.inf) if away is None else np.asarray(away, float)
        leave = np.where(leave < arrive, leave, math.inf)
        breaks = np.full(n, math.inf)
        if completes is not None:
            breaks = np.where(completes < 1, begin + completes * times.total, math.inf)
        dropped = comes & ~idle & (breaks < math.inf) & (breaks <= leave)
        gone = ~comes | (~dropped & ~idle & (leave < math.inf))
        settled = np.where(comes & ~idle, np.minimum(np.minimum(breaks, leave), arrive), start)
        order = np.lexsort((clients, arrive))
        order = order[(~dropped & ~gone & ~idle)[order]]
        in_time = int((arrive[order] <= limit).sum())
        waits = in_time < (self.least or 0)
        order = order[: self.least if waits else in_time]
        if waits:  # without an end, if too few clients can arrive
            limit = float(arrive[order[-1]]) if len(order) == self.least else math.inf
        enough = self.needed is not None and in_time >= self.needed
        order = order[: self.needed]
        end = float(arrive[order[-1]] if enough else min(limit, settled.max(initial=start)))
        included = np.zeros(n, bool)
        included[order] = True
        known = settled <= end
        outcome = np.select(
            [included, dropped & known, gone & known],
            [OUTCOMES.index(o) for o in ("in", "dropped", "away")],
            1 if enough else 2,
        ).astype(np.int8)
        spent = np.clip(np.minimum(settled, end) - begin, 0, None)
        last = {leg: float(getattr(times, leg)[order[-1]]) if len(order) else 0.0 for leg in LEGS}
        return RoundTiming(
            included,
            np.where(included, steps, 0),
            outcome,
            spent,
            times,
            seconds=end - start,
            **last,
            waiting=max(0.0, end - start - sum(last.values())),
        )


def _computed(steps: np.ndarray, full: np.ndarray, extra: float | np.ndarray) -> np.ndarray:
    """Return (n,): the share of the full compute time that `steps` of the `full` steps and the `extra` work take."""
    part = extra + (1 - extra) * (steps / np.maximum(full, 1))
    return np.where(steps < full, np.where(steps > 0, part, 0.0), 1.0)  # without a step, a client computes nothing


def fitting(
    times: Times, steps: np.ndarray, begin: np.ndarray, limit: float, extra: float | np.ndarray = 0.0
) -> np.ndarray:
    """Return (n,): the largest number of local steps with which each client arrives by `limit`; 0 if no step fits.

    Args:
        times: Seconds of the legs with all `steps`.
        steps: (n,) local steps of full work.
        begin: (n,) time at which each client begins.
        limit: Latest time of arrival.
        extra: (n,) share of the compute time outside the steps.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (limit - begin - times.download - times.upload) / times.compute
        share = np.nan_to_num((share - extra) / (1 - np.asarray(extra)))
    near = np.floor(np.clip(share, 0, 1) * steps).astype(np.int64)
    best = np.zeros(len(steps), np.int64)
    for k in (near - 1, near, near + 1, steps):  # neighbours too, because the quotient is rounded
        k = np.clip(k, 0, steps)
        total = times.download + times.compute * _computed(k, steps, extra) + times.upload
        best = np.where(begin + total <= limit, np.maximum(best, k), best)
    return best
