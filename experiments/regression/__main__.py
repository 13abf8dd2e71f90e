"""Command line: python -m experiments.regression record FILE | compare OLD NEW."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from experiments.regression.compare import compare
from experiments.regression.record import record


def main(arguments: list[str] | None = None) -> int:
    """Perform the command of the command line and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "compare":
        return compare(options.old, options.new, options.only, options.ignore_wording, options.equal)
    start = time.perf_counter()
    runs = record(options.file, options.only, options.jobs)
    counts = ", ".join(f"{count} {status}" for status, count in Counter(run["status"] for run in runs.values()).items())
    print(f"{len(runs)} runs in {time.perf_counter() - start:.0f} s: {counts}; in {options.file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.regression", description="Find changed results of runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="perform the runs and write their results")
    recording.add_argument("file", type=Path, help="JSON file to write")
    recording.add_argument("--jobs", type=int, default=1, help="number of processes that perform runs")
    comparing = commands.add_parser("compare", help="show the differences of two records; exit code 1 if there are any")
    comparing.add_argument("old", type=Path, help="record before the change")
    comparing.add_argument("new", type=Path, help="record after the change")
    comparing.add_argument("--equal", action="store_true", help="list the equal runs, too")
    comparing.add_argument("--ignore-wording", action="store_true", help="ignore the texts of errors and reasons")
    pattern_help = "only runs whose names match, for example 'fedavg/*'"
    for command in (recording, comparing):
        command.add_argument("--only", default="*", metavar="PATTERN", help=pattern_help)
    return parser


if __name__ == "__main__":
    sys.exit(main())
