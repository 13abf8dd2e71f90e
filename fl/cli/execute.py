"""Execute runs with progress on stderr and their summaries on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fl.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, fail, say
from fl.cli.format import format_baselines, format_profile, format_summary, four_decimals, two_columns
from fl.cli.interrupts import Interrupts
from fl.cli.json_output import print_json
from fl.errors import MachineError

if TYPE_CHECKING:
    from fl.simulation.result import Result
    from fl.tracking.callback import Callback, Run
    from fl.tracking.profile import Profile


def execute_runs(
    starts: Sequence[Callable[..., Result]],
    as_json: bool,
    several: bool = False,
    profiled: bool = False,
    quiet: bool = False,
    directory: Path | None = None,
) -> None:
    """Execute runs one after another on the same workers, and print what came out.

    Args:
        starts: functions with the arguments `callbacks`, `progress` and `interrupt`, each of which executes one run.
        as_json: print one JSON object on stdout and nothing else.
        several: the JSON object is {"runs": [...]}, even for one run.
        profiled: record where the time goes, and write profile.json and trace.json.
        quiet: show no progress and no summary.
        directory: of a run that is resumed.
    """
    from fl.execution.workers.ray_pool import keep_workers

    summaries: list[dict[str, Any]] = []
    with Interrupts() as interrupts, keep_workers():
        for start in starts:
            if interrupts.requested:
                break
            with _monitor(interrupts, profiled, quiet, directory) as (callbacks, profile):
                result = start(callbacks=callbacks, progress=False, interrupt=lambda: interrupts.requested)
            summaries.append(result.summary | ({"profile": profile.shares} if profile else {}))
            if not as_json and not quiet:
                print(format_summary(result.summary))
                print(format_baselines(result), end="")
            if profile and not as_json and not quiet:
                print(format_profile(profile))
    if as_json:
        from fl.storage.run import finite

        print_json(finite({"runs": summaries} if several else summaries[0]))
    if len(summaries) < len(starts) or _interrupted(summaries[-1]):
        raise typer.Exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _monitor(
    interrupts: Interrupts, profiled: bool, quiet: bool, directory: Path | None
) -> Iterator[tuple[list[Callback], Profile | None]]:
    """Show the progress of a run, and say after Ctrl-C how it can be resumed. Yields its callbacks and its profile.

    A context manager and not a function that calls the run, so that tracebacks of runs are short.
    """
    from fl.tracking.callback import Callback
    from fl.tracking.profile import Profile
    from fl.tracking.progress import Progress

    class Begun(Callback):
        """Remembers the directory, and lets signals wait for the end of a round once there are rounds."""

        def start(self, run: Run) -> None:
            nonlocal directory
            directory = run.directory

        def ready(self, run: Run) -> None:
            interrupts.rounds_begin()

    try:
        with contextlib.ExitStack() as stack:
            profile = stack.enter_context(Profile()) if profiled else None
            progress = None if quiet else stack.enter_context(Progress())
            yield [Begun(), *(each for each in (progress, profile) if each is not None)], profile
    except (KeyboardInterrupt, MachineError) as error:
        if isinstance(error, MachineError) and not interrupts.requested:  # the signal may have ended all workers, too
            raise
        from fl.storage.run import committed

        resumable = directory and committed(directory)
        line = f"aborted; resume with: fl resume {directory}" if resumable else "stopped before the first round"
        fail(line, EXIT_INTERRUPTED)


def _interrupted(summary: dict[str, Any]) -> bool:
    """Whether the run or one of its baselines was interrupted."""
    return summary["reason"] == "interrupted" or any(map(_interrupted, summary.get("baselines", {}).values()))


def execute_flower_app(arguments: dict[str, Any], as_json: bool) -> None:
    """Execute a Flower app with progress, and print its last metrics; `arguments` are those of `fl.flower.simulate`."""
    import logging

    from fl.flower import simulate
    from fl.storage.run import finite
    from fl.tracking.progress import Progress

    logging.getLogger("flwr").propagate = False  # its own handler already prints
    with Progress() as progress:
        result = simulate(**arguments, callbacks=[progress])
    last = result.metrics[-1] if result.metrics else {}
    counts = {"rounds": len(result.metrics), **result.replies}
    if as_json:
        found = {"first_error": result.first_error, "failed_rounds": result.failed_rounds}
        print_json(finite({"directory": str(result.directory), **counts, **found, "final": last}))
    else:
        counted = ("messages/", "errors/", "late/")
        named = {k: four_decimals(v) for k, v in last.items() if "/" in k and not k.startswith(counted)}
        lines = counts | named | {"directory": result.directory}
        print(two_columns(lines.items()), flush=True)
    if result.failed_rounds:
        for kind, rounds in result.failed_rounds.items():
            share = f"{len(rounds)} of {len(result.metrics)} rounds"
            say(f"error: {share} had no good reply to {kind!r}: all were errors or late")
        if result.first_error:
            say(f"the first: {result.first_error}")
        raise typer.Exit(EXIT_FAILED)
