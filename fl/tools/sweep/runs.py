"""One run of a sweep: an ordinary run directory, executed or resumed, or reused if it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.config.config import resolve
from fl.config.digest import LEFT_OUT
from fl.config.reading import read
from fl.config.yaml import parse
from fl.errors import ClientError, ConfigError, dotted
from fl.report.sweep_folder import FAILED, STOPPED, has_failed, is_complete, was_stopped
from fl.storage import files
from fl.storage.run import committed, read_metrics
from fl.tracking.callback import Callback

if TYPE_CHECKING:
    from fl.tracking.callback import Row
    from fl.tracking.callback import Run as RunInProgress

Overrides = Mapping[str, Any]
GoesOn = Callable[["Row"], bool]  # whether a run goes on after the round with these metrics


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Args:
        config: the configuration file.
        out: the run directory.
        overrides: changes to the configuration.
        trial: a run that chooses a setting. If its training fails, the setting is not chosen, and the sweep goes on.
    """

    config: Path
    out: Path
    overrides: Overrides
    trial: bool = False

    @property
    def name(self) -> str:
        """VARIANT,SETTING/sSEED."""
        return f"{self.out.parent.name}/{self.out.name}"

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do; a trial that failed or was stopped is finished as a trial."""
        return is_complete(self.out) or (self.trial and (has_failed(self.out) or was_stopped(self.out)))

    def check(self) -> None:
        """Check the configuration, and that the directory holds no run of another one.

        Raises:
            ConfigError: the configuration has a mistake, or the directory was written with other numbers.
        """
        now = resolve(read(self.config, self.overrides))
        file = self.out / "config.yaml"
        if not file.is_file():
            return
        here = dict(_numbers(now.to_dict(), ""))
        for key, before in _numbers(parse(file.read_text()) or {}, ""):
            if key in here and here[key] != before and key not in LEFT_OUT:
                raise ConfigError(
                    key,
                    f"{here[key]}, and the run in {self.out} has {before}; name another folder with --out, or remove "
                    "that run",
                )

    def score(self, by: str) -> float | None:
        """The last measured value of the metric `by`; None if the run failed or diverged.

        Raises:
            ConfigError: the run never measured it.
        """
        if has_failed(self.out):
            return None
        rows = read_metrics(self.out)
        measured = [row[by] for row in rows if by in row]
        if not measured:
            known = sorted({key for row in rows for key in row if "/" in key})
            raise ConfigError(
                "by", f"{by!r} was not measured by {self.out}, which has {known}; splits.val and evaluation decide"
            )
        return None if measured[-1] is None else float(measured[-1])

    def execute(
        self,
        goes_on: GoesOn = lambda row: True,
        interrupt: Callable[[], bool] = lambda: False,
        ready: Callable[[], None] = lambda: None,
        progress: bool | None = False,
    ) -> str:
        """Run it, or resume it if it was interrupted; return why it ended.

        Args:
            goes_on: asked after each round; False stops the trial early, in a directory that can be resumed.
            interrupt: asked after each round; True interrupts the run.
            ready: called before the first round.
            progress: show the progress, see `fl.run`.
        """
        from fl.simulation.run import resume, run

        watcher, stopped = _Watcher(ready), False

        def ends() -> bool:
            nonlocal stopped
            stopped = stopped or not (watcher.runs > 1 or goes_on(watcher.row))
            return stopped or interrupt()

        shared: dict[str, Any] = {"callbacks": [watcher], "interrupt": ends, "progress": progress}
        (self.out / STOPPED).unlink(missing_ok=True)
        try:
            if committed(self.out):
                result = resume(self.out, **shared)
            else:
                result = run(self.config, out=self.out, **shared, **self.overrides)
        except (ClientError, FloatingPointError) as error:  # of the server, if the sum of good updates is not finite
            if not self.trial:
                raise
            files.write_file(self.out / FAILED, f"{error}\n")
            return f"failed, {str(error).partition(chr(10))[0]}"
        if result.reason == "interrupted" and stopped:
            reason = f"stopped by the search after round {watcher.row['round']}"
            files.write_file(self.out / STOPPED, f"{reason}; fl resume {self.out} continues it\n")
            return reason
        return result.reason if is_complete(self.out) else "interrupted"


class _Watcher(Callback):
    """Remembers the metrics of the last round, and the number of runs: the baselines of a run come after it."""

    def __init__(self, ready: Callable[[], None]):
        self._ready = ready
        self.row: Row = {}
        self.runs = 0

    def ready(self, run: RunInProgress) -> None:
        self.runs += 1
        self._ready()

    def measure(self, run: RunInProgress, row: Row) -> Mapping[str, float]:
        self.row = dict(row)
        return {}


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """(dotted path, number) of all numbers and truth values of a configuration; texts may be paths that differ."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _numbers(value, dotted(path, key))
    elif isinstance(node, (bool, int, float)):
        yield path, node
