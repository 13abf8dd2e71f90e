"""The executor of a run: the one that a configuration asks for, or the one that `executor: auto` chooses.

    asked_for(execution)               -> Choice or None     before the set-up: Ray can begin to start
    choose(execution, plan, work, n)   -> Choice             once the plan is known
    new_executor(choice, execution)    -> Executor

The choice changes no bits. It follows from the plan, the machine and the settings, never from a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fl.execution.section import Execution
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.limits import cores, default_workers

RAY_START_SECONDS = 5  # Ray starts in less; a run that saves little more stays in this process
RAY_ROUND_SECONDS = 0.005  # to send a dispatch to worker processes and to read their partial results


@dataclass(frozen=True)
class Work:
    """An estimate of a run's training.

    Attributes:
        seconds: duration of all training on one core or GPU.
        rounds: number of rounds.
        parallel: number of clients that may train at the same time.
    """

    seconds: float
    rounds: int
    parallel: int

    def saved(self, workers: int) -> float:
        """Return the seconds that worker processes save, without Ray's start.

        >>> Work(seconds=100, rounds=1000, parallel=10).saved(2), Work(seconds=100, rounds=1000, parallel=1).saved(2)
        (45.0, -5.0)
        """
        return self.seconds * (1 - 1 / min(workers, self.parallel)) - self.rounds * RAY_ROUND_SECONDS


@dataclass(frozen=True)
class Choice:
    """An executor.

    Attributes:
        executor: "serial" or "ray".
        workers: number of worker processes; threads of compiled training with "serial".
        why: the reason.
    """

    executor: Literal["serial", "ray"]
    workers: int
    why: str

    def words(self, plan: str) -> str:
        """Describe the executor of a run with this plan in words.

        >>> Choice("serial", 2, "compiled training needs no processes").words("compiled")
        'in 2 threads of this process (compiled training needs no processes)'
        """
        if self.executor == "ray":
            place = f"on {self.workers} Ray worker{'s' * (self.workers > 1)}"
        elif plan == "compiled" and self.workers > 1:
            place = f"in {self.workers} threads of this process"
        else:
            place = "in this process"
        return f"{place} ({self.why})"


def asked_for(execution: Execution) -> Choice | None:
    """Return the executor if the settings alone decide it, or `None` if it depends on the plan."""
    if execution.executor == "serial":
        return Choice("serial", execution.workers or cores(), "execution.executor: serial")
    if execution.executor == "ray":
        return Choice("ray", worker_count(execution), "execution.executor: ray")
    for key in ("address", "client_timeout"):
        if getattr(execution, key) is not None:
            return Choice("ray", worker_count(execution), f"execution.{key} needs Ray")
    return None


def choose(execution: Execution, plan: str, work: Callable[[], Work], workers: Callable[[], int]) -> Choice:
    """Return the executor of a run whose plan is known.

    Args:
        execution: the section of the configuration.
        plan: how clients train.
        work: estimates the training; called if the answer depends on it.
        workers: returns the default number of worker processes on this machine; called if the answer depends on it.
    """
    asked = asked_for(execution)
    if asked is not None:
        return asked
    if plan == "compiled":
        return Choice("serial", execution.workers or cores(), "compiled training needs no processes")
    if execution.workers is not None:
        executor: Literal["serial", "ray"] = "ray" if execution.workers > 1 else "serial"
        return Choice(executor, execution.workers, f"execution.workers: {execution.workers}")
    count = workers()
    if count == 1:
        return Choice("serial", 1, f"one {'GPU' if execution.device == 'cuda' else 'core'}")
    saved = work().saved(count)
    if saved > RAY_START_SECONDS:
        return Choice("ray", count, f"saves about {_duration(saved)} of training")
    return Choice("serial", 1, "too little training for processes")


def _duration(seconds: float) -> str:
    """Return a number of seconds as text.

    >>> _duration(12.3), _duration(750), _duration(9000)
    ('12 s', '12 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def worker_count(execution: Execution) -> int:
    """Return the number of Ray workers: by default one per GPU, or per core (see limits.py)."""
    if execution.workers is not None:
        return execution.workers
    if execution.device == "cpu":
        return default_workers()
    import torch

    return max(1, torch.cuda.device_count())


def new_executor(choice: Choice, execution: Execution) -> Executor:
    """Make an executor."""
    if choice.executor == "serial":
        return Serial(choice.workers)
    from fl.execution.workers.gpus import GpuShares
    from fl.execution.workers.ray import Ray

    gpus = GpuShares() if execution.device == "cuda" else None
    return Ray(choice.workers, execution.address, gpus, execution.client_timeout)
