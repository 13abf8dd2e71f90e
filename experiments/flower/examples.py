"""Run every app of a folder of Flower apps, unchanged, on our engine and on Flower's own simulation.

    python -m experiments.flower.examples [FOLDER] [--only NAME ...] [--limit SECONDS] [--out FILE] [--work DIR]

FOLDER is, for example, `examples` in a checkout of Flower. Without it, the apps are those that `flwr new` of 1.22
writes. What an app needs beside the installed packages is installed into DIR, never into this environment. Apps find
stand-ins for data and models of the Hugging Face hub (experiments/flower/hub.py), most of them from FL_DATA. The exit
code is 0 if all apps ran, 1 if not, 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.flower.runs import Outcome, apps_in, run_app
from experiments.flower.templates import FRAMEWORKS, write_templates

HEADER = ("app", "flwr", "outcome", "ours, s", "Flower, s", "metrics, first -> last round")


def cells(outcome: Outcome) -> list[str]:
    """Return a row of the table as texts."""
    ours = "" if outcome.ours is None else f"{outcome.ours:.0f}"
    return [outcome.app, outcome.flwr, outcome.outcome, ours, outcome.flower, outcome.metrics]


def line(texts: Sequence[str]) -> str:
    """Return a row in markdown."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def write_table(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the table as CSV if the file is called .csv, else as markdown."""
    rows = [cells(outcome) for outcome in outcomes]
    if file.suffix == ".csv":
        with file.open("w", newline="") as output:
            csv.writer(output).writerows([HEADER, *rows])
    else:
        file.write_text("\n".join([line(HEADER), "|---" * len(HEADER) + "|", *map(line, rows)]) + "\n")


def find_apps(folder: Path | None, only: Sequence[str] | None, base: Path) -> list[Path]:
    """Return the apps to run. Raises ValueError for an unknown name, or a folder without apps."""
    if folder is None:
        known = list(FRAMEWORKS)
    elif not folder.is_dir() or not (found := {app.name: app for app in apps_in(folder)}):
        raise ValueError(f"{folder} has no subfolder with a pyproject.toml that has [tool.flwr.app]")
    else:
        known = list(found)
    names = only or known
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"--only: {', '.join(unknown)} not in {known}")
    if folder is None:
        folder = write_templates(names, base)
        return [folder / f"template-{name}" for name in names]
    return [found[name] for name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `arguments` replace those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of apps; default: write those of `flwr new`")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="apps to run; default: all")
    pip_help = "requirements of all apps beside their own, as in --pip 'datasets<4'"
    parser.add_argument("--pip", nargs="+", default=[], metavar="REQUIREMENT", help=pip_help)
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a run of an app is stopped")
    parser.add_argument("--no-flower", action="store_true", help="leave out Flower's own simulation")
    parser.add_argument("--out", type=Path, help="write the table into this file, .md or .csv, too")
    parser.add_argument("--work", type=Path, help="folder of packages, stand-ins and runs; default: a temporary one")
    args = parser.parse_args(arguments)
    base = (args.work or Path(tempfile.mkdtemp(prefix="flower-examples-"))).resolve()
    base.mkdir(parents=True, exist_ok=True)
    try:
        apps = find_apps(args.folder, args.only, base)
    except ValueError as error:
        parser.error(str(error))
    runs = Path(tempfile.mkdtemp(prefix="runs-", dir=base))
    print(f"logs and run directories: {runs}", file=sys.stderr)
    print(line(HEADER), "|---" * len(HEADER) + "|", sep="\n", flush=True)
    outcomes: list[Outcome] = []
    for app in apps:
        outcomes.append(run_app(app, base, runs / app.name, args.limit, not args.no_flower, args.pip))
        print(line(cells(outcomes[-1])), flush=True)
        if args.out:
            write_table(args.out, outcomes)
    sys.exit(not all(outcome.ran for outcome in outcomes))


if __name__ == "__main__":
    main()
