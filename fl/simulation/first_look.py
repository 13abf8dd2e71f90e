"""Call the run's model with samples of its data, before round 0."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fl.config.config import Config
from fl.data.augment import augmented
from fl.data.dataset import Dataset, tensors
from fl.data.stream import Period
from fl.data.temporary import converted, is_temporary
from fl.data.views import Batch, View
from fl.errors import ConfigError
from fl.execution.training.customised import overrides
from fl.method.local_training import LocalTraining
from fl.models.outputs import check_outputs, check_tensor, has_logits, sum_of_outputs, with_logits
from fl.models.probe import ModuleFacts, ProbeFailed, probe
from fl.simulation.inputs import require_known_numbers, whole
from fl.tensors.generators import preserved_generators

log = logging.getLogger(__name__)


def first_look(
    config: Config, dataset: Dataset, periods: Sequence[Period], module: torch.nn.Module, wanted: int
) -> tuple[ModuleFacts, Dataset]:
    """Call the module with two samples. Return what it does (fl/models/probe.py), and the data as it takes them.

    Whole numbers in `x` become float32 if the module takes them only so. If `x` holds whole numbers, the module is
    called with the smallest and the largest ones, too, which may be ids that it does not know.

    The loss is the task's. Clients with an own objective or with work other than gradient steps may use the outputs in
    another way, so only the passes themselves are looked at, and that `net(x)` returns one tensor in evaluations.

    Args:
        config: the configuration.
        dataset: all data.
        periods: the learning problems; the task of the first one gives the loss.
        module: the model. If it returns objects with `logits`, it returns these from now on.
        wanted: number of outputs per sample that the task needs.

    Raises:
        ConfigError: numbers in `x` do not fit the module.
        ProbeFailed: the module fails for another reason.
        OutputsDoNotFit: the outputs do not fit the task.
    """
    client, task, partition = config.client, periods[0].task, periods[0].partition
    holder = int(np.argmax(np.minimum(partition.train_slices()[1], 2)))
    rows = partition.view_rows(holder, "train")[:2]
    rows = np.resize(rows if len(rows) else np.arange(1), 2)
    widths = [0]
    plain = isinstance(client, LocalTraining) and not overrides(client, "objective") and not overrides(client, "work")
    predicts = isinstance(client, LocalTraining) and not overrides(client, "predictor")

    def losses(net: torch.nn.Module, batch: Batch) -> Tensor:
        outputs = net(batch["x"])
        if has_logits(outputs):
            with_logits(module)
            outputs = outputs.logits
        if not net.training and isinstance(outputs, Tensor) and outputs.ndim > 1:
            widths.append(outputs.shape[-1])
        if not plain:
            if not net.training and predicts:
                check_tensor(outputs)
            return sum_of_outputs(outputs)
        check_outputs(outputs, wanted)
        return task.loss(outputs, batch)

    def look(convert: Callable[[Tensor], Tensor]) -> ModuleFacts:
        batch = dict(View(tensors(dataset.train), rows).take())
        batch["x"] = convert(batch["x"])
        if config.data.augment:
            batch["x"] = augmented(config.data.augment, batch["x"], config.seed, holder, 0, 0, 0, np.arange(2))
        return probe(module, batch, losses)

    sample = np.asarray(dataset.train["x"][rows[0]])
    try:
        facts = look(lambda x: x)
    except ProbeFailed as failure:
        if sample.dtype.kind == "f":
            _check_numbers(config, dataset, module, sample)
            raise
        try:
            facts = look(Tensor.float)
        except ProbeFailed as second:
            _check_numbers(config, dataset, module, sample)
            if not sample.ndim:
                x = dataset.train["x"]
                problem = f"x {x.dtype} {x.shape} is one number per row, which the model does not take"
                raise ConfigError("data", f"{problem}; make it (rows, 1)") from failure
            raise (failure if isinstance(failure.__cause__, IndexError) else second) from None
        dataset = _as_real_numbers(dataset)
    _check_numbers(config, dataset, module, np.asarray(dataset.train["x"][rows[0]]))
    facts = replace(facts, outputs=widths[-1])
    return replace(facts, dropout_idle=False) if plain else replace(facts, unused=()), dataset


def _as_real_numbers(dataset: Dataset) -> Dataset:
    """Return the data set with `x` in float32. A user's mapped features are refused, because they would be copied."""
    x = dataset.train["x"]
    maps = [arrays["x"] for arrays in dataset.parts().values() if isinstance(arrays["x"], np.memmap)]
    if not all(map(is_temporary, maps)):
        raise ConfigError(
            "data", f"x is {x.dtype}, and the model takes float32; mapped features are not converted: save float32"
        )
    log.warning("data: x is %s; it is converted to float32 for this model, without scaling", x.dtype)
    dataset = replace(dataset, parties=tuple(converted(x, np.float32) for x in dataset.parties))
    return dataset.mapped(lambda part, arrays: arrays | {"x": converted(arrays["x"], np.float32)})


def _check_numbers(config: Config, dataset: Dataset, module: torch.nn.Module, sample: np.ndarray) -> None:
    """Require that the module takes the smallest and the largest whole numbers of `x`."""
    if not whole(sample):
        return
    copied, failures = copy.deepcopy(module).eval(), list[Exception]()

    def takes(x: np.ndarray) -> bool:
        try:
            with torch.no_grad():
                copied(torch.from_numpy(x))
        except Exception as error:  # whatever a user's module raises for an id that it does not know
            failures.append(error)
            return False
        return True

    def hint() -> str:
        larger = (
            "set a larger model.vocabulary"
            if hasattr(config.model.part, "vocabulary")
            else "give the model a larger embedding"
        )
        return f"{type(failures[-1]).__name__}: {failures[-1]}); number ids from 0, or {larger}"

    with preserved_generators():
        try:
            require_known_numbers(dataset, sample, takes, hint)
        except ValueError as error:
            raise ConfigError("data", str(error)) from error
