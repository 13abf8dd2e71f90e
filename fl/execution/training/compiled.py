"""Local training of a stack of linear layers, compiled: fl/execution/training/native.py behind the interface of `LinearStack`.

What is more than plain gradient descent on a client's own samples (hooks, momentum, clipping, Dropout, augmentation) is `LinearStack`'s.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from fl.execution.training.batched import Chunk
from fl.execution.training.kernels import LinearStack
from fl.execution.training.loop import descends_plainly
from fl.execution.workers.process import release_lock
from fl.method.client import LocalTraining, Phase
from fl.models.nn import Dropout
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import Layout, Params

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
        """Of what `covers`: a round's phases may differ from those of others."""
        alone = len(phases) == 1 and phases[0].trains is None and not chunk.augment
        return alone and _obstacle(algorithm, phases, chunk.module) is None

    @staticmethod
    def whole(
        chunk: Chunk, phase: Phase, start: Params, theta: Params, change: bool, factors: Tensor | None
    ) -> tuple[np.ndarray, Tensor, np.ndarray]:
        """Trains from `start` (C,), or one for all, into theta (C,): what comes of it or, if `change`, that less its start; with
        `factors` (C,) into theta, which has no axis, the sum of changes times them, as `Fold.stacked` adds. (steps taken, sum of
        losses, samples seen), each (C,)."""
        native, layers, (x, y) = load(), _layers(chunk.module, theta.layout), (chunk.arrays[name] for name in "xy")
        sizes, batch = chunk.sizes.astype(np.int64, copy=False), 0 if phase.batch == "full" else phase.batch
        taken, loss, seen = phase.num_steps(sizes), np.zeros(len(sizes)), np.zeros(len(sizes), np.int64)
        rates = np.array([phase.rate(step) for step in range(int(taken.max()))], np.float32)
        labelled, outputs, answers = chunk.task.kernel == "cross_entropy", layers[-1, 1], y.numpy()
        answers = (answers, NONE.reshape(0, outputs)) if labelled else (LABELS, answers.reshape(-1, outputs))
        address = np.array([random.as_word(part) for part in (chunk.participation, "shuffle", 0)])
        shuffles = random.hash64_prefix(1 + len(address) + 2, chunk.seed), chunk.clients, address, SHUFFLED
        first, last = (p.buffers[0].reshape(-1, p.layout.lengths[0]).numpy() for p in (start, theta))
        weights, longest = NONE if factors is None else factors.float().numpy(), int(sizes.max(initial=1))
        memory = scratch(native.room(layers, min(batch or longest, longest), len(weights).bit_length()))
        with release_lock():
            wrong = native.descend(
                *(last, weights, loss, seen, first, change, x.flatten(1).numpy(), *answers, layers, rates, batch),
                *(chunk.rows, chunk.starts, sizes, taken, *shuffles, memory),
            )
        if wrong >= 0:
            raise IndexError(f"label {y[wrong]} of sample {wrong} is none of the model's {outputs} classes")
        return taken, torch.from_numpy(loss), seen


@functools.lru_cache(maxsize=8)
def _layers(module: nn.Module, layout: Layout) -> np.ndarray:
    """(L, 6), as `native.descend` has it."""
    native, rows, entries = load(), [], layout.entries
    for name, child in module._modules.items():
        if isinstance(child, nn.Linear):
            weight, bias = entries[f"{name}.weight"], entries.get(f"{name}.bias")
            rows.append(
                [*weight.shape[::-1], weight.offset, bias.offset if bias else -1, 0, native.size(rows) if rows else 0]
            )
        elif type(child) in ACTIVATIONS:
            rows[-1][4] = getattr(native, ACTIVATIONS[type(child)])
    return np.array(rows, np.int64)


class _Memory(threading.local):
    """Of a thread. What the kernel took from the heap and gave back at every call would leave holes between what is kept."""

    tensor = torch.empty(0)


_memory = _Memory()


def scratch(elements: int) -> np.ndarray:
    """float32, at least so many, aligned as tensors are; the same memory at every call of a thread."""
    if len(_memory.tensor) < elements:
        _memory.tensor = torch.empty(elements)
    return _memory.tensor.numpy()


def before() -> bool:
    """Whether it has been compiled before, as far as the usual place of it tells."""
    return any((Path(__file__).parent / "__pycache__").glob("native.descend*.nbi"))


def load() -> ModuleType:
    """The machine code: half a second, and the first time on a machine some twenty, for those who need it."""
    try:
        from fl.execution.training import native
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        import numba

        # who may write neither beside the package nor at home compiles for all its processes until the machine is cleared; what
        # somebody else put there is not run
        folder = Path(tempfile.gettempdir()) / f"fl-machine-code-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        numba.config.CACHE_DIR = str(folder) if folder.lstat().st_uid == os.getuid() else tempfile.mkdtemp()
        from fl.execution.training import native
    return native


def _obstacle(algorithm: LocalTraining, phases: Sequence[Phase], module: nn.Module) -> str | None:
    """Why these phases of a stack of linear layers are not compiled, or `None`."""
    if not all(descends_plainly(algorithm, phase) for phase in phases):
        return f"{type(algorithm).__name__} takes steps that are more than w - lr g"
    return _unfit(module)


@functools.lru_cache(maxsize=8)
def _unfit(module: nn.Module) -> str | None:
    layers = list(module._modules.values())
    if any(isinstance(layer, Dropout) and layer.p > 0 for layer in layers):
        return "it has a Dropout layer"
    activations = [type(layer) in ACTIVATIONS for layer in layers if not isinstance(layer, Dropout)]
    if any(a and b for a, b in zip(activations, activations[1:])):
        return "it has two activations in a row"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "its parameters are not float32"
    return None
