"""The Python API: run a configuration, or resume a run."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.config.references import references_to_code
from fl.errors import ConfigError, dotted
from fl.execution.isolation import isolated
from fl.execution.workers.ray_pool import keep_workers
from fl.simulation import baselines
from fl.simulation.result import Result
from fl.simulation.simulation import Simulation, Watcher
from fl.simulation.unchanged import FREE_TO_CHANGE
from fl.storage import files
from fl.storage.lock import locked
from fl.storage.place import check_place, folder_name
from fl.storage.run import committed, create_run_directory


def never() -> bool:
    """Never interrupt a run."""
    return False


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    watch: Watcher | None = None,
    interrupt: Callable[[], bool] = never,
    **overrides: Any,
) -> Result:
    """Run a configuration.

    Args:
        config: a YAML file, a dict or a resolved `Config`.
        out: the run directory (default: a new one under runs/).
        watch: called with ("start", Simulation), ("ready", Simulation), ("computed", row of metrics) after each round,
            ("round", row of metrics) for each round once it is committed, which a crash cannot lose, and at the end
            ("final", row of metrics) if the strategy works after the last round.
        interrupt: called after each round; True ends the run there, and `resume` continues it.
        overrides: values by dotted path, as in run("a.yaml", **{"cohort.size": 20}).

    Raises:
        ConfigError: the configuration has a mistake; no work has started.
        ClientError: a client's work failed.
    """
    if out:
        check_place(Path(out))
    if not isinstance(config, Config):
        config = resolve(read(config, overrides))
    elif overrides:
        raise TypeError(f"overrides {list(overrides)} apply to a file or a dict, not to a resolved Config")
    directory = Path(out) if out else new_directory(config)
    try:
        return _with_baselines(config, directory, False, False, watch, interrupt)
    except BaseException:
        if out is None:  # remove the new directory if it is still empty
            with contextlib.suppress(OSError):
                directory.rmdir()
                directory.parent.rmdir()
        raise


def resume(
    directory: str | Path,
    *,
    changed: bool = False,
    watch: Watcher | None = None,
    interrupt: Callable[[], bool] = never,
    **overrides: Any,
) -> Result:
    """Continue a run from its last committed round, to the same bits as without the interruption.

    Args:
        directory: the run directory.
        changed: resume although the data, the user's code, packages or the configuration are not those with which the
            run began. The bits then differ from an uninterrupted run.
        watch: as in `run`.
        interrupt: as in `run`.
        overrides: `rounds` (a larger number, or "+100" to add), execution.executor, execution.workers,
            execution.address, execution.client_timeout and checkpoint.every.

    Raises:
        ConfigError: another key is changed, `rounds` is no number of rounds, or something differs from the beginning
            of the run (fl/simulation/unchanged.py).
    """
    directory = Path(directory)
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
    return _with_baselines(resolve(read(raw, overrides)), directory, True, changed, watch, interrupt)


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
    config: Config,
    directory: Path,
    resumed: bool,
    changed: bool,
    watch: Watcher | None,
    interrupt: Callable[[], bool],
) -> Result:
    """Run a simulation, then its baselines. Baselines of a run that has continued since are run again."""
    with locked(directory), keep_workers(), isolated():
        with Simulation(config, directory, resumed, changed=changed) as simulation:
            others = baselines.baseline_configs(simulation.run_setup, directory)
            first_round = simulation.round
            result = simulation.run(watch, interrupt)
            continued = simulation.round > first_round
        if continued and others:
            files.remove_folder(directory / "baselines")
        done: dict[str, Result] = {}
        for name, other in others.items():
            if any(r.reason == "interrupted" for r in (result, *done.values())):
                break
            home = files.make_folder(files.make_folder(directory / "baselines") / folder_name("baselines", name))
            exists = committed(home)
            done[name] = _with_baselines(other, home, exists, changed, watch, interrupt)
        return replace(result, baselines=done)
