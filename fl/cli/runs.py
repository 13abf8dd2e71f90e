"""Commands about runs: run, resume, evaluate, digest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fl.cli.errors import log_to_stderr, report_errors, say
from fl.cli.execute import execute_flower_app, execute_runs
from fl.cli.format import four_decimals, two_columns
from fl.cli.json_output import print_json
from fl.cli.options import AsJson, ConfigFile, NewRun, Overrides, Quiet, Traceback
from fl.cli.overrides import SMOKE_COHORT, SMOKE_ROUNDS, parse_overrides, parse_seed_range, shrink_for_smoke
from fl.errors import ConfigError


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: NewRun = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Run two rounds of at most four clients, as a test.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Show where the time goes, and write a trace.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
    seed: Annotated[str | None, typer.Option("--seed", hidden=True)] = None,
) -> None:
    """Run a configuration. seed=0..4 makes five runs, one after the other."""
    with report_errors(traceback, "stopped before the first round"):
        if seed is not None:
            raise ConfigError("--seed", f"the seed is a key of the configuration; write seed={seed} without --")
        changes = parse_overrides(overrides)
        if out is not None:
            from fl.storage.place import check_place

            check_place(out)
        from fl.config.config import resolve
        from fl.config.reading import read
        from fl.simulation import run as simulation

        log_to_stderr()
        seeds = parse_seed_range(changes.get("seed"))
        configs = []
        for change in [{"seed": seed} for seed in seeds] or [{}]:
            raw = read(config, {**changes, **change})
            configs.append(resolve(shrink_for_smoke(raw) if smoke else raw))
        if smoke:
            say(f"smoke: {SMOKE_ROUNDS} rounds of at most {SMOKE_COHORT} clients")
        outs = [out / f"seed-{seed}" if out else None for seed in seeds] or [out]
        starts = [partial(simulation.run, resolved, out=directory) for resolved, directory in zip(configs, outs)]
        execute_runs(starts, as_json, several=bool(seeds), profiled=profile, quiet=quiet)


def resume(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    overrides: Overrides = None,
    changed: Annotated[
        bool,
        typer.Option("--changed", help="Resume although data, code, packages or settings are not those of the start."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Resume a run from its last committed round, or a Flower app run with --journal. rounds=+100 adds rounds."""
    with report_errors(traceback, f"stopped; resume with: fl resume {directory}"):
        changes = parse_overrides(overrides)
        from fl.config.reading import read
        from fl.simulation import run as simulation

        log_to_stderr()
        if "flower" in read(directory / "config.yaml"):  # nothing is built yet
            from fl.flower.app import resumed

            execute_flower_app(resumed(directory, changes), as_json)
            return
        start = partial(simulation.resume, directory, changed=changed, **changes)
        execute_runs([start], as_json, quiet=quiet, directory=directory)


def evaluate(
    source: Annotated[Path, typer.Argument(help="Run directory, or a YAML configuration file.")],
    overrides: Overrides = None,
    checkpoint: Annotated[
        str, typer.Option(help="Which model of a run directory: latest, or best (by evaluation.select).")
    ] = "latest",
    changed: Annotated[
        bool, typer.Option("--changed", help="Evaluate although data, code or packages are not those of the run.")
    ] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Evaluate the model of a run, or of a configuration (model.init=FILE), without training. The run is only read."""
    with report_errors(traceback):
        changes = parse_overrides(overrides)
        from dataclasses import asdict

        from fl.simulation.evaluate_only import evaluate
        from fl.storage.run import finite

        log_to_stderr()
        found = evaluate(source, checkpoint=checkpoint, changed=changed, **changes)
        if as_json:
            print_json(finite(asdict(found)))
            return
        lines = {"model": f"{found.checkpoint}, after {found.rounds} rounds", "digest": found.digest}
        lines |= {name: four_decimals(value) for name, value in found.metrics.items()}
        print(two_columns(lines.items()))


def digest(
    directory: Annotated[Path, typer.Argument(help="Run directory.")],
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Print the SHA-256 of a run's model. Two runs with equal digests have equal bits."""
    with report_errors(traceback):
        from fl.storage import sums
        from fl.storage.run import committed, committed_model, last_commit
        from fl.tensors import serialise

        file, commit = (
            sums.checked(directory / "model.safetensors"),
            last_commit(directory) if committed(directory) else None,
        )
        if not file.is_file() and commit is None:
            raise ConfigError("", f"{directory} holds neither model.safetensors nor a committed round")
        if commit is None or (file.is_file() and _round_of(file) == str(commit["round"])):
            from safetensors.torch import load_file

            from fl.tensors.params import Params

            model = Params.of(load_file(file))
        else:  # the run has not ended, or was resumed after that file was written
            model = committed_model(commit)
        found = serialise.digest(model)
        if as_json:
            print_json({"directory": str(directory), "digest": found})
        else:
            print(found)


def _round_of(model_file: Path) -> str | None:
    """The number of rounds after which the model was written; None if the file does not say."""
    from safetensors import safe_open

    with safe_open(model_file, "pt") as opened:
        return (opened.metadata() or {}).get("round")
