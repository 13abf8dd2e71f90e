"""Perform runs, each in its own temporary folder, and write their results to a record.

A record is a JSON file {"environment": ..., "runs": {name: run}}. The other keys of a run depend on its "status":

    ok        "digest", "ledger", "clients", "metrics" (a dict per round), "plan", "reason" (why the run ended)
    refused   "error": why fl refused the configuration
    failed    "error": the error during the run
    skipped   "error": the data folder or package that is missing
"""

from __future__ import annotations

import concurrent.futures
import fnmatch
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import fl
from experiments.regression import features, fl_names, headline, parts, strategies
from experiments.regression.case import Case, insert_folder

Run = dict[str, Any]


@functools.cache
def all_cases() -> dict[str, Case]:
    """Return all runs by name, in the order in which they are performed."""
    cases: dict[str, Case] = {}
    for case in (*strategies.cases(), *headline.cases(), *features.cases()):
        if case.name in cases:
            raise ValueError(f"two runs have the name {case.name!r}")
        cases[case.name] = case
    return cases


def record(file: Path, only: str = "*", jobs: int = 1) -> dict[str, Run]:
    """Perform all runs whose names match the pattern `only`, and write the record and the models.

    If the record exists, its other runs stay in it.
    """
    names = [name for name in all_cases() if fnmatch.fnmatchcase(name, only)]
    models, runs = models_of(file), _other_runs(file, only)
    if not runs:
        shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True, exist_ok=True)
    for number, (name, results, seconds) in enumerate(_perform_all(names, models, jobs), 1):
        runs |= results
        print(f"[{number}/{len(names)}] {seconds:5.1f} s  {results[name]['status']:8}{name}", file=sys.stderr)
    write(file, runs)
    return runs


def _other_runs(file: Path, only: str) -> dict[str, Run]:
    """Return the runs of an existing record whose names do not match the pattern `only`."""
    before = read(file) if file.is_file() else {}
    return {name: run for name, run in before.items() if not fnmatch.fnmatchcase(name.partition("[")[0], only)}


def models_of(file: Path) -> Path:
    """Return the folder of a record's models."""
    return file.with_name(f"{file.name}.models")


def write(file: Path, runs: Mapping[str, Run]) -> None:
    """Write a record with one line per run."""
    environment = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items())
    file.write_text(f'{{"environment": {json.dumps(environment)}, "runs": {{\n{lines}\n}}}}\n')


def read(file: Path) -> dict[str, Run]:
    """Read the runs of a record by name."""
    return json.loads(file.read_text())["runs"]


def _perform_all(names: list[str], models: Path, jobs: int) -> Iterator[tuple[str, dict[str, Run], float]]:
    """Yield (name, results, seconds) of each run, performed in this process or in `jobs` others."""
    perform_one = functools.partial(perform, models=models)
    if jobs == 1:
        yield from map(perform_one, names)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(perform_one, names)


def perform(name: str, models: Path) -> tuple[str, dict[str, Run], float]:
    """Perform a run, save its model and return (name, results, seconds).

    The results of its baselines are named NAME[baseline].
    """
    case, start = all_cases()[name], time.perf_counter()
    if missing := case.missing():
        return name, {name: {"status": "skipped", "error": missing}}, 0.0
    with tempfile.TemporaryDirectory(prefix="fl-regression-") as temporary:
        folder = Path(temporary).resolve()
        try:
            results = _results(case, folder)
            runs = {name + suffix: _describe(result, folder) for suffix, result in results.items()}
            for suffix, result in results.items():
                _save_model(_directory(result), models / f"{name}{suffix}.safetensors")
        except Exception as error:  # an error is a result, too
            runs = {name: _failure(error, folder)}
    return name, runs, time.perf_counter() - start


# -- one run ----------------------------------------------------------------------------------------------------------
def _results(case: Case, folder: Path) -> dict[str, fl.Result | Path]:
    """Perform the run; return its result under "" and those of its baselines under "[name]".

    The result of a Flower app is a run directory.
    """
    _reset_process()
    if case.before is not None:
        fl.run(_config(case.before, folder), out=folder / "before", **insert_folder(case.before.overrides, folder))
    if case.writes is not None:
        getattr(parts, case.writes)(folder)
    config, overrides, out = _config(case, folder), insert_folder(case.overrides, folder), folder / "run"
    if case.how == "flower":
        return {"": _run_flower_app(config, folder)}
    if case.how == "resume":
        fl.run(config, out=out, interrupt=lambda: True, **overrides)
        result = fl.resume(out)
    else:
        result = fl.run(config, out=out, **overrides)
    return {"": result} | {f"[{name}]": other for name, other in result.baselines.items()}


def _config(case: Case, folder: Path) -> dict[str, Any] | Path:
    return case.config if isinstance(case.config, Path) else insert_folder(case.config, folder)


def _reset_process() -> None:
    """Make the run independent of earlier runs and of the number of cores."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _run_flower_app(config: Any, folder: Path) -> Path:
    """Export the run as a Flower app, run the app, and return its run directory."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    app, out, nodes = folder / "app", folder / "run", config["partition"]["clients"]
    _command(folder, "export", "config.yaml", str(app))
    _command(folder, "run", str(app), f"out={out}", "--nodes", str(nodes), "--out", str(folder / "grid"))
    return out


def _command(folder: Path, *arguments: str) -> None:
    """Run `fl flower ...`. On failure, raise an error with the last line of its stderr."""
    path = os.pathsep.join([str(Path(fl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fl", "flower", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [""]
        raise RuntimeError(f"fl flower {arguments[0]}: exit code {done.returncode}: {lines[-1]}")


# -- results of a run -------------------------------------------------------------------------------------------------
def _describe(result: fl.Result | Path, folder: Path) -> Run:
    """Return the results of a finished run that a change of the code must not change."""
    directory = _directory(result)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    run = {
        "status": "ok",
        "digest": _digest(directory / "model.safetensors") if isinstance(result, Path) else result.digest,
        "ledger": _table(directory / "ledger.parquet"),
        "clients": _table(directory / "clients.parquet"),
        "metrics": [{key: value for key, value in row.items() if not _is_measured(key)} for row in rows],
        "plan": fl_names.plan_of(directory),
        "reason": None if isinstance(result, Path) else result.reason,
    }
    return json.loads(json.dumps(run).replace(str(folder), "FOLDER"))


def _failure(error: Exception, folder: Path) -> Run:
    """Return the first line of an error, without names of temporary folders."""
    line = (str(error).strip().splitlines() or [""])[0].replace(str(folder), "FOLDER")
    status = "refused" if fl_names.is_refusal(error) else "failed"
    return {"status": status, "error": f"{type(error).__name__}: {line}"}


def _directory(result: fl.Result | Path) -> Path:
    return result if isinstance(result, Path) else result.directory


def _is_measured(metric: str) -> bool:
    """Return whether the metric is a time on a real clock. Simulated times are results."""
    return metric.endswith("_seconds") and not metric.startswith("simulated_")


def _table(file: Path) -> dict[str, Any]:
    """Return hash, columns and number of rows of a parquet file. The order of rows and columns does not matter."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    lines = sorted(json.dumps(row, sort_keys=True, default=str) for row in table.to_pylist())
    sha = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"sha256": sha, "columns": sorted(table.column_names), "rows": len(lines)}


def _digest(file: Path) -> str:
    """Return a hash of the names, shapes, dtypes and bytes of all tensors of a file."""
    from safetensors.torch import load_file

    sha = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        sha.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _save_model(directory: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(directory / "model.safetensors", file)
