"""Candidates of `fl tune`: worker counts, and the plans that can train a configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from fl.execution.section import Execution
from fl.execution.training.memory_format import MemoryFormat
from fl.execution.training.plan import Kind, Plan
from fl.execution.workers.choose import Choice
from fl.simulation.setup import RunSetup

CHUNK_FACTORS = (2, 0.5, 4, 0.25)  # chunks to try, relative to the default's
MANY_CORES = 8  # above it, only powers of two of workers are tried


@dataclass(frozen=True)
class Candidate:
    """Execution settings to compare.

    Args:
        workers: number of Ray workers; 0 is the serial executor.
        plan: how clients train.
    """

    workers: int
    plan: Plan

    def __str__(self) -> str:
        memory_format = "" if self.plan.memory_format == "contiguous" else self.plan.memory_format
        return ", ".join(filter(None, [f"{self.plan.kind} by {self.plan.chunk}", memory_format, self.executor]))

    @property
    def executor(self) -> str:
        """The executor in words."""
        return f"ray with {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else "serial"

    @property
    def cells(self) -> dict[str, Any]:
        """Columns of the table."""
        plan = self.plan
        return {
            "executor": self.executor,
            "plan": plan.kind,
            "chunk": str(plan.chunk),
            "memory_format": plan.memory_format,
        }


def worker_counts(execution: Execution, kept: Mapping[str, Any], cores: int) -> list[int]:
    """Worker counts to compare; 0 is the serial executor.

    Args:
        execution: the configuration's section.
        kept: its keys that the configuration states.
        cores: cores of this machine.
    """
    if execution.executor == "serial":
        return [0]
    most = execution.workers or cores
    if execution.address:
        return [most]
    serial = [] if "executor" in kept else [0]
    if "workers" in kept:
        return [most, *serial]
    counts = range(1, cores + 1) if cores <= MANY_CORES else [2**k for k in range(cores.bit_length()) if 2**k < cores]
    return [most, *serial, *(count for count in counts if count != most)]


def default_first(counts: Sequence[int], choice: Choice) -> list[int]:
    """Worker counts to compare, that of the run's own executor first.

    >>> default_first([2, 0, 1], Choice("serial", 2, ""))
    [0, 2, 1]
    """
    default = 0 if choice.executor == "serial" else choice.workers
    return [default, *(count for count in counts if count != default)]


def possible_plans(run_setup: RunSetup, kept: Mapping[str, Any], cohort: int) -> tuple[list[Plan], dict[str, str]]:
    """(plans to compare, the default first; kind -> reason why it is not possible).

    Args:
        run_setup: the run with its default plan.
        kept: execution settings that the configuration states.
        cohort: clients in a round; larger chunks are not tried.
    """
    config, found, impossible = run_setup.config, [run_setup.plan], {}

    def make(kind: Kind, chunk: int | None = None, memory_format: MemoryFormat | None = None) -> Plan:
        execution = replace(config.execution, plan=kind, chunk=chunk, memory_format=memory_format)
        asked = replace(config, execution=execution)
        return run_setup.choose_plan(asked, run_setup.trial)

    for kind in [kept["plan"]] if "plan" in kept else get_args(Kind):
        try:
            base = make(kind, kept.get("chunk"), kept.get("memory_format"))
        except ValueError as error:
            impossible[kind] = str(error).partition("is not possible: ")[2].partition(". Use ")[0] or str(error)
            continue
        found.append(base)
        if base.memory_format != "contiguous" and "memory_format" not in kept:
            for memory_format in get_args(MemoryFormat):
                with contextlib.suppress(ValueError):  # not possible
                    found.append(make(kind, kept.get("chunk"), memory_format))
        if base.chunk > 1 and "chunk" not in kept:
            most = 1 << max(0, cohort - 1).bit_length()  # a larger chunk holds the whole cohort too
            chunks = [int(min(base.chunk, most) * factor) for factor in CHUNK_FACTORS]
            found += [replace(base, chunk=chunk) for chunk in chunks if 1 <= chunk <= most]
    return list(dict.fromkeys(replace(plan, why="tried") for plan in found)), impossible
