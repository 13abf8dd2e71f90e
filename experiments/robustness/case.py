"""A member of a kind of input, and its outcome in a run."""

from __future__ import annotations

import linecache
import random
import re
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import fl
from fl.config.reading import read
from fl.errors import ConfigError
from fl.execution.workers.ray_pool import keep_workers

Status = Literal["same bits", "other bits", "refused", "stopped"]
Changes = Mapping[str, Any]
PACKAGES = ("fl", "strategies", "clients", "partitions", "experiments")

CONFIG: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 6, "samples": 9},
    "partition": "natural",
    "splits": {"val": 0.25},
    "model": "softmax",
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"epochs": 2, "batch": 4, "lr": 0.1},
    "evaluation": {"server": False},
    "execution": {"executor": "serial", "plan": "auto"},
}


@dataclass(frozen=True)
class Case:
    """One member of a kind.

    Args:
        kind: the kind, a row of the table.
        name: the member.
        changes: keys of `CONFIG` by dotted path; or a function of a folder, which may write files there.
        expected: the right outcome.
        message: part of the message of a refusal or a stop, as a regular expression.
        ray: whether the run is repeated on Ray workers.
    """

    kind: str
    name: str
    changes: Changes | Callable[[Path], Changes] = field(repr=False)
    expected: Status = "same bits"
    message: str = ""
    ray: bool = False

    def config(self, folder: Path, **more: Any) -> dict[str, Any]:
        """Return the configuration of the run; files of the case are in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        changes = self.changes(folder) if callable(self.changes) else self.changes
        return read(CONFIG, {**changes, **more})


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Args:
        status: "same bits": all runs have one digest; "refused": before round 0; "stopped": later.
        message: first line of the error, without the folder's path and without what `own_words` leaves out.
    """

    status: Status
    message: str = ""

    def agrees(self, case: Case) -> bool:
        """Whether the outcome is the one that the case expects."""
        return self.status == case.expected and bool(re.search(case.message, self.message))

    def __str__(self) -> str:
        return f"{self.status}: {first_sentence(self.message)}" if self.message else self.status


def perform(cases: Sequence[Case], workers: Sequence[int] = ()) -> list[Outcome]:
    """Run each case twice in this process, and those of models once with each of these numbers of Ray workers."""
    found: list[list[str | Outcome]] = [[] for _ in cases]
    with keep_workers():
        for number in (0, 0, *workers):  # the workers of one run are kept for the next one
            for case, results in zip(cases, found):
                if (case.ray or not number) and not any(isinstance(result, Outcome) for result in results):
                    results.append(_result(case, number))
    return [_outcome(results) for results in found]


def _outcome(results: Sequence[str | Outcome]) -> Outcome:
    last = results[-1]
    if isinstance(last, Outcome):
        return last
    return Outcome("same bits" if len(set(results)) == 1 else "other bits")


def _result(case: Case, workers: int) -> str | Outcome:
    """Run a case with Ray workers, or with 0 in this process. Return the digest of its model, or how it failed."""
    execution = {"execution.executor": "ray", "execution.workers": workers} if workers else {}
    events: list[str] = []
    torch.rand(1), np.random.rand(), random.random()  # the global generators are elsewhere in each run
    with tempfile.TemporaryDirectory() as name:
        files = Path(name) / "files"
        try:
            config = case.config(files, **execution)
            return fl.run(config, out=Path(name) / "run", callbacks=[_Started(events)]).digest
        except Exception as error:  # the table shows whatever comes
            refused = isinstance(error, ConfigError) and not events
            message = own_words(error).replace(str(files), ".")
            return Outcome("refused" if refused else "stopped", message)


class _Started(fl.Callback):
    """Notes that a run has begun."""

    def __init__(self, events: list[str]):
        self.events = events

    def start(self, run: fl.Run) -> None:
        self.events.append("start")


def own_words(error: BaseException) -> str:
    """Return the first line of an error's message, up to the words of another library that it quotes.

    Other versions of the library may word them in another way.

    >>> try:
    ...     try:
    ...         int("ten")
    ...     except ValueError as quoted:
    ...         raise ValueError(f"rounds: not a whole number: {quoted}") from quoted
    ... except ValueError as error:
    ...     own_words(error)
    'rounds: not a whole number'
    """
    message = str(error).partition("\n")[0]
    quoted = error.__cause__ or error.__context__
    while quoted is not None:
        words = str(quoted).partition("\n")[0]
        if words and not _raised_here(quoted):
            message = message.partition(f": {words}")[0]
        quoted = quoted.__cause__ or quoted.__context__
    return message


def _raised_here(error: BaseException) -> bool:
    """Whether a `raise` of this repository made an error; otherwise a library or Python did."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals["__name__"]).partition(".")[0]
    statement = linecache.getline(frame.f_code.co_filename, line).lstrip()
    return package in PACKAGES and statement.startswith("raise")


def first_sentence(message: str) -> str:
    """Return a message up to its first full stop or semicolon.

    >>> first_sentence("data: train y has 0.5 in row 7 (1 of 60 values is wrong); classes are whole numbers")
    'data: train y has 0.5 in row 7 (1 of 60 values is wrong)'
    """
    return re.split(r"(?<=\w\w)[.;] |(?<=[)'\"])[.;] ", message)[0]
