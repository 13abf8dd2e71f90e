"""`fl bench aggregation`: the reductions of a server beside NumPy and torch, in milliseconds per call.

The calls are in experiments/benchmarks/aggregation.py, which knows the strategies. The bar: not slower than the NumPy
function that does the same.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from fl.execution.workers.limits import cores
from fl.storage.run import machine

NAME = "aggregation"
AGAINST = "numpy"  # the contestant with the bar


def main(
    seconds: float,
    threads: int | None,
    out: Path | None,
    show: Callable[[list[dict[str, Any]]], None] | None,
    say: Callable[[str], None],
) -> int:
    """Measure and print. Returns 1 if one of ours misses its bar, else 0.

    Args:
        seconds: approximate time to measure each contestant.
        threads: of torch and of ours; None takes all cores.
        out: JSON file for the measurements.
        show: prints the results; None prints a table.
        say: prints a line of progress.
    """
    calls = importlib.import_module(f"experiments.benchmarks.{NAME}")
    threads = threads or cores()
    rows = summary(calls.measure(seconds, threads, say))
    published = {"source": calls.PUBLISHED_BY, "milliseconds": calls.PUBLISHED}
    result = {"workload": NAME, "machine": machine(), "threads": threads, "calls": rows, "published": published}
    if out:
        out.write_text(json.dumps([result], indent=2) + "\n")
    if show:
        show([result])
    else:
        print_table(result)
    return int(any(row["reached"] is False for row in rows))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each contestant's turns: ms per call, GB/s of updates, ours / it, and whether ours reach the bar of 1."""
    ours = {(row["rule"], row["clients"]): row["turns"] for row in rows if row["contestant"] == "ours"}
    found = []
    for row in rows:
        seconds = median(row["turns"])
        ratio = median(it / mine for it, mine in zip(row["turns"], ours[row["rule"], row["clients"]]))
        reached = ratio >= 1 if row["contestant"] == AGAINST else None
        figures = {"ms": seconds * 1e3, "gigabytes_per_second": row["bytes"] / seconds / 1e9, "ratio": ratio}
        found.append(row | figures | {"reached": reached})
    return found


def print_table(result: dict[str, Any]) -> None:
    """Print a table on stdout: per rule and cohort the fastest contestant first."""
    from rich.console import Console
    from rich.table import Table

    console, about, published = Console(), result["machine"], result["published"]
    packages = f"numpy {version('numpy')}, torch {version('torch')}"
    console.print(
        f"{about['cores']} cores, {about['processor']}, {result['threads']} threads, {packages}", style="bold"
    )
    table = Table(caption_justify="left")
    for column in ("reduction", "contestant"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "GB/s", "ours / it", "bar"):
        table.add_column(column, justify="right", no_wrap=True)
    rules = [*published["milliseconds"]]
    for row in sorted(result["calls"], key=lambda row: (row["clients"], rules.index(row["rule"]), row["ms"])):
        bar = "" if row["reached"] is None else f"[{'green' if row['reached'] else 'red'}]1[/]"
        figures = (f"{row['ms']:.1f}", f"{row['gigabytes_per_second']:.1f}", f"{row['ratio']:.2f}", bar)
        table.add_row(f"{row['rule']} of {row['clients']}", row["contestant"], *figures)
    times = ", ".join(f"{rule} {ms:g} ms" for rule, ms in published["milliseconds"].items())
    largest = max(row["error"] for row in result["calls"])
    table.caption = (
        f"updates of {result['calls'][0]['parameters']:,} numbers; largest relative error {largest:.0e}; "
        f"published for 10 of them on another machine: {times} ({published['source']})"
    )
    console.print(table)
