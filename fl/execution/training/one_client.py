"""Gradients of one client in machine code, for steps that a method takes itself in `prepare` or `answer`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.compiled import answers, check_labels, layers_of, module_obstacle
from fl.execution.training.kernels import LinearStack
from fl.execution.workers.process import release_lock
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.models.structure import structure
from fl.tensors.params import Layout, Params

LEAST = 32  # samples that memory has room for, at least: a shorter last batch needs no memory of its own
_NO_MASKS = np.empty((1, 0), np.float32)


class _Part(NamedTuple):
    """Some of a model's tensors: the lowest layer among them, and where they are in a space's `whole` and `out`."""

    lowest: int
    whole: list[Tensor]
    out: list[Tensor]


@dataclass
class _Memory:
    """Memory of machine code for batches of `samples`, with zeros in the pads.

    holds: the values that the layers below the trained ones have.
    """

    array: np.ndarray
    samples: int
    holds: object = None


@dataclass
class _Space:
    """What the gradients of one model on one thread share.

    layers: see native/memory.py.
    numbers: the layer of each tensor.
    whole: all parameters, and `out` their gradient, where some of them are trained.
    others: identities and versions of what the parameters that are not trained come from.
    held: the objects with these identities, so that no others get them.
    key: stands for `others`.
    memories: by numbers of samples.
    parts: by the layouts of the trained parameters.
    """

    layout: Layout
    layers: np.ndarray
    numbers: Mapping[str, int]
    whole: Params
    out: Params
    others: list[int] = field(default_factory=list)
    held: tuple[Layout | Params, ...] = ()
    key: object = None
    memories: dict[int, _Memory] = field(default_factory=dict)
    parts: dict[Layout, _Part | None] = field(default_factory=dict)

    def part(self, layout: Layout) -> _Part | None:
        """Return where the tensors of a layout are; None if machine code cannot train them."""
        if layout not in self.parts:
            known = layout.dtypes == (torch.float32,) and self.numbers.keys() >= set(layout.entries)
            places = [[each[name] for name in layout.entries] for each in (self.whole, self.out)] if known else []
            self.parts[layout] = _Part(min(self.numbers[name] for name in layout.entries), *places) if known else None
        return self.parts[layout]

    def memory(self, count: int) -> _Memory:
        """Return memory for a batch of `count` samples."""
        from fl.execution.training.native.memory import memory_length

        samples = max(LEAST, 1 << (count - 1).bit_length())
        if samples not in self.memories:
            array = torch.zeros(memory_length(self.layers, samples, 0)).numpy()
            self.memories[samples] = _Memory(array, samples)
        return self.memories[samples]

    def complete(self, params: Params, part: _Part, others: Params | None, initial: Params) -> None:
        """Write all parameters to `whole`: `params`, else `others`, else the initial ones."""
        sources = (initial,) if others is None else (others, initial)
        now = [id(params.layout)]
        for source in sources:
            now += [id(source), *(buffer._version for buffer in source.buffers)]
        if now != self.others:
            self.others, self.held, self.key = now, (params.layout, *sources), object()
            self.whole.copy_(initial)
            if others is not None:
                self.whole.copy_(others, names=[name for name in others if name in self.numbers])
        torch._foreach_copy_(part.whole, [params[name] for name in params])


@functools.lru_cache(maxsize=4)
def _space(module: torch.nn.Module, layout: Layout, thread: int) -> _Space:
    linear = (name for name, child in module._modules.items() if isinstance(child, torch.nn.Linear))
    layers = {name: k for k, name in enumerate(linear)}
    numbers = {name: layers[name.rpartition(".")[0]] for name in layout.entries}
    return _Space(layout, layers_of(module, layout), numbers, layout.zeros(), layout.zeros())


class OneClient:
    """Gradients of the mean loss of a batch, without Dropout.

    Args:
        ctx: context of the client. All parameters of its model may be trained.
    """

    def __init__(self, ctx: ClientContext):
        self.initial, self.kernel = ctx.initial.trained, ctx.task.kernel
        self.space = _space(ctx.module, self.initial.layout, threading.get_ident())

    @staticmethod
    def of(algorithm: LocalTraining, ctx: ClientContext) -> OneClient | None:
        """Return the gradients of a client; None if machine code does not know the model or the objective."""
        if not ctx.machine_code or LinearStack.covers(algorithm, ctx.module, ctx.task, None):
            return None
        complete = len(ctx.initial.trained) == len(structure(ctx.module).parameters)
        return OneClient(ctx) if complete and module_obstacle(ctx.module) is None else None

    def gradient(
        self, params: Params, others: Params | None, batch: Mapping[str, Tensor]
    ) -> tuple[Params, Tensor] | None:
        """Return the gradient in `params` and the sum of the losses; None if machine code cannot compute them.

        Args:
            params: all parameters, or some of them.
            others: the rest; tensors missing from them have their initial values.
            batch: "x" and "y" of B samples.

        Raises:
            IndexError: a label is no class.
        """
        from fl.execution.training.native.gradients import gradients

        space, x, y = self.space, batch["x"], batch["y"].numpy()
        part, count = space.part(params.layout), len(x)
        if part is None or params.batch or not count or x.dtype != torch.float32:
            return None
        memory, written, layers = space.memory(count), 0, space.layers
        here, out, found = params, space.out, None
        if params.layout is space.layout:
            out = found = space.layout.empty()
            memory.holds = None
        else:
            space.complete(params, part, others, self.initial)
            here = space.whole
            written, memory.holds = part.lowest if memory.holds is space.key else 0, space.key
        labels, targets = answers(self.kernel, y, int(layers[-1, 1]))
        weights, losses = np.zeros((1, memory.samples), np.float32), np.empty((1, memory.samples), np.float32)
        weights[0, :count] = 1 / count
        lowest = 0 if found is not None else part.lowest
        with release_lock():
            wrong = gradients(
                *(here.buffers[0][None].numpy(), layers, x.reshape(count, -1).numpy(), labels),
                *(targets, weights, np.zeros(len(layers), np.int64), _NO_MASKS),
                *(lowest, written, out.buffers[0][None].numpy(), losses, memory.array),
            )
        check_labels(labels, wrong, layers[-1, 1])
        if found is None:
            found = params.layout.zeros()
            torch._foreach_copy_([found[name] for name in found], part.out)
        return found, torch.tensor(losses[0, 0])
