"""Command line: python -m experiments.robustness [--serial] | cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from experiments.robustness import cost
from experiments.robustness.case import perform
from experiments.robustness.table import CASES, table, write


def main(arguments: Sequence[str] | None = None) -> int:
    """Perform the command of the command line, and return the exit code: 1 if an outcome is not the expected one."""
    parser = argparse.ArgumentParser("python -m experiments.robustness", description="Run what users bring.")
    parser.add_argument("what", nargs="?", choices=["table", "cost"], default="table", help="what to measure")
    parser.add_argument("--serial", action="store_true", help="run nothing on Ray, and print the table only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.what == "cost":
        print(cost.sentence())
        return 0
    found = list(zip(CASES, perform(CASES, () if options.serial else (1, 2))))
    text = f"{table(found)}\n{cost.sentence()}\n"
    print(text) if options.serial else write(text)
    wrong = [f"unexpected: {case.kind}: {case.name}: {outcome}" for case, outcome in found if not outcome.agrees(case)]
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
