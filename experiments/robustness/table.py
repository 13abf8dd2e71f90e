"""The table of docs/robustness.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.robustness.case import Case, Outcome
from experiments.robustness.data import DATA
from experiments.robustness.models import MODELS
from experiments.robustness.user_code import USER_CODE

CASES = [*MODELS, *DATA, *USER_CODE]
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"
BEGIN, END = "<!-- made by python -m experiments.robustness -->\n", "<!-- end -->\n"


def table(found: Iterable[tuple[Case, Outcome]]) -> str:
    """Return a Markdown table; members of a kind with one outcome share a row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for case, outcome in found:
        rows.setdefault((case.kind, str(outcome)), []).append(case.name)
    lines = ["| kind | members | outcome |", "|---|---|---|"]
    lines += [f"| {kind} | {', '.join(names)} | {outcome} |" for (kind, outcome), names in rows.items()]
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    """Replace the part of the page that the command makes."""
    page = PAGE.read_text()
    PAGE.write_text(f"{page.partition(BEGIN)[0]}{BEGIN}\n{text}\n{END}{page.partition(END)[2]}")
