"""Python processes that start in a fraction of a second: they are forked from a server with the heavy imports.

`python` and `fl` replace `subprocess.run([sys.executable, "-c", code])` and `python -m fl ...`: a separate process with
its own exit code, standard output and error. Tests of process start or of terminal signals start a real process.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

HEAVY = ["fl.cli.app", "fl.simulation.simulation", "fl.tracking.progress", "pyarrow.parquet", "safetensors.torch"]
HEAVY += ["sklearn.datasets", "rich.live", "rich.logging", "yaml", "numba"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(HEAVY)


def python(code: str, folder: Path | None = None, strict: bool = False, **environment: str) -> CompletedProcess[str]:
    """Run Python code in a process; `folder` is its working directory, `strict` makes warnings errors."""
    return _finished(_run_code, (code, strict), folder, environment)


def fl(*arguments: object, folder: Path | None = None, **environment: str) -> CompletedProcess[str]:
    """Run the command `fl` in a process."""
    return _finished(_run_command, tuple(map(str, arguments)), folder, environment)


def start(code: str, output: Path | str = os.devnull) -> BaseProcess:
    """Start a process that runs Python code, to kill it or wait for it; `output`: the file for what it prints."""
    process = CONTEXT.Process(target=_child, args=(_run_code, (code, False), str(output), str(output), None, {}))
    process.start()
    return process


def _finished(
    run: Callable[..., None], arguments: tuple[object, ...], folder: Path | None, environment: dict[str, str]
) -> CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as outputs:
        out, err = (f"{outputs}/{name}" for name in ("out", "err"))
        here = str(folder) if folder else os.getcwd()
        whole = dict(os.environ) | environment
        process = CONTEXT.Process(target=_child, args=(run, arguments, out, err, here, whole))
        process.start()
        process.join()
        told = [Path(path).read_text() if Path(path).exists() else "" for path in (out, err)]
    return CompletedProcess(list(arguments), process.exitcode or 0, *told)


def _child(
    run: Callable[..., None],
    arguments: tuple[object, ...],
    out: str,
    err: str,
    folder: str | None,
    environment: dict[str, str],
) -> None:
    """Run in the forked process."""
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (io.TextIOWrapper(open(k, "wb", 0, closefd=False), write_through=True) for k in (1, 2))
    if folder is not None:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
    run(*arguments)


def _run_code(code: str, strict: bool) -> None:
    if strict:
        warnings.simplefilter("error")
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)


def _run_command(*arguments: str) -> None:
    from fl.cli.app import main

    sys.argv = ["fl", *arguments]
    main()
