"""Evaluate the model of a run directory, or the first model of a configuration, without training.

    checkpoints/final, or else the last commit, or best  ->  Simulation in a temporary folder  ->  metrics

The run directory is only read. States of clients are copied to the temporary folder (TMPDIR) if the run may go on
meanwhile; what workers write goes there, too. The evaluation has the number of the round that it repeats, so metrics
have the bits of that round.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.config.references import references_to_code
from fl.errors import ConfigError
from fl.execution.isolation import isolated
from fl.execution.workers.folders import PrivateFolder, disk_folder, new_name
from fl.execution.workers.ray_pool import keep_workers
from fl.simulation.exchange import EMPTY_COHORT
from fl.simulation.simulation import Simulation
from fl.simulation.totals import Row
from fl.simulation.unchanged import changes_of_inputs
from fl.storage import checkpoint as storage
from fl.storage.growing import Damaged
from fl.storage.run import committed
from fl.tensors.serialise import digest

SECTIONS = ("evaluation", "execution")  # of a run's configuration, that an evaluation may change
CHECKPOINTS = ("latest", "best")
ATTEMPTS = 10  # to copy the states of a commit, while a run goes on and writes others in their place
PATIENCE = 3  # attempts with one commit; then it is damaged
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` returns.

    Attributes:
        source: the run directory or the configuration.
        checkpoint: "final", "last" or "best"; "first" for a configuration.
        rounds: number of rounds after which the model was saved.
        digest: SHA-256 of all tensors of the model.
        metrics: metrics by name, as in a row of metrics.jsonl.
    """

    source: str
    checkpoint: str
    rounds: int
    digest: str
    metrics: Row


@dataclass(frozen=True)
class _Saved:
    """A state of a run: that of a commit or of the work after the last round.

    Attributes:
        name: "final", "last" or "best".
        round: the round of its evaluation.
        rounds: rounds done.
        state: the strategy's state.
        exchanges: record of the exchanges of the last commit before it.
        clients: restores the clients' states.
        ended: whether the run has done its rounds.
    """

    name: str
    round: int
    rounds: int
    state: Any
    exchanges: Mapping[str, Any]
    clients: Callable[[Simulation], None]
    ended: bool


def evaluate(
    source: str | Path | Mapping[str, Any] | Config,
    *,
    checkpoint: str = "latest",
    changed: bool = False,
    **overrides: Any,
) -> Evaluated:
    """Evaluate a model without training.

    Args:
        source: a run directory; or a configuration, whose first model is evaluated. `model.init` names a file or a
            run with its weights. If the strategy works before round 0 (`setup`), it does so.
        checkpoint: for a run directory, "latest" (after the work that follows the last round, or else the last
            commit) or "best" (by `evaluation.select`).
        changed: evaluate although data, code or packages are not those of the run.
        overrides: values by dotted path; for a run directory of `evaluation` and `execution` only.

    Raises:
        ConfigError: the configuration has a mistake, the run lacks the checkpoint, or its inputs have changed.
    """
    directory = Path(source) if isinstance(source, (str, Path)) and Path(source).is_dir() else None
    if checkpoint not in CHECKPOINTS:
        raise ConfigError("--checkpoint", f"{checkpoint!r} is not one of {list(CHECKPOINTS)}")
    saved = None
    if directory is None:
        if checkpoint != "latest":
            raise ConfigError("--checkpoint", f"{source} is no run directory; name the run with model.init=DIR")
        config = source if isinstance(source, Config) else resolve(read(source, overrides))
    else:
        _require_checkpoint(directory, checkpoint)
        config = resolve(_config_of(directory, overrides))
    with contextlib.ExitStack() as stack:
        stack.enter_context(keep_workers())
        stack.enter_context(isolated())
        private = PrivateFolder(disk_folder(), new_name())
        stack.callback(private.remove)
        folder = private.path / "run"
        simulation = stack.enter_context(Simulation(config, folder))
        if directory is not None:
            _require_same_inputs(directory, folder, changed)
            saved = _take_over(simulation, directory, checkpoint)
        simulation.start_workers()
        if saved is None:
            simulation.before_rounds()
        simulation.exchanges.begin(simulation.round, simulation.round, EMPTY_COHORT)
        metrics = simulation.evaluate(simulation.state, EMPTY_COHORT)
        model = digest(simulation.config.strategy.model(simulation.state))
    name, rounds = ("first", 0) if saved is None else (saved.name, saved.rounds)
    return Evaluated(str(source) if isinstance(source, (str, Path)) else "", name, rounds, model, metrics)


def _config_of(directory: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run with the overrides that an evaluation may have."""
    raw = read(directory / "config.yaml")
    if "flower" in raw:
        raise ConfigError("", f"{directory} is the run of a Flower app; only the app can evaluate its model")
    for key in overrides:
        if key.partition(".")[0] not in SECTIONS:
            raise ConfigError(
                key,
                f"cannot change in the evaluation of a run; keys of {' and '.join(SECTIONS)} can. For other data, use "
                f"`fl evaluate CONFIG model.init={directory}`",
            )
    code = references_to_code(raw)
    if code:
        log.warning("evaluate runs the code of the run: %s", ", ".join(code))
    return read(raw, overrides)


def _require_checkpoint(directory: Path, wanted: str) -> None:
    """Check that a directory holds a run with the checkpoint that is asked for."""
    if not committed(directory):
        raise ConfigError("", f"{directory} holds no committed round of a run")
    if wanted == "best" and not (directory / "checkpoints" / "best.safetensors").is_file():
        raise ConfigError(
            "--checkpoint",
            f"{directory} has no best checkpoint; the run needs checkpoint.best: true and an evaluation",
        )


def _saved(directory: Path, wanted: str) -> _Saved:
    """Read the state to evaluate from a run directory, as values of the run's own classes.

    Raises:
        ConfigError: no commit is intact.
        Damaged: the checkpoint is damaged.
    """
    folder = directory / "checkpoints"
    if wanted == "best":
        record = storage.load(folder / "best.safetensors")
        return _of_record("best", record, partial(_restore_pinned, name="best", pinned=record["pinned"]))
    record = next((tree for _, tree in storage.intact(folder) if not isinstance(tree, Damaged)), None)
    if record is None:
        raise ConfigError("", f"{directory}: no commit is intact")
    if not (folder / "final.safetensors").is_file():
        clients = record["clients"]
        return _of_record("last", record, lambda run: run.states.restore(clients))
    final = storage.load(folder / "final.safetensors")
    done, exchanges, pinned = final["round"], record["exchanges"], final["pinned"]
    states = partial(_restore_pinned, name="final", pinned=pinned)
    return _Saved("final", done, done, final["state"], exchanges, states, ended=True)


def _of_record(name: str, record: Mapping[str, Any], clients: Callable[[Simulation], None]) -> _Saved:
    """Return the state of a commit. Its last round has evaluated it."""
    done = record["round"]
    ended = done >= record["rounds"] or bool(record["stopping"]["reason"])
    return _Saved(name, max(done - 1, 0), done, record["state"], record["exchanges"], clients, ended)


def _restore_pinned(simulation: Simulation, name: str, pinned: str) -> None:
    simulation.states.restore_pinned(name, pinned)


def _take_over(simulation: Simulation, directory: Path, wanted: str) -> _Saved:
    """Give a new simulation a state of a run, and its clients' states; return it.

    The states are links to the files of a run that has ended, and copies of those of a run that may go on.

    Raises:
        ConfigError: the run commits faster than states can be copied, or the copies have no room.
        Damaged: the checkpoint or a state is damaged.
    """
    failed: list[int] = []  # rounds of the checkpoints that could not be read
    while True:
        saved = _saved(directory, wanted)
        try:
            for file in (directory / "clients").iterdir():
                (simulation.states.folder / file.name).symlink_to(file.resolve())
            saved.clients(simulation)
            if not saved.ended:
                simulation.states.detach()
            break
        except (Damaged, FileNotFoundError):  # a newer commit may have taken space of this one
            failed.append(saved.rounds)
            if failed.count(saved.rounds) == PATIENCE:
                raise
            if len(failed) == ATTEMPTS:
                raise ConfigError(
                    "", f"{directory} commits faster than its states can be copied; evaluate it when it has ended"
                ) from None
            for file in simulation.states.folder.iterdir():
                file.unlink()
            time.sleep(0.1)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f"{disk_folder()} has no room for the clients' states; set TMPDIR to another folder"
            raise ConfigError("", text) from error
    simulation.round, simulation.state, simulation.setup_done = saved.round, saved.state, True
    simulation.exchanges.downlink.restore(saved.exchanges)
    return saved


def _require_same_inputs(directory: Path, folder: Path, changed: bool) -> None:
    """Compare the inputs of the evaluation, recorded in `folder`, with those of the run."""
    now = json.loads((folder / "environment.json").read_text())
    differences = changes_of_inputs(directory, now)
    if differences and not changed:
        raise ConfigError(
            "",
            f"{directory} has changed since the run began: {'; '.join(differences)}. Undo this to evaluate what was "
            "trained, or use --changed (fl.evaluate(..., changed=True)) to evaluate it in spite of this",
        )
    if differences:
        log.warning("evaluate in spite of changes: %s", "; ".join(differences))
