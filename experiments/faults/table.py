"""The table of a fault suite: one row per case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = ("case", "faults", "resumes", "equal", "seconds", "notes")


@dataclass(frozen=True)
class Outcome:
    """Result of a case.

    Attributes:
        case: name of the case.
        faults: number of kills, damages or inputs.
        resumes: how often a run was resumed or started again.
        equal: whether all runs ended with the bits of an undisturbed one, or all inputs kept the law.
        seconds: wall-clock time.
        notes: what a reader has to know, such as the first difference.
    """

    case: str
    faults: int
    resumes: int
    equal: bool
    seconds: float
    notes: str = ""


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table with a row of totals."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [_line(outcome) for outcome in outcomes]
    equal = all(outcome.equal for outcome in outcomes)
    faults, resumes = (sum(getattr(each, name) for each in outcomes) for name in ("faults", "resumes"))
    lines.append(_line(Outcome("all", faults, resumes, equal, sum(each.seconds for each in outcomes))))
    return "\n".join(lines)


def _line(outcome: Outcome) -> str:
    answer = "yes" if outcome.equal else "NO"
    cells = (outcome.case, f"{outcome.faults:,}", outcome.resumes, answer, f"{outcome.seconds:.0f}", outcome.notes)
    return f"| {' | '.join(map(str, cells))} |"
