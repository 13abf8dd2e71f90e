"""Loop or batched: how a client algorithm is trained, a pure function of the model's structure, sizes and the
kind of device.

The choice changes last bits, so it is part of the resolved config: the same on every executor, machine count and load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fl.execution.section import Execution
from fl.execution.training import layout as layouts
from fl.execution.training.compiled import Compiled
from fl.execution.training.flat import Flat, saved_activations
from fl.execution.training.kernels import LinearStack
from fl.execution.training.layout import MemoryFormat
from fl.execution.training.loop import beyond_gradients, overrides
from fl.method.client import ClientAlgorithm, LocalTraining
from fl.tasks.task import Task
from fl.tensors.params import Params

Kind = Literal["loop", "compiled", "stacked", "flat", "vmap"]

# Parameters that are trained together: more amortise calls, fewer stay in cache. `fl bench` on 2 cores, MLP of 209,662, beside
# bare loops: chunks of 2, 4, 8 gave 0.9, 1.2, 1.4. Softmax regression of 610, thousands of clients per second and core in chunks of
# 64, 128, ..., 1024: 33, 52, 79, 109, 129 (experiments/benchmarks/README.md)
CHUNK_ELEMENTS = 1 << 21
MAX_CHUNK = 1024
# How much of a cohort one worker takes at once: see `_share`
SHARES = 16
PAID_ELEMENTS, PAID = 1 << 19, 8
WHOLE_ELEMENTS = 1 << 18

# Laid flat, what a forward pass keeps for the backward pass is the most of the memory, and larger chunks stop paying off at about
# 30 MB of it. Convolutions that keep much are bound by their products, which are not quicker in groups. Both from the table of
# `python -m experiments.benchmarks.together` (experiments/benchmarks/README.md)
KEPT_ELEMENTS = 1 << 23
MAX_FLAT = 16
KEPT_BY_CONVOLUTIONS = 1 << 14  # of a sample
# A GPU has room for more, and wants it. Not measured yet: `fl bench --device cuda` and `fl tune` do
GPU_CHUNK_ELEMENTS = 1 << 26
GPU_KEPT_ELEMENTS = 1 << 29
FULL_BATCH = 256  # samples that a batch of all data is taken for


@dataclass(frozen=True)
class Plan:
    """`kind` of training, clients per `chunk` (a power of two), `why` this kind, how images lie in memory in the loop."""

    kind: Kind
    chunk: int
    why: str
    layout: MemoryFormat = "contiguous"


def make_plan(
    algorithm: ClientAlgorithm,
    module: nn.Module,
    model: Params,
    task: Task,
    x: Tensor,
    execution: Execution,
    cohort: int | None = None,
    augmented: bool = False,
) -> Plan:
    """The plan for training `module` with `algorithm` on inputs like `x`, by cohorts of that size if it is known, on batches that are
    augmented or not; what `execution` asks for and cannot be is an error."""
    kind, chunk, layout, gpu = execution.plan, execution.chunk, execution.layout, execution.device == "cuda"
    loop_only, no_kernel, not_compiled = _why_loop(algorithm, module, execution), None, None
    if loop_only is None:
        trains = algorithm.phases(0, 1)[0].trains if len(algorithm.phases(0, 1)) == 1 else ()
        frozen = len(model) < sum(1 for _ in module.parameters())
        no_kernel = "some parameters are frozen" if frozen else LinearStack.covers(algorithm, module, task, trains)
        if execution.precision == "bf16":
            no_kernel = no_kernel or "its products are explicit, and bf16 comes by autocast"
        not_compiled = no_kernel or Compiled.covers(algorithm, module, task, trains)
        not_compiled = not_compiled or (
            "it is of CPUs" if gpu else "training batches are augmented" if augmented else None
        )
    if kind == "auto":
        if loop_only is None and not_compiled is None:
            kind, why = "compiled", "a stack of linear layers, and plain gradient steps"
        elif loop_only is None and no_kernel is None:
            kind, why = "stacked", f"a stack of linear layers, but {not_compiled}"
        else:
            obstacle = loop_only or Flat.covers(algorithm, module, task, x)
            obstacle = obstacle or (None if gpu else _why_not_flat(algorithm, module, model, x))
            kind, why = ("loop", obstacle) if obstacle else ("flat", f"{no_kernel}, but its layers can be laid flat")
    elif kind != "loop" and loop_only:
        raise ValueError(f"plan: {kind!r} is not possible: {loop_only}. Use 'loop' or 'auto'")
    elif kind == "compiled" and not_compiled:
        others = "'flat', 'vmap', 'loop' or 'auto'" if no_kernel else "'stacked', 'flat', 'vmap', 'loop' or 'auto'"
        raise ValueError(f"plan: 'compiled' is not possible: {not_compiled}. Use {others}")
    elif kind == "stacked" and no_kernel:
        raise ValueError(f"plan: 'stacked' is not possible: {no_kernel}. Use 'flat', 'vmap', 'loop' or 'auto'")
    elif kind == "flat" and (uncovered := Flat.covers(algorithm, module, task, x)):
        raise ValueError(f"plan: 'flat' is not possible: {uncovered}. Use 'vmap', 'loop' or 'auto'")
    else:
        why = "asked for"
    if chunk is None:
        most = _flat_chunk(algorithm, module, model, x, gpu) if kind == "flat" else _chunk(model, gpu)
        chunk = 1 if kind == "loop" else min(most, _share(model, cohort, gpu) if cohort else most)
    elif chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk: {chunk} is not a power of two")
    obstacle = layouts.unblockable(module, algorithm, execution.device) if layout == "blocked" else None
    if obstacle:
        raise ValueError(f"layout: 'blocked' is not possible: {obstacle}. Use 'contiguous' or 'channels_last'")
    if layout is None:
        layout = layouts.default(module, algorithm, execution.device) if kind == "loop" else "contiguous"
    asked = "micro_batch" if execution.micro_batch else "graphs" if execution.graphs else None
    if asked and kind == "loop" and (obstacle := _why_whole(algorithm, module, execution)):
        raise ValueError(f"{asked}: impossible: {obstacle}")
    return Plan(kind, chunk, why, layout)


def _chunk(model: Params, gpu: bool = False) -> int:
    """How many clients' parameters make a chunk."""
    return min(MAX_CHUNK, _power_of_two((GPU_CHUNK_ELEMENTS if gpu else CHUNK_ELEMENTS) // model.numel))


def _share(model: Params, cohort: int, gpu: bool = False) -> int:
    """The most of a cohort that one worker should take at once, however many there are: half of it, so that a second has work; where
    calls are paid for by fewer clients, as few as these or a sixteenth, so that sixteen have. What is done sooner than it is shared out
    stays whole."""
    half, sixteenth = (1 << (-(-cohort // n) - 1).bit_length() for n in (2, SHARES))  # rounded up
    paid = max(PAID, _power_of_two(PAID_ELEMENTS // model.numel))
    whole = _power_of_two(WHOLE_ELEMENTS // model.numel)
    return max(whole, half if gpu else min(half, max(sixteenth, paid)))


def _flat_chunk(algorithm: LocalTraining, module: nn.Module, model: Params, x: Tensor, gpu: bool = False) -> int:
    """How many clients laid flat make a chunk, by parameters and by what is kept of their batches."""
    batch = max(FULL_BATCH if phase.batch == "full" else phase.batch for phase in algorithm.phases(0, 1))
    room = (GPU_KEPT_ELEMENTS if gpu else KEPT_ELEMENTS) / (batch * max(saved_activations(module, x), 1))
    return min(MAX_CHUNK if gpu else MAX_FLAT, _chunk(model, gpu), _power_of_two(int(room)))


def _why_not_flat(algorithm: LocalTraining, module: nn.Module, model: Params, x: Tensor) -> str | None:
    """Why the loop is quicker than laying clients flat, or `None`."""
    if _flat_chunk(algorithm, module, model, x) == 1:
        return "two clients laid flat would take more memory than caches have"
    convolves = any(isinstance(child, nn.modules.conv._ConvNd) and _trains(child) for child in module.modules())
    if convolves and saved_activations(module, x) > KEPT_BY_CONVOLUTIONS:
        return "its convolutions are quicker one client at a time"
    return None


def _trains(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())


def _power_of_two(n: int) -> int:
    """The largest that is not above n, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


def _why_whole(algorithm: ClientAlgorithm, module: nn.Module, execution: Execution) -> str | None:
    """Why the loop's gradient cannot be taken in pieces, or recorded as a graph, if that is asked for; or `None`."""
    if why := beyond_gradients(algorithm):
        return why
    if any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()):
        return "BatchNorm takes statistics over the whole batch"
    phases = algorithm.phases(0, 1)
    if execution.graphs and (len(phases) > 1 or phases[0].trains is not None):
        return f"{type(algorithm).__name__} trains parts of the model at a time"
    return None


def _why_loop(algorithm: ClientAlgorithm, module: nn.Module, execution: Execution) -> str | None:
    """Why clients cannot be trained together, or `None`."""
    if execution.micro_batch or execution.graphs:
        return f"{'micro batches' if execution.micro_batch else 'CUDA graphs'} are of the loop"
    if not isinstance(algorithm, LocalTraining):
        return f"{type(algorithm).__name__} is not a LocalTraining"
    if overrides(algorithm, "work"):
        return f"{type(algorithm).__name__} has work of its own"
    if not algorithm.optimiser.batched:
        return f"optimiser {type(algorithm.optimiser).__name__} works on one client"
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            return f"{type(child).__name__} takes statistics over a client's own batch"
        if isinstance(child, nn.RNNBase):
            return f"{type(child).__name__} is one fused kernel, which takes one set of weights"
    return None
