"""The command `fl`: every command with its help panel, in the order of `fl --help`.

fl run quickstart.yaml rounds=100 seed=0..4      fl resume DIR rounds=+100      fl digest DIR
fl evaluate DIR evaluation.splits=[test] --checkpoint best
fl report runs/a runs/b --out report.html --png figures
fl compare runs/a runs/b --target val/accuracy=0.9 --plot curves.png      fl matrix runs/stream --plot matrix.png
fl plot runs/a runs/b --out curves.pdf --width column --label "a=FedAvg"
fl ledger runs/a --by client      fl participation runs/a runs/b --plot participation.png
fl partition quickstart.yaml partition.alpha=0.1 --plot partition.png
fl sweep quickstart.yaml client.lr=0.03,0.1,0.3 --seeds 3 --plot sweep.pdf      fl sweep variants.sweep.yaml
fl tune quickstart.yaml --seconds 60 --out tuned.yaml      fl bench
fl new strategy my_rule      fl list strategy      fl show strategy scaffold      fl check strategy:fedavg
fl flower run APP_DIR num-server-rounds=5 --nodes 100      fl flower certificates tls --host server.example.org
fl flower export quickstart.yaml app/ partition.clients=3 cohort.size=3
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from fl import __version__, platforms
from fl.cli import flower, parts, reports, runs, sweep, tools
from fl.cli.completion import use_our_bash
from fl.cli.errors import usage_as_json
from fl.cli.interrupts import stop_on_signals

PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Runs": {"run": runs.run, "resume": runs.resume, "evaluate": runs.evaluate, "digest": runs.digest},
    "Reports": {
        "report": reports.report,
        "compare": reports.compare,
        "plot": reports.plot,
        "ledger": reports.ledger,
        "participation": reports.participation,
        "matrix": reports.matrix,
        "partition": reports.partition,
    },
    "Experiments and speed": {"sweep": sweep.sweep, "tune": tools.tune, "bench": tools.bench, "doctor": tools.doctor},
    "Parts": {"new": parts.new, "list": parts.list_, "show": parts.show, "check": parts.check},
}


def print_version(asked: bool) -> None:
    """Print the version of fl, and stop. The callback of --version."""
    if asked:
        print(f"fl {__version__}")
        raise typer.Exit


class Command(TyperCommand):
    """A command. With --json a mistake in the command line is JSON on stdout, too, as other errors are."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the arguments."""
        with usage_as_json():
            return super().make_context(*arguments, **options)


class Commands(TyperGroup):
    """Several commands; see `Command`."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the options before the command."""
        with usage_as_json():
            return super().make_context(*arguments, **options)

    def resolve_command(self, *arguments: Any) -> Any:
        """Find the command."""
        with usage_as_json():
            return super().resolve_command(*arguments)


app = typer.Typer(
    cls=Commands, help="Federated-learning simulator.", no_args_is_help=True, pretty_exceptions_enable=False
)
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(command)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Federated-learning simulator."""


flower_app = typer.Typer(
    cls=Commands, help="Run Flower apps on this engine, and export methods as Flower apps.", no_args_is_help=True
)
flower_app.command("run", cls=Command)(flower.run)
flower_app.command("export", cls=Command)(flower.export)
flower_app.command("certificates", cls=Command)(flower.certificates)
app.add_typer(flower_app, name="flower", rich_help_panel="Flower")


def main() -> None:
    """Run the command that `sys.argv` names."""
    try:
        platforms.require_a_known_system()
    except ImportError as error:
        sys.exit(f"error: {error}")
    with stop_on_signals():
        command = typer.main.get_command(app)
        use_our_bash()
        command()
