"""Arguments and options that several commands share, and their checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl.cli.completion import complete_override
from fl.cli.json_output import reserve_stdout

FORMATS = ("md", "latex", "csv")
# the keys of fl.report.costs.COSTS
COSTS = ("round", "up", "down", "multicast", "total", "hours", "joules", "work", "wall")
AXES = ("round", "up", "total", "hours", "wall")  # those that the page of `fl report` offers

ConfigFile = Annotated[str, typer.Argument(help="A YAML configuration file, or quickstart, which comes with fl.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value ...]",
        help="Changes to the configuration: rounds=100 cohort.size=20",
        autocompletion=complete_override,
    ),
]
Runs = Annotated[list[Path], typer.Argument(help="Run directories, or folders of runs that differ only in their seed.")]
NewRun = Annotated[Path | None, typer.Option(help="Run directory (default: a new directory under runs/).")]
Versus = Annotated[str | None, typer.Option(help="Show differences to this variant, paired by seed.")]
Width = Annotated[
    str, typer.Option(help="Width of a figure: column (3.4 inches), text (6.9 inches), or a number of inches.")
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=TEXT", help="Name in the legend. Repeatable.")
]
Plot = Annotated[Path | None, typer.Option(help="Plot the first metric against a cost into this file.")]
Cost = Annotated[
    str, typer.Option(help=f"Cost on the plot's x axis: {', '.join(COSTS)} (up, down, total: MB; wall: seconds).")
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", callback=reserve_stdout, is_eager=True, help="Print only one JSON object or list on stdout."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no summary; run.log tells what happened.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error (or set FL_TRACEBACK=1).")]
Format = Annotated[str, typer.Option("--format", help="Format of the table: md, latex (booktabs) or csv.")]
