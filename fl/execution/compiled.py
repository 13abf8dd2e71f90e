"""Local training of a stack of linear layers, compiled: fl/execution/native.py behind the interface of `LinearStack`.

What is more than plain gradient descent on a client's own samples (hooks, momentum, clipping, Dropout, augmentation) is `LinearStack`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from fl import random
from fl.client import LocalTraining, Phase
from fl.execution.batched import Chunk
from fl.execution.kernels import LinearStack
from fl.execution.loop import descends_plainly
from fl.execution.process import aside
from fl.nn import Dropout
from fl.params import Params
from fl.task import Task

SHUFFLED = True  # benchmarks that compare batches alike take them in order
NONE, LABELS = np.empty(0, np.float32), np.empty(0, np.int64)
ACTIVATIONS = {nn.ReLU: "RELU", nn.Tanh: "TANH", nn.Sigmoid: "SIGMOID"}


class Compiled(LinearStack):
    """Takes phases that are plain as a `whole`; see the module and `batched.Gradients`."""

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task, trains: object) -> str | None:
        """`None` if a client's training is compiled as a rule, else why not."""
        if why := LinearStack.covers(algorithm, module, task, trains):
            return why
        return _obstacle(algorithm, algorithm.phases(0, 1), module)

    @staticmethod
    def takes_whole(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
        return not chunk.augment and _obstacle(algorithm, phases, chunk.module) is None

    def whole(
        self,
        chunk: Chunk,
        phase: Phase,
        index: int,
        theta: Params,
        start: Params,
        change: bool,
        taken: np.ndarray,
        loss: Tensor,
        seen: np.ndarray,
    ) -> None:
        """Trains from `start` (C,), or one for all, into theta (C,) by `taken` (C,) steps; if `change`, theta is less its start. Adds to
        loss (C,) and seen (C,)."""
        native = load()
        sizes = chunk.sizes.astype(np.int64, copy=False)
        batches = np.maximum(sizes, 1) if phase.batch == "full" else np.full_like(sizes, phase.batch)
        rates = np.array([phase.rate(step) for step in range(int(taken.max()))], np.float32)
        layers = self._layers(theta, native)
        x, y, outputs = chunk.arrays["x"].flatten(1).numpy(), chunk.arrays["y"].numpy(), layers[-1, 1]
        answers = (y, NONE.reshape(0, outputs)) if self.kernel == "cross_entropy" else (LABELS, y.reshape(-1, outputs))
        words = random.unfinished(2, chunk.seed, chunk.clients, chunk.participation, "shuffle", index)
        clients = (chunk.starts, sizes, batches, taken, words)
        first = start.buffers[0].reshape(-1, start.layout.lengths[0])
        trained = theta.buffers[0].numpy(), loss.numpy(), first.numpy(), change
        with aside():
            wrong = native.descend(*trained, x, *answers, layers, rates, chunk.rows, *clients, SHUFFLED)
        if wrong >= 0:
            raise IndexError(f"label {y[wrong]} of sample {wrong} is none of the model's {outputs} classes")
        of_epoch = np.maximum(-(-sizes // batches), 1)
        seen += taken // of_epoch * sizes + np.minimum(taken % of_epoch * batches, sizes)

    def _layers(self, theta: Params, native) -> np.ndarray:
        """(L, 5), as `native.descend` has it."""
        entries, rows = theta.layout.entries, []
        for layer in self.layers:
            weight, bias = entries[layer.weight], -1 if layer.bias is None else entries[layer.bias].offset
            codes = [getattr(native, ACTIVATIONS[type(after)]) for after in layer.after if type(after) in ACTIVATIONS]
            rows.append((weight.shape[1], weight.shape[0], weight.offset, bias, codes[0] if codes else 0))
        return np.array(rows, np.int64)


def load() -> ModuleType:
    """The machine code: half a second, and the first time on a machine some twenty, for those who need it."""
    from fl.execution import native

    return native


def _obstacle(algorithm: LocalTraining, phases: Sequence[Phase], module: nn.Module) -> str | None:
    """Why these phases of a stack of linear layers are not compiled, or `None`."""
    if not all(descends_plainly(algorithm, phase) for phase in phases):
        return f"{type(algorithm).__name__} takes steps that are more than w - lr g"
    layers = list(module._modules.values())
    if any(isinstance(layer, Dropout) and layer.p > 0 for layer in layers):
        return "it has a Dropout layer"
    activations = [type(layer) in ACTIVATIONS for layer in layers if not isinstance(layer, Dropout)]
    if any(a and b for a, b in zip(activations, activations[1:])):
        return "it has two activations in a row"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "its parameters are not float32"
    return None
