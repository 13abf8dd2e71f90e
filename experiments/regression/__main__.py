"""The command: python -m experiments.regression record FILE | compare OLD NEW."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from experiments.regression.compare import compare
from experiments.regression.record import record


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "compare":
        return compare(options.old, options.new, options.only, options.ignore_wording, options.equal)
    start = time.perf_counter()
    runs = record(options.file, options.only, options.jobs)
    counts = ", ".join(f"{count} {status}" for status, count in Counter(run["status"] for run in runs.values()).items())
    print(f"{len(runs)} runs in {time.perf_counter() - start:.0f} s: {counts}; in {options.file}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.regression", description="Do users' results stay?")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="make all runs and write what came of them")
    recording.add_argument("file", type=Path)
    recording.add_argument("--jobs", type=int, default=1, help="how many processes make runs at a time")
    comparing = commands.add_parser("compare", help="say what differs; exit code 1 if something does")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--equal", action="store_true", help="list the equal runs, too")
    comparing.add_argument("--ignore-wording", action="store_true", help="errors and reasons may be worded otherwise")
    for command in (recording, comparing):
        command.add_argument("--only", default="*", metavar="PATTERN", help="of runs' names, such as 'fedavg/*'")
    return parser


if __name__ == "__main__":
    sys.exit(main())
