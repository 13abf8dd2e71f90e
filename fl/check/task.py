"""Laws of tasks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.check.finding import Broken, Law
from fl.check.model import reals
from fl.tasks.task import Metric, Task
from fl.tensors import random
from fl.tensors.trees import row

ROWS = 24


def _targets(task: Task) -> Iterator[tuple[dict[str, np.ndarray], tuple[int, ...]]]:
    """Targets of each kind by name, with the shape of a sample's outputs before their last axis."""
    words = random.hash64("targets", np.arange(ROWS * 6)).reshape(ROWS, 6)
    if heads := task.heads():
        yield {f"y_{name}": (words[:, 0] % np.uint64(count)).astype(np.int64) for name, count in heads.items()}, ()
        return
    for y, places in _labels(words):
        yield {"y": y}, places


def _labels(words: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    yield (words[:, 0] % np.uint64(5)).astype(np.int64), ()
    yield random.uniform("targets", np.arange(ROWS * 3)).astype(np.float32).reshape(ROWS, 3), ()
    yield (words[:, :4] % np.uint64(2)).astype(np.int64), ()
    yield (words % np.uint64(5)).astype(np.int64), (6,)


def _example(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """(outputs, batch) for the first kind of targets that the task accepts."""
    for targets, places in _targets(task):
        try:
            count = task.num_outputs(targets)
            outputs = 4 * reals(ROWS, *places, count) - 2
            batch = {"x": reals(ROWS, 3), **{name: torch.from_numpy(y) for name, y in targets.items()}}
            if task.loss(outputs, batch).shape == (ROWS,):
                return outputs, batch
        except (ValueError, RuntimeError, IndexError):
            continue
    raise Broken("it accepts neither classes, nor numbers, nor labels, nor tokens")


def each_sample_has_its_own_loss(task: Task) -> None:
    """The loss is one finite number per sample, independent of the batch, with a finite gradient that is not zero."""
    outputs, batch = _example(task)
    losses = task.loss(outputs.requires_grad_(), batch)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    if not (torch.isfinite(losses).all() and torch.isfinite(gradient).all() and gradient.abs().sum() > 0):
        raise Broken("losses or their gradient are not finite, or the gradient is zero")
    alone = torch.cat([task.loss(outputs[i : i + 1], {n: a[i : i + 1] for n, a in batch.items()}) for i in range(ROWS)])
    if float((losses - alone).detach().abs().max()) > 1e-5:
        raise Broken("a sample's loss changes with the other samples in the batch")


def merged_metrics_are_those_of_the_whole(task: Task) -> None:
    """Metrics of parts, merged in any order, equal the metrics of all samples."""
    outputs, batch = _example(task)
    group = torch.zeros(ROWS, dtype=torch.int64)  # all samples are of one client
    for name, metric in task.metrics().items():
        whole = _finished(metric, metric.measure(outputs, batch, group, 1))
        for cuts in ((0, 7, 8, ROWS), (0, 1, 20, ROWS)):
            parts = [
                metric.measure(outputs[a:b], {n: x[a:b] for n, x in batch.items()}, group[a:b], 1)
                for a, b in zip(cuts, cuts[1:])
            ]
            for order in (parts, parts[::-1]):
                found = _finished(metric, functools.reduce(metric.merge, order))
                if not math.isclose(found, whole, rel_tol=1e-9, abs_tol=1e-12):
                    raise Broken(f"{name} of three parts is {found}, of the whole {whole}")


def _finished(metric: Metric, accs: Any) -> float:
    """Return a metric of one client from its accumulators."""
    return metric.finish(row(accs, 0)) if metric.pools else float(metric.each(accs, 1)[0])


LAWS: list[Law] = [each_sample_has_its_own_loss, merged_metrics_are_those_of_the_whole]
