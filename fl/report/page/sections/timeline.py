"""Where the wall time of profiled runs went: spans of every process, and seconds by category."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl.report.charts import Bars, Spans
from fl.report.page.runs import Runs
from fl.report.page.section import Block, Section

MOST_SPANS = 3_000  # of a run; the longest ones are shown
MOST_RUNS = 4


def timeline(runs: Runs) -> Section | None:
    """The timeline of the driver and the workers, for runs with `--profile`."""
    found = [
        (f"{variant.name}, {path.name}", path)
        for variant in runs.variants
        for path in variant.directories
        if (path / "trace.json").is_file() and (path / "profile.json").is_file()
    ]
    if not found:
        return None
    totals = [json.loads((path / "profile.json").read_text()) for _, path in found]
    names = list(dict.fromkeys(name for each in totals for name in each["categories"]))
    parts = {name: np.array([each["total"]["seconds"].get(name, 0.0) for each in totals]) for name in names}
    meaning = "; ".join(f"{name}: {totals[0]['categories'].get(name, '')}" for name in names)
    blocks: list[Block] = [
        Bars(
            title="Seconds of all processes by category",
            note=f"{meaning}.",
            names=[name for name, _ in found],
            parts=parts,
            x_label="seconds in all rounds",
        )
    ]
    blocks += [_spans(name, path, names) for name, path in found[:MOST_RUNS]]
    if len(found) > MOST_RUNS:
        blocks.append(f"Timelines of {MOST_RUNS} of {len(found)} profiled runs are shown.")
    return Section("Timeline of workers", blocks)


def _spans(name: str, directory: Path, categories: Sequence[str]) -> Spans:
    events = json.loads((directory / "trace.json").read_text())
    tracks = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    began = next((event for event in spans if event["name"] == "workers start"), None)
    origin, before = 0.0, ""
    if began is not None:  # it may take longer than all rounds
        origin = began["ts"] + began["dur"]
        spans = [event for event in spans if event["ts"] >= origin]
        before = f"Workers started for {began['dur'] / 1e6:.2g} s before this. "
    longest = sorted(spans, key=lambda event: -event["dur"])[:MOST_SPANS]
    longest.sort(key=lambda event: event["ts"])
    note = "" if len(longest) == len(spans) else f"The {len(longest)} longest of {len(spans)} spans. "
    return Spans(
        title=f"Timeline: {name}",
        note=f"{before}{note}Drag to zoom. The file trace.json has every span, for ui.perfetto.dev.",
        track=[tracks.get(event["pid"], str(event["pid"])) for event in longest],
        start=np.array([event["ts"] for event in longest]) / 1e6 - origin / 1e6,
        length=np.array([event["dur"] for event in longest]) / 1e6,
        category=[event["cat"] for event in longest],
        name=[event["name"] for event in longest],
        categories=categories,
    )
