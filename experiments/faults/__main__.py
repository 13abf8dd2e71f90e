"""Command line: python -m experiments.faults OUT [--seed N] [--only CASE] [--seconds N] [--short]."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from experiments.faults import drivers, fuzz, long_run, surroundings, workers
from experiments.faults.processes import CONTEXT, HEAVY
from experiments.faults.table import Outcome, format_table


def main(arguments: list[str] | None = None) -> int:
    """Perform the cases, print the table, and return the exit code: 1 if a case is unequal."""
    options = _parser().parse_args(arguments)
    CONTEXT.set_forkserver_preload(HEAVY)
    begin, outcomes = time.perf_counter(), list[Outcome]()
    chosen = {name: case for name, case in _cases(options.short).items() if not options.only or options.only in name}
    print(f"{len(chosen)} cases, seed {options.seed}", flush=True)
    for name, case in chosen.items():
        if options.seconds and time.perf_counter() - begin > options.seconds:
            print("the time is over", flush=True)
            break
        folder = options.out.absolute() / "".join(c if c.isalnum() else "-" for c in name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start = time.perf_counter()
        try:
            outcome = case(folder, options.seed)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome(name, 0, 0, False, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:400])
        print(f"{name}: {'equal' if outcome.equal else 'NOT EQUAL'} {outcome}", file=sys.stderr, flush=True)
        outcomes.append(outcome)
        if outcome.equal:
            shutil.rmtree(folder)
    print(format_table(outcomes), flush=True)
    return 0 if all(outcome.equal for outcome in outcomes) else 1


def _cases(short: bool) -> dict[str, Callable[[Path, int], Outcome]]:
    found = drivers.cases(*(2, 1) if short else (5, 5)) | workers.cases(1 if short else 5)
    found |= surroundings.cases(*(2, 1) if short else (5, 5))
    return found | fuzz.cases(200 if short else 10_000) | long_run.cases(100 if short else 2000)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m experiments.faults", description="Kill, damage and fuzz; compare bits.")
    parser.add_argument("out", type=Path, help="folder for the runs; those of equal cases are deleted")
    parser.add_argument("--seed", type=int, default=0, help="seed of all instants and inputs")
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name contains this text")
    parser.add_argument("--seconds", type=float, help="begin no case after this time")
    parser.add_argument("--short", action="store_true", help="fewer kills and inputs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
