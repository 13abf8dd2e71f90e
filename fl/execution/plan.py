"""Loop or batched: how a client algorithm is trained, a pure function of the model's structure and sizes.

The choice changes last bits, so it is part of the resolved config: the same on every executor, machine count and load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fl.client import ClientAlgorithm, LocalTraining
from fl.execution import layout as layouts
from fl.execution.kernels import LinearStack
from fl.execution.layout import Layout
from fl.execution.loop import overrides
from fl.params import Params
from fl.task import Task

Kind = Literal["loop", "stacked", "vmap"]

# Parameters that are trained together: more amortise calls, fewer stay in cache. `fl bench` on 2 cores, MLP of 209,662, beside
# bare loops: chunks of 2, 4, 8 gave 0.9, 1.2, 1.4; softmax regression of 610 is flat from 128 to 512
CHUNK_ELEMENTS = 1 << 21
MAX_CHUNK = 256


@dataclass(frozen=True)
class Plan:
    """`kind` of training, clients per `chunk` (a power of two), `why` this kind, how images lie in memory in the loop."""

    kind: Kind
    chunk: int
    why: str
    layout: Layout = "contiguous"


def make_plan(
    algorithm: ClientAlgorithm,
    module: nn.Module,
    model: Params,
    task: Task,
    kind: Kind | Literal["auto"],
    chunk: int | None,
    layout: Layout | None = None,
) -> Plan:
    """The plan for training `module` with `algorithm`; a kind asked for that cannot be is an error."""
    loop_only, no_kernel = _why_loop(algorithm, module), None
    if loop_only is None:
        trains = algorithm.phases(0, 1)[0].trains if len(algorithm.phases(0, 1)) == 1 else ()
        frozen = len(model) < sum(1 for _ in module.parameters())
        no_kernel = "some parameters are frozen" if frozen else LinearStack.covers(algorithm, module, task, trains)
    if kind == "auto":
        obstacle = loop_only or no_kernel
        kind, why = ("loop", obstacle) if obstacle else ("stacked", "a stack of linear layers")
    elif kind != "loop" and loop_only:
        raise ValueError(f"plan: {kind!r} is not possible: {loop_only}. Use 'loop' or 'auto'")
    elif kind == "stacked" and no_kernel:
        raise ValueError(f"plan: 'stacked' is not possible: {no_kernel}. Use 'vmap', 'loop' or 'auto'")
    else:
        why = "asked for"
    if chunk is None:
        room = max(1, CHUNK_ELEMENTS // model.numel)
        chunk = 1 if kind == "loop" else min(MAX_CHUNK, 1 << (room.bit_length() - 1))
    elif chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk: {chunk} is not a power of two")
    obstacle = layouts.unblockable(module, algorithm) if layout == "blocked" else None
    if obstacle:
        raise ValueError(f"layout: 'blocked' is not possible: {obstacle}. Use 'contiguous' or 'channels_last'")
    if layout is None:
        layout = layouts.default(module, algorithm, "cpu") if kind == "loop" else "contiguous"
    return Plan(kind, chunk, why, layout)


def _why_loop(algorithm: ClientAlgorithm, module: nn.Module) -> str | None:
    """Why clients cannot be trained together, or `None`."""
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
