"""Answers that a language model generated in a run (`task: {name: instruct, samples: 4}`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl.report.page.runs import Runs
from fl.report.page.section import Section, Table

MOST_ROWS = 8
MOST_CHARACTERS = 160  # of a prompt, whose end is kept


def answers(runs: Runs) -> Section | None:
    """For each variant, the answers of its first run at the first and at the last round with any."""
    tables = []
    for name, directory in runs.first_of_each():
        files = {int(file.stem.removeprefix("round_")): file for file in (directory / "samples").glob("round_*.jsonl")}
        if files:
            rows = _rows(files)
            tables.append(Table(rows, name, f"The first {len(rows)} rows of the server's test set; run {directory}."))
    return Section("Generated answers", tables) if tables else None


def _rows(files: dict[int, Path]) -> list[dict[str, Any]]:
    """Return a row for each prompt, with the right answer and those of the first and the last round."""
    rows: list[dict[str, Any]] = []
    for round_ in sorted({min(files), max(files)}):
        for i, line in enumerate(files[round_].read_text().splitlines()[:MOST_ROWS]):
            sample = json.loads(line)
            if i == len(rows):
                rows.append({"prompt": _end(sample["prompt"]), "answer": sample["answer"]})
            rows[i][f"after round {round_}"] = sample["generated"]
    return rows


def _end(text: str) -> str:
    """Return the text without line breaks; of a long one the end.

    >>> _end("Which topic?\\nRain."), len(_end("x" * 500))
    ('Which topic? Rain.', 162)
    """
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS else f"… {text[-MOST_CHARACTERS:]}"
