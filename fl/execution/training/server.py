"""Training on the server's own rows by local steps: a pure function for `ServerWork`."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from fl.data.views import NO_ROWS, View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.models.binding import Initial
from fl.tasks.task import Task
from fl.tensors.params import Params

SERVER = -1  # in place of a client's id, in the addresses of random draws


def train_on_rows(
    trainer: LocalTraining,
    module: nn.Module,
    model: Params,
    frozen: Params,
    rows: Mapping[str, Tensor],
    task: Task,
    seed: int,
    round_: int,
    rounds: int,
) -> Params:
    """Return the model after the steps of `trainer` on `rows`. The rows are not augmented.

    Args:
        trainer: what a client would do; its update must have the group "model".
        module: the model's structure.
        model: its trained tensors.
        frozen: its other tensors.
        rows: arrays by name, (N, ...) each.
        task: the run's task.
        seed: seed of the run.
        round_: the round, from 0.
        rounds: number of rounds of the run.
    """
    ctx = ClientContext(
        client=SERVER,
        seed=seed,
        round=round_,
        rounds=rounds,
        participation=round_,
        received={"model": model},
        config={},
        state=None,
        train=View(rows, np.arange(len(rows["x"]))),
        val=NO_ROWS,
        test=NO_ROWS,
        initial=Initial(model, frozen),
        module=copy.deepcopy(module),
        task=task,
        training_loop=train,
    )
    return model + trainer.work("train", ctx, None).update.groups["model"]
