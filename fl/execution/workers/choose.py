"""The executor that a configuration asks for."""

from __future__ import annotations

import torch

from fl.execution.section import Execution
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.limits import default_workers
from fl.execution.workers.ray import Ray


def new_executor(execution: Execution) -> Executor:
    """Make an executor. Without `execution.workers`, Ray has one worker per GPU, or per core (see limits.py)."""
    if execution.executor == "serial":
        return Serial(execution.workers)
    gpus = execution.device == "cuda"
    workers = execution.workers or (max(1, torch.cuda.device_count()) if gpus else default_workers())
    return Ray(workers, execution.address, gpus, execution.client_timeout)
