"""The Python API: run a configuration, whole or round by round, or resume a run."""

from __future__ import annotations

import atexit
import contextlib
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import Any

from fl.config.config import Config, resolve
from fl.config.digest import FREE_TO_CHANGE
from fl.config.reading import read
from fl.config.references import references_to_code
from fl.errors import ConfigError, dotted
from fl.execution.isolation import isolated
from fl.execution.workers.ray_pool import keep_workers
from fl.simulation import baselines
from fl.simulation.result import Result
from fl.simulation.simulation import Simulation, Steps, exhausted
from fl.simulation.totals import Row
from fl.storage import files
from fl.storage.lock import locked
from fl.storage.place import check_place, folder_name
from fl.storage.run import committed, create_run_directory
from fl.tensors.params import Params
from fl.tracking.callback import Callback, Callbacks, Run
from fl.tracking.progress import Progress
from fl.tracking.run_log import RunLog


def never() -> bool:
    """Never interrupt a run."""
    return False


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    interrupt: Callable[[], bool] = never,
    **overrides: Any,
) -> Result:
    """Run a configuration.

    Args:
        config: a YAML file, a dict or a resolved `Config`.
        out: the run directory (default: a new one under runs/).
        callbacks: your own code at fixed points of the run, see `fl.Callback`.
        progress: show the progress. Default: in a notebook, and on a terminal.
        interrupt: called after each round; True ends the run there, and `resume` continues it.
        overrides: values by dotted path, as in run("a.yaml", **{"cohort.size": 20}).

    Raises:
        ConfigError: the configuration has a mistake; no work has started.
        ClientError: a client's work failed.
    """
    all_rounds = rounds(config, out=out, callbacks=callbacks, progress=progress, interrupt=interrupt, **overrides)
    while True:  # here and not in a function of its own, so that tracebacks of runs are short
        try:
            next(all_rounds.steps)
        except StopIteration as end:
            return end.value


def rounds(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    interrupt: Callable[[], bool] = never,
    **overrides: Any,
) -> Rounds:
    """Run a configuration round by round. The arguments and errors are those of `run`.

    for row in (run := fl.rounds("a.yaml")):
        if row["val/accuracy"] > 0.9:
            run.stop("accurate enough")
    run.result.model
    """
    if out:
        check_place(Path(out))
    if not isinstance(config, Config):
        config = resolve(read(config, overrides))
    elif overrides:
        raise TypeError(f"overrides {list(overrides)} apply to a file or a dict, not to a resolved Config")
    watcher = _Watcher()
    all_ = Callbacks([RunLog(), watcher, *Callbacks(callbacks).all])
    prepared = _new_run(config, Path(out) if out else None, all_, progress)
    return Rounds(_with_baselines(prepared, config, False, False, interrupt), watcher)


class Rounds(Iterator[Row]):
    """The rounds of a run: an iterator over the metrics of each round, once it is committed.

    A loop that is left early, by `break` or an exception, interrupts the run; `fl.resume` continues it. The run begins
    with the first step.

    Args:
        steps: the run.
        watcher: learns about the run.

    Attributes:
        steps: the run.
    """

    def __init__(self, steps: Steps, watcher: _Watcher):
        self.steps, self._watcher = steps, watcher
        self._whole: Result | None = None
        self._thread = get_ident()
        _open.add(self)

    def __iter__(self) -> Rounds:
        return self

    def __next__(self) -> Row:
        try:
            return next(self.steps)
        except StopIteration as end:
            self._whole = end.value or self._whole
            raise StopIteration from None

    def stop(self, reason: str = "stopped") -> None:
        """End the run after the present round, as a condition of the section `stop` does."""
        self._run.stop(reason)

    def close(self) -> None:
        """Interrupt the run after the present round. A loop that is left early does this by itself."""
        self.steps.close()

    @property
    def model(self) -> Params:
        """The server's model after the last round that was computed."""
        return self._run.model

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self._run.directory

    @property
    def result(self) -> Result:
        """The result. It interrupts a run that has not finished."""
        self.close()
        result = self._whole or self._watcher.result
        if result is None:
            raise RuntimeError("the run has no result: it has not begun, or an error has ended it")
        return result

    def is_over(self, directory: Path) -> bool:
        """Return whether these are the rounds of the run in a directory, in this thread."""
        run = self._watcher.run
        return run is not None and self._thread == get_ident() and run.directory.resolve() == directory.resolve()

    @property
    def _run(self) -> Run:
        if self._watcher.run is None:
            raise RuntimeError("the run has not begun; it begins with the first step of the loop")
        return self._watcher.run


_open: weakref.WeakSet[Rounds] = weakref.WeakSet()


@atexit.register
def _close_open_loops() -> None:
    """Interrupt runs whose loop is open when the interpreter ends, while the modules that they need still exist."""
    for rounds in list(_open):
        with contextlib.suppress(ValueError):  # another thread executes it
            rounds.close()


class _Watcher(Callback):
    """Remembers the main run, not its baselines, and its result."""

    run: Run | None = None
    result: Result | None = None

    def start(self, run: Run) -> None:
        self.run = self.run or run

    def end(self, result: Result) -> None:
        self.result = self.result or result


@contextlib.contextmanager
def _shown(progress: bool | None, callbacks: Callbacks) -> Iterator[Callbacks]:
    """Context in which progress is shown, if it is asked for or somebody looks. Yields the callbacks with it."""
    shown = Progress()
    if progress or (progress is None and shown.screen.watched):
        with shown:
            yield Callbacks([shown, *callbacks.all])
    else:
        yield callbacks


@contextlib.contextmanager
def _new_run(
    config: Config, directory: Path | None, callbacks: Callbacks, progress: bool | None
) -> Iterator[tuple[Path, Callbacks]]:
    """Context of a run in a directory, or in a new one. Yields the directory and all callbacks."""
    place = directory or new_directory(config)
    try:
        with _shown(progress, callbacks) as all_:
            yield place, all_
    except BaseException:
        if directory is None:  # remove the new directory if it is still empty
            with contextlib.suppress(OSError):
                place.rmdir()
                place.parent.rmdir()
        raise


def resume(
    directory: str | Path,
    *,
    changed: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool | None = None,
    interrupt: Callable[[], bool] = never,
    **overrides: Any,
) -> Result:
    """Continue a run from its last committed round, to the same bits as without the interruption.

    Args:
        directory: the run directory.
        changed: resume although the data, the user's code, packages or the configuration are not those with which the
            run began. The bits then differ from an uninterrupted run.
        callbacks: as in `run`.
        progress: as in `run`.
        interrupt: as in `run`.
        overrides: `rounds` (a larger number, or "+100" to add), execution.executor, execution.workers,
            execution.address, execution.client_timeout and checkpoint.every.

    Raises:
        ConfigError: another key is changed, `rounds` is no number of rounds, or something differs from the beginning
            of the run (fl/simulation/unchanged.py).
    """
    directory = Path(directory)
    for each in list(_open):  # a loop that was left by `break`, and that a variable still holds
        if each.is_over(directory):
            each.close()
    raw = read(directory / "config.yaml")
    code = references_to_code(raw)
    if code:
        logging.getLogger(__name__).warning("resume runs the code of the run: %s", ", ".join(code))
    rounds = overrides.pop("rounds", None)
    if rounds is not None:
        number = re.fullmatch(r"(\+?)(\d+)", str(rounds))
        if number is None:
            raise ConfigError("rounds", f"{rounds!r} is neither a number of rounds nor +number, as in rounds=+100")
        before = raw.get("rounds")
        if not isinstance(before, int):
            raise ConfigError("rounds", f"{before!r} in {directory / 'config.yaml'} is no number of rounds")
        raw["rounds"] = int(number[2]) + (before if number[1] else 0)
        stretched = _schedules(raw, "")
        if raw["rounds"] != before and stretched:
            logging.getLogger(__name__).warning(
                "%s: the schedule now spans %s rounds, before %s; the result differs from a run of %s rounds from the "
                "start",
                ", ".join(stretched),
                raw["rounds"],
                before,
                raw["rounds"],
            )
    for key in overrides:
        if key not in FREE_TO_CHANGE:
            raise ConfigError(
                key,
                f"cannot change when a run is resumed; rounds and {sorted(FREE_TO_CHANGE)} can. "
                "Start a new run instead",
            )
    with _shown(progress, Callbacks([RunLog(), *Callbacks(callbacks).all])) as all_:
        prepared = contextlib.nullcontext((directory, all_))
        return exhausted(_with_baselines(prepared, resolve(read(raw, overrides)), True, changed, interrupt))


def _schedules(node: Any, path: str) -> list[str]:
    """Dotted paths of the learning-rate schedules that end with the last round, in a resolved configuration."""
    if not isinstance(node, Mapping):
        return []
    ends = node.get("schedule") in ("cosine", "linear") and node.get("over", 0) is None
    return [path] * ends + [p for key, value in node.items() for p in _schedules(value, dotted(path, key))]


def new_directory(config: Config) -> Path:
    """Claim a new run directory under runs/, named after the time, the strategy and the seed."""
    name = getattr(type(config.strategy), "registered_as", type(config.strategy).__name__)
    return create_run_directory(name, config.seed)


def _with_baselines(
    prepared: AbstractContextManager[tuple[Path, Callbacks]],
    config: Config,
    resumed: bool,
    changed: bool,
    interrupt: Callable[[], bool],
) -> Steps:
    """Run a simulation, then its baselines. Baselines of a run that has continued since are run again.

    `prepared` gives the run directory and the callbacks.
    """
    with prepared as (directory, callbacks), locked(directory, again=False), keep_workers(), isolated():
        with Simulation(config, directory, resumed, changed=changed) as simulation:
            others = baselines.baseline_configs(simulation.run_setup, directory)
            first_round = simulation.round
            result = yield from simulation.steps(callbacks, interrupt)
            continued = simulation.round > first_round
        if continued and others:
            files.remove_folder(directory / "baselines")
        done: dict[str, Result] = {}
        for name, other in others.items():
            if any(r.reason == "interrupted" for r in (result, *done.values())):
                break
            home = files.make_folder(files.make_folder(directory / "baselines") / folder_name("baselines", name))
            exists, there = committed(home), contextlib.nullcontext((home, callbacks))
            done[name] = exhausted(_with_baselines(there, other, exists, changed, interrupt))
        return replace(result, baselines=done)
