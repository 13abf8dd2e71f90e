"""Gradients of one client in machine code, for steps that a method takes itself in `prepare` or `answer`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fl.execution.training.compiled import answers, check_labels, layers_of, module_obstacle
from fl.execution.training.kernels import LinearStack
from fl.execution.workers.process import release_lock
from fl.method.context import ClientContext
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.models.structure import structure
from fl.tensors.params import Layout, Params

LEAST = 32  # samples that memory has room for, at least: a shorter last batch needs no memory of its own
_NO_MASKS, _NO_ROWS = np.empty((1, 0), np.float32), np.empty((0, 0), np.float32)


class _Part(NamedTuple):
    """Some of a model's tensors: the lowest layer among them, and where they and the rest are in a space."""

    lowest: int
    whole: list[Tensor]
    out: list[Tensor]
    rest: dict[str, Tensor]


@dataclass
class _Memory:
    """Memory of machine code for batches of `samples`, with zeros in the pads.

    holds: stands for the values that the layers below the trained ones have there, see `_Space.key`.
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
    trained: the layout of the parameters that were trained last.
    source: what the others came from, and `exchange` of `complete`.
    key: stands for the values of those that were not.
    memories: by numbers of samples.
    parts: by the layouts of the trained parameters.
    """

    layout: Layout
    layers: np.ndarray
    numbers: Mapping[str, int]
    whole: Params
    out: Params
    trained: Layout | None = None
    source: tuple[Params | None, int | None] = (None, None)
    key: object = None
    memories: dict[int, _Memory] = field(default_factory=dict)
    parts: dict[Layout, _Part | None] = field(default_factory=dict)

    def part(self, layout: Layout) -> _Part | None:
        """Return where the tensors of a layout are; None if machine code cannot train them."""
        if layout not in self.parts:
            known = layout.dtypes == (torch.float32,) and all(
                name in self.numbers and entry.shape == self.layout.entries[name].shape
                for name, entry in layout.entries.items()
            )
            self.parts[layout] = self._part(layout) if known else None
        return self.parts[layout]

    def _part(self, layout: Layout) -> _Part:
        whole, out = ([each[name] for name in layout.entries] for each in (self.whole, self.out))
        rest = {name: tensor for name, tensor in self.whole.items() if name not in layout.entries}
        return _Part(min(self.numbers[name] for name in layout.entries), whole, out, rest)

    def memory(self, count: int) -> _Memory:
        """Return memory for a batch of `count` samples."""
        from fl.execution.training.native.memory import memory_length

        samples = max(LEAST, 1 << (count - 1).bit_length())
        if samples not in self.memories:
            array = torch.zeros(memory_length(self.layers, samples, 0)).numpy()
            self.memories[samples] = _Memory(array, samples)
        return self.memories[samples]

    def complete(
        self, params: Params, part: _Part, others: Params | None, initial: Params, exchange: int | None
    ) -> bool:
        """Write all parameters to `whole`: `params`, else `others`, else the initial ones. False: they do not fit.

        `exchange`: number of the exchange in which nothing changes `others`; None: they may change at any time.
        """
        if exchange is not None and self.trained is params.layout and self.source[0] is others:
            if self.source[1] == exchange:
                torch._foreach_copy_(part.whole, [params[name] for name in params])
                return True
        rest = [(initial if others is None or name not in others else others)[name] for name in part.rest]
        here = [*part.rest.values()]
        if any(old.dtype != new.dtype or old.shape != new.shape for old, new in zip(here, rest)):
            return False
        # compared by their values: a write to the tensors of a bound module does not change the version of the params
        if self.trained is not params.layout or not all(map(torch.equal, here, rest)):
            self.trained, self.key = params.layout, object()
            torch._foreach_copy_(here, rest)
        self.source = others, exchange
        torch._foreach_copy_(part.whole, [params[name] for name in params])
        return True


@functools.lru_cache(maxsize=4)
def _space(module: nn.Module, layout: Layout, thread: int) -> _Space:
    linear = (name for name, child in module._modules.items() if isinstance(child, nn.Linear))
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
        self.received, self.participation = [*ctx.received.values()], ctx.participation
        self.flattens = type(next(iter(ctx.module.children()))) is nn.Flatten
        self.space = _space(ctx.module, self.initial.layout, threading.get_ident())

    @staticmethod
    def of(algorithm: LocalTraining, ctx: ClientContext) -> OneClient | None:
        """Return the gradients of a client; None if machine code does not know the model or the objective."""
        own_loss = isinstance(algorithm, LossOfOutputs)
        if not ctx.machine_code or own_loss or LinearStack.covers(algorithm, ctx.module, ctx.task):
            return None
        complete = len(ctx.initial.trained) == len(structure(ctx.module).parameters)
        return OneClient(ctx) if complete and module_obstacle(ctx.module) is None else None

    def gradient(
        self, params: Params, others: Params | None, batch: Mapping[str, Tensor]
    ) -> tuple[Params, Tensor] | None:
        """Return the gradient in `params` and the sum of the losses; None where autograd has to, or to refuse.

        Args:
            params: all parameters, or some of them.
            others: the rest; tensors missing from them have their initial values.
            batch: "x" and "y" of B samples.

        Raises:
            IndexError: a label is no class.
        """
        from fl.execution.training.native.gradients import gradients

        space, x, y = self.space, batch["x"], batch["y"]
        part, count = space.part(params.layout), len(x)
        if part is None or params.batch or not self._fits(x, y):
            return None
        memory, written, layers = space.memory(count), 0, space.layers
        here, out, found = params, space.out, None
        if params.layout is space.layout:
            out = found = space.layout.empty()
            memory.holds = None
        else:
            shared = any(others is group for group in self.received)  # clients that write into it are refused
            exchange = self.participation if shared else None
            if not space.complete(params, part, others, self.initial, exchange):
                return None
            here = space.whole
            written, memory.holds = part.lowest if memory.holds is space.key else 0, space.key
        labels, targets = answers(self.kernel, y.contiguous().numpy(), int(layers[-1, 1]))
        weights, losses = np.zeros((1, memory.samples), np.float32), np.empty((1, memory.samples), np.float32)
        weights[0, :count] = 1 / count
        lowest = 0 if found is not None else part.lowest
        with release_lock():
            wrong = gradients(
                *(here.buffers[0][None].numpy(), layers, _NO_ROWS, x.reshape(count, -1).contiguous().numpy(), labels),
                *(targets, weights, np.zeros(len(layers), np.int64), _NO_MASKS),
                *(lowest, written, out.buffers[0][None].numpy(), losses, memory.array),
            )
        check_labels(labels, wrong, layers[-1, 1])
        if found is None:
            found = params.layout.zeros()
            torch._foreach_copy_([found[name] for name in found], part.out)
        return found, torch.tensor(losses[0, 0])

    def _fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether machine code knows batches of this form: float32 (B, ...); labels from 0 on, or targets (B, K)."""
        inputs, outputs, count = int(self.space.layers[0, 0]), int(self.space.layers[-1, 1]), len(x)
        if not count or x.dtype != torch.float32 or x.requires_grad or x[0].numel() != inputs:
            return False
        if x.ndim != 2 and not self.flattens:
            return False
        if self.kernel == "cross_entropy":
            return y.dtype == torch.int64 and y.shape == (count,) and not bool((y < 0).any())
        return y.dtype == torch.float32 and y.shape == (count, outputs) and not y.requires_grad
