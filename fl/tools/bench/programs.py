"""The programs that `fl bench` compares, and the Python environments that they run in."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """A program in experiments/benchmarks/peers.

    Args:
        name: its name for `--only`.
        script: file name without suffix.
        package: the package that it needs, in a side environment or in ours; None for those that fl needs anyway.
        processes: numbers of processes to run it with, one after another; "k" is the workload's number of workers.
        own_batches: it fills up batches in its own way, so that its model may differ more.
    """

    name: str
    script: str
    package: str | None
    processes: tuple[int | str, ...] = (1,)
    own_batches: bool = False


OURS = Program("ours", "ours", None)
PROGRAMS = (
    Program("peak", "peak", None, ("k",)),
    Program("bare", "bare", None, (1, "k")),
    OURS,
    Program("pfl", "pfl_research", "pfl", (1, "k")),
    Program("flower", "flower", "flwr"),
    Program("fedjax", "fed_jax", "fedjax", own_batches=True),
    Program("blazefl", "blaze_fl", "blazefl"),
    Program("jax", "plain_jax", "jax", (1, "k")),
)
REFERENCES = ("peak", "bare")  # always run: others are compared with them


def find_environments(pythons: Sequence[Path], packages: Sequence[str]) -> dict[str, Path]:
    """Package -> interpreter of the first environment that has it."""
    code = f"import importlib.util as u; print(*[p for p in {list(packages)} if u.find_spec(p)])"
    found: dict[str, Path] = {}
    for python in pythons:
        installed = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split()
        found = dict.fromkeys(installed, python) | found
    return found
