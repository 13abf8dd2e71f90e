"""A race: candidates take turns with a default, and the slower half drops out from time to time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl.errors import ClientError
from fl.tools.tune.candidates import Candidate
from fl.tools.tune.timing import RoundTimer, Turn

MIN_RATIO = 1.03  # median ratio of a candidate that is clearly faster
MIN_PASSES = 3  # passes before a candidate can be clearly faster
MAX_PASSES = 15
MAX_SLOWDOWN = 4.0  # a candidate whose first rounds take this many times the quickest's drops out

Pairs = Sequence[tuple[float, float]]  # (candidate's, default's) clients per second in the same pass


@dataclass
class Race:
    """Measurements of candidates beside a default.

    Args:
        name: what differs between them: executor or plan.
        default: the candidate to beat.
        pairs: for each candidate, its speed and the default's in every pass.
        out: candidate -> reason why it was not measured.
    """

    name: str
    default: Candidate
    pairs: dict[Candidate, list[tuple[float, float]]]
    out: dict[Candidate, str] = field(default_factory=dict)

    @property
    def winner(self) -> Candidate:
        """The fastest of the candidates that are clearly faster than the default, else the default."""
        clear = [candidate for candidate, pairs in self.pairs.items() if is_clearly_faster(pairs)]
        return max(clear, key=lambda candidate: quartiles(self.pairs[candidate])[1], default=self.default)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table, one per candidate."""
        for candidate, pairs in self.pairs.items():
            speeds, ratio = [own for own, _ in pairs], ""
            if pairs and candidate != self.default:
                low, middle, high = quartiles(pairs)
                ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            notes = [
                self.out.get(candidate, ""),
                "default" if candidate == self.default else "",
                "wins" if candidate == self.winner else "",
            ]
            yield {
                "race": self.name,
                **candidate.cells,
                "clients/s": statistics.median(speeds) if speeds else None,
                "passes": len(pairs),
                "ratio to default": ratio,
                "note": ", ".join(filter(None, notes)),
            }

    def __str__(self) -> str:
        pairs = self.pairs[self.winner]
        if not pairs:
            return f"{self.name}: {self.default}, no time to compare"
        speed = f"{statistics.median(own for own, _ in pairs):,.0f} clients/s"
        if self.winner == self.default:
            return f"{self.name}: {self.default}, {speed}; nothing is clearly faster"
        low, middle, high = quartiles(pairs)
        return f"{self.name}: {self.winner}, {speed}, {middle:.2f} ({low:.2f} to {high:.2f}) times {self.default}"


def quartiles(pairs: Pairs) -> tuple[float, float, float]:
    """Quartiles of the ratios candidate / default.

    >>> quartiles([(2.0, 2.0), (3.0, 2.0), (4.0, 2.0)])
    (1.25, 1.5, 1.75)
    """
    low, middle, high = np.quantile([own / default for own, default in pairs], (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def is_clearly_faster(pairs: Pairs) -> bool:
    """Whether the median ratio is above `MIN_RATIO` and three of four passes are faster; needs `MIN_PASSES` passes."""
    if len(pairs) < MIN_PASSES:
        return False
    low, middle, _ = quartiles(pairs)
    return middle > MIN_RATIO and low > 1


def run_race(
    timer: RoundTimer,
    name: str,
    default: Candidate,
    candidates: Sequence[Candidate],
    seconds: float,
    say: Callable[[str], None],
) -> Race:
    """Measure candidates in turns with the default for about `seconds`; warming up takes up to half of that again."""
    say(f"{name}: {len(candidates)} candidates beside the default, for about {seconds:.0f} s")
    race = Race(name, default, {candidate: [] for candidate in (default, *candidates)})
    field = _warm_up(timer, race, seconds)
    deadline = time.perf_counter() + seconds
    for number in range(MAX_PASSES):
        if not field or time.perf_counter() + timer.turn_seconds([default, *field]) > deadline:
            break
        rounds = timer.rounds_of_pass(number)
        default_speed = timer.run(default, rounds).speed
        race.pairs[default].append((default_speed, default_speed))
        for candidate in field:
            race.pairs[candidate].append((timer.run(candidate, rounds).speed, default_speed))
        if number % 2 == 0 and number + 1 >= MIN_PASSES:
            field = sorted(field, key=lambda c: -quartiles(race.pairs[c])[1])[: -(-len(field) // 2)]
    return race


def _warm_up(timer: RoundTimer, race: Race, seconds: float) -> list[Candidate]:
    """Candidates that can run, and as many of them as there is time for, by the rounds that they warm up with.

    Candidates that have not started after half of `seconds` are left out.
    """
    took: dict[Candidate, float] = {}
    deadline = time.perf_counter() + seconds / 2
    dropped_by_default = 0
    for candidate in race.pairs:
        if time.perf_counter() > deadline:
            race.out[candidate] = "no time for it"
            continue
        try:
            turn = _first_round(timer, candidate, min(took.values(), default=0.0))
        except ClientError as error:
            if candidate == race.default:
                raise
            race.out[candidate] = str(error).partition("\n")[0]
            continue
        took[candidate] = turn.seconds
        if candidate == race.default:
            dropped_by_default = turn.dropped
        elif turn.dropped > dropped_by_default:
            race.out[candidate] = f"{turn.dropped} clients fail"
    quickest = min(took.values())
    field = sorted((c for c in took if c not in race.out and c != race.default), key=took.__getitem__)
    for candidate in reversed(field.copy()):
        no_time = MIN_PASSES * timer.turn_seconds([race.default, *field]) > seconds and len(field) > 1
        if no_time or took[candidate] > MAX_SLOWDOWN * quickest:
            race.out[candidate] = f"a round takes {took[candidate]:.2f} s, the quickest candidate's {quickest:.2f} s"
            field.remove(candidate)
    return field


def _first_round(timer: RoundTimer, candidate: Candidate, quickest: float) -> Turn:
    """Its first round; if that took long, the quicker of two, because the first may compile or allocate."""
    first = timer.run(candidate, [0])
    if first.seconds <= MAX_SLOWDOWN * quickest:
        return first
    second = timer.run(candidate, [0])
    return second._replace(seconds=min(first.seconds, second.seconds))
