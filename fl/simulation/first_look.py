"""Call the run's model with two samples of its data, before round 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl.config.config import Config
from fl.data.augment import augmented
from fl.data.dataset import Dataset, tensors
from fl.data.stream import Period
from fl.data.views import Batch, View
from fl.execution.training.customised import overrides
from fl.method.local_training import LocalTraining
from fl.models.outputs import check_outputs, has_logits, sum_of_outputs, with_logits
from fl.models.probe import ModuleFacts, probe


def first_look(
    config: Config, dataset: Dataset, periods: Sequence[Period], module: torch.nn.Module, wanted: int
) -> ModuleFacts:
    """Call the module with two samples, and return what it does (fl/models/probe.py).

    The loss is the task's. Clients with an own objective or with work other than gradient steps may use the outputs in
    another way, so only the passes themselves are looked at.

    Args:
        config: the configuration.
        dataset: all data.
        periods: the learning problems; the task of the first one gives the loss.
        module: the model. If it returns objects with `logits`, it returns these from now on.
        wanted: number of outputs per sample that the task needs.
    """
    client, task, partition = config.client, periods[0].task, periods[0].partition
    holder = int(np.argmax(np.diff(partition.offsets) > 1))
    rows = partition.view_rows(holder, "train")[:2]
    rows = np.resize(rows if len(rows) else np.arange(1), 2)
    batch = dict(View(tensors(dataset.train), rows).take())
    if config.data.augment:
        batch["x"] = augmented(config.data.augment, batch["x"], config.seed, holder, 0, 0, 0, np.arange(2))
    plain = isinstance(client, LocalTraining) and not overrides(client, "objective") and not overrides(client, "work")

    def losses(net: torch.nn.Module, batch: Batch) -> Tensor:
        outputs = net(batch["x"])
        if has_logits(outputs):
            with_logits(module)
            outputs = outputs.logits
        if not plain:
            return sum_of_outputs(outputs)
        check_outputs(outputs, wanted)
        return task.loss(outputs, batch)

    facts = probe(module, batch, losses)
    return facts if plain else replace(facts, unused=())
