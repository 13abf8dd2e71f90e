"""How the clients of a run are trained: one at a time in the loop, or many together.

The plan depends on the client algorithm, the model's structure and sizes, and the kind of device. It changes the last
bits of the results, so it is part of the resolved configuration: the same for every executor, number of machines and
load.

`CANDIDATES` lists the kinds of training in order of preference. `auto` takes the first one that is possible and not
slower than the loop; a kind that the configuration names only has to be possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from torch import Tensor, nn

from fl import registry
from fl.execution.section import Execution
from fl.execution.training.compiled import Compiled
from fl.execution.training.customised import custom_training, overrides
from fl.execution.training.flat import Flat, saved_activations
from fl.execution.training.fused import Fused
from fl.execution.training.kernels import LinearStack
from fl.execution.training.memory_format import MemoryFormat, fastest_format, format_obstacle
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.models.probe import ModuleFacts
from fl.tasks.task import Task
from fl.tensors.params import Params

Kind = Literal["loop", "fused", "compiled", "stacked", "flat", "vmap"]
Trial = Callable[[Kind], str | None]  # why clients that were trained in this way before round 0 did not agree, or None

# Parameters that are trained together: with more of them, calls cost less per client; with fewer, they stay in the
# cache. `fl bench` on 2 cores, MLP of 209,662 parameters, compared with bare loops: chunks of 2, 4, 8 gave 0.9, 1.2,
# 1.4. Softmax regression of 610 parameters, thousands of clients per second and core in chunks of 64, 128, ..., 1024:
# 33, 52, 79, 109, 129 (experiments/benchmarks/README.md)
CHUNK_ELEMENTS = 1 << 21
MAX_CHUNK = 1024
# The largest part of a cohort that one worker takes at once, see `_share`
SHARES = 16
AMORTISED_ELEMENTS, AMORTISED_CLIENTS = 1 << 19, 8
WHOLE_ELEMENTS = 1 << 18

# In flat training most of the memory holds activations for the backward pass. Chunks above about 60 MB of them gain
# little. Convolutions with many activations are limited by their products, which are not faster in groups. Both
# numbers come from the table of `python -m experiments.benchmarks.together` (experiments/benchmarks/README.md)
ACTIVATION_ELEMENTS = 1 << 24
MAX_FLAT_CHUNK = 16
CONVOLUTION_ACTIVATIONS = 1 << 14  # elements per sample
# A GPU has more memory and needs larger chunks. Not measured yet: `fl bench --device cuda` and `fl tune` measure it
GPU_CHUNK_ELEMENTS = 1 << 26
GPU_ACTIVATION_ELEMENTS = 1 << 29
ASKED_FOR = "asked for"  # why a plan that the configuration names is taken
ASSUMED_FULL_BATCH = 256  # samples that a batch of all data is assumed to have


@dataclass(frozen=True)
class Plan:
    """How clients are trained.

    Args:
        kind: loop, fused, compiled, stacked, flat or vmap.
        chunk: clients that a worker trains together, a power of two.
        why: the reason for this kind.
        memory_format: how images are stored in the loop.
    """

    kind: Kind
    chunk: int
    why: str
    memory_format: MemoryFormat = "contiguous"

    def in_loop(self, why: str, chunk: int = 1) -> Plan:
        """Return a plan for work that only the loop can do, with images in the same format."""
        return Plan("loop", chunk, why, self.memory_format)


@dataclass(frozen=True, eq=False)
class Setting:
    """What a plan depends on: everything that `make_plan` is given."""

    algorithm: ClientAlgorithm
    module: nn.Module
    model: Params
    task: Task
    x: Tensor
    execution: Execution
    augmented: bool
    facts: ModuleFacts
    trial: Trial | None
    views: str | None
    architectures: int = 1

    @property
    def gpu(self) -> bool:
        """Whether clients train on a GPU."""
        return self.execution.device == "cuda"

    @cached_property
    def together_obstacle(self) -> str | None:
        """Why clients cannot be trained together, or `None`."""
        algorithm, execution = self.algorithm, self.execution
        if self.architectures > 1:
            return f"clients have models of {self.architectures} architectures"
        if execution.micro_batch or execution.graphs:
            return f"{'micro batches' if execution.micro_batch else 'CUDA graphs'} exist in the loop only"
        if not isinstance(algorithm, LocalTraining):
            return f"{type(algorithm).__name__} is not a LocalTraining"
        if overrides(algorithm, "work"):
            return f"{type(algorithm).__name__} has its own work()"
        if overrides(algorithm, "samples") and registry.definer(type(algorithm), "samples") is not LossOfOutputs:
            return f"{type(algorithm).__name__} chooses its samples itself"
        if algorithm.weight_view != "train":
            return f"{type(algorithm).__name__} counts other rows than labelled ones"
        if self.views:
            return self.views
        for flag in ("one_at_a_time", "loss_over_batch"):
            if getattr(algorithm, flag):
                return f"{type(algorithm).__name__} sets {flag} = True"
        if algorithm.optimiser_state != "reset":
            return f"optimisers are {algorithm.optimiser_state} between rounds (optimiser_state) in the loop only"
        if not algorithm.optimiser.batched:
            return f"optimiser {type(algorithm.optimiser).__name__} trains one client only"
        if self.facts.one_at_a_time:
            return self.facts.one_at_a_time
        for child in self.module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                return f"{type(child).__name__} takes statistics over a client's own batch"
            if isinstance(child, nn.RNNBase):
                return f"{type(child).__name__} is one fused kernel, which takes one set of weights"
        return None

    @property
    def views_obstacle(self) -> str | None:
        """Why only vmap trains clients together, once `together_obstacle` is known to be `None`; else `None`."""
        views = any(phase.has_views for phase in self.training.phases(0, 1))
        return f"{type(self.algorithm).__name__} takes steps over several views" if views else None

    @property
    def training(self) -> LocalTraining:
        """The algorithm, once `together_obstacle` is known to be `None`."""
        assert isinstance(self.algorithm, LocalTraining)
        return self.algorithm

    @cached_property
    def fused_obstacle(self) -> str | None:
        """Why clients cannot be trained as transformers with adapters in machine code, or `None`."""
        if self.together_obstacle or self.views_obstacle:
            return self.together_obstacle or self.views_obstacle
        if obstacle := Fused.covers(self.training, self.module, self.task):
            return obstacle
        if self.gpu:
            return "machine code runs on CPUs only"
        return (
            "bf16 needs autocast, which does not apply to machine code" if self.execution.precision == "bf16" else None
        )

    @cached_property
    def stacked_obstacle(self) -> str | None:
        """Why clients cannot be trained as stacks of linear layers, or `None`."""
        if self.together_obstacle or self.views_obstacle:
            return self.together_obstacle or self.views_obstacle
        if obstacle := LinearStack.covers(self.training, self.module, self.task):
            return obstacle
        if isinstance(self.algorithm, LossOfOutputs) and self.augmented:
            return "training batches are augmented, so that reference models pass each batch"
        if self.execution.precision == "bf16":
            return "bf16 needs autocast, which does not apply to hand-written products"
        return None

    @cached_property
    def compiled_obstacle(self) -> str | None:
        """Why training cannot be compiled, or `None`."""
        if obstacle := self.stacked_obstacle:
            return obstacle
        if obstacle := Compiled.covers(self.training, self.module, self.task):
            return obstacle
        if self.gpu:
            return "machine code runs on CPUs only"
        return "training batches are augmented" if self.augmented else None

    @cached_property
    def flat_obstacle(self) -> str | None:
        """Why clients cannot be trained flat, or `None`."""
        if self.together_obstacle or self.views_obstacle:
            return self.together_obstacle or self.views_obstacle
        return Flat.covers(self.training, self.module, self.task, self.x)

    @cached_property
    def flat_drawback(self) -> str | None:
        """Why the loop is faster than flat training, or `None`."""
        if self.gpu:
            return None
        if self.flat_chunk() == 1:
            return "the activations of two clients would not fit in the caches"
        convolves = any(
            isinstance(child, nn.modules.conv._ConvNd) and _trains(child) for child in self.module.modules()
        )
        if convolves and saved_activations(self.module, self.x) > CONVOLUTION_ACTIVATIONS:
            return "its convolutions are faster one client at a time"
        return None

    def chunk(self) -> int:
        """Clients whose parameters make a chunk."""
        elements = GPU_CHUNK_ELEMENTS if self.gpu else CHUNK_ELEMENTS
        return min(MAX_CHUNK, _power_of_two(elements // self.model.numel))

    def flat_chunk(self) -> int:
        """Clients whose parameters and activations make a chunk of flat training."""
        phases = self.training.phases(0, 1)
        batch = max(ASSUMED_FULL_BATCH if phase.batch == "full" else phase.batch for phase in phases)
        elements = GPU_ACTIVATION_ELEMENTS if self.gpu else ACTIVATION_ELEMENTS
        room = elements / (batch * max(saved_activations(self.module, self.x), 1))
        return min(MAX_CHUNK if self.gpu else MAX_FLAT_CHUNK, self.chunk(), _power_of_two(int(room)))


@dataclass(frozen=True)
class Candidate:
    """One kind of training.

    obstacle: why it is impossible, or `None`.
    drawback: why `auto` passes over it although it is possible, or `None`.
    why: the reason that is printed when `auto` takes it, from the obstacle of the candidate before it.
    chunk: the largest number of clients that train together.
    """

    kind: Kind
    obstacle: Callable[[Setting], str | None]
    drawback: Callable[[Setting], str | None]
    why: Callable[[str], str]
    chunk: Callable[[Setting], int]

    def impossible(self, setting: Setting) -> str | None:
        """Why this kind is impossible, or `None`; the trial comes last, because it trains a few clients."""
        return self.obstacle(setting) or self._tried(setting)

    def rejected(self, setting: Setting) -> str | None:
        """Why `auto` does not take this kind, or `None`."""
        return self.obstacle(setting) or self.drawback(setting) or self._tried(setting)

    def _tried(self, setting: Setting) -> str | None:
        return setting.trial(self.kind) if setting.trial and self.kind != "loop" else None


CANDIDATES = (  # in order of preference
    Candidate(
        "fused",
        obstacle=lambda setting: setting.fused_obstacle,
        drawback=lambda setting: None,
        why=lambda before: "a transformer with adapters",
        chunk=Setting.chunk,
    ),
    Candidate(
        "compiled",
        obstacle=lambda setting: setting.compiled_obstacle,
        drawback=lambda setting: None,
        why=lambda before: "a stack of linear layers",
        chunk=Setting.chunk,
    ),
    Candidate(
        "stacked",
        obstacle=lambda setting: setting.stacked_obstacle,
        drawback=lambda setting: None,
        why=lambda before: f"a stack of linear layers, but {before}",
        chunk=Setting.chunk,
    ),
    Candidate(
        "flat",
        obstacle=lambda setting: setting.flat_obstacle,
        drawback=lambda setting: setting.flat_drawback,
        why=lambda before: f"{before}, but its layers can be stacked",
        chunk=Setting.flat_chunk,
    ),
    Candidate(
        "loop",
        obstacle=lambda setting: None,
        drawback=lambda setting: None,
        why=lambda before: before,
        chunk=lambda setting: 1,
    ),
    Candidate(
        "vmap",
        obstacle=lambda setting: setting.together_obstacle,
        drawback=lambda setting: "the loop is faster",
        why=lambda before: before,
        chunk=Setting.chunk,
    ),
)


def make_plan(
    algorithm: ClientAlgorithm,
    module: nn.Module,
    model: Params,
    task: Task,
    x: Tensor,
    execution: Execution,
    cohort: int | None = None,
    augmented: bool = False,
    facts: ModuleFacts = ModuleFacts(),
    trial: Trial | None = None,
    views: str | None = None,
    architectures: int = 1,
) -> Plan:
    """The plan for training `module` with `algorithm`. Something impossible that `execution` asks for is a ValueError.

    Args:
        algorithm: the client algorithm.
        module: the model.
        model: its trained parameters.
        task: the task; hand-written kernels know some losses.
        x: some inputs, at least two samples.
        execution: the section of the configuration.
        cohort: clients of a round, if known; a cohort is divided among workers.
        augmented: whether training batches are augmented.
        facts: what the module does beside computing outputs.
        trial: tells whether clients that train together end as those that train alone, for a user's own code.
        views: why steps over several views cannot be taken for many clients together, or `None`.
        architectures: number of architectures in the run; `module` is one of them.
    """
    setting = Setting(algorithm, module, model, task, x, execution, augmented, facts, trial, views, architectures)
    candidate, why = _preferred(setting) if execution.plan == "auto" else _asked_for(setting, execution.plan)
    chunk = execution.chunk
    if chunk is None:
        chunk = candidate.chunk(setting)
        if candidate.kind != "loop" and cohort:
            chunk = min(chunk, _share(model, cohort, setting.gpu))
    elif chunk < 1 or chunk & (chunk - 1):
        raise ValueError(f"chunk: {chunk} is not a power of two")
    memory_format = _memory_format(setting, candidate.kind)
    asked = "micro_batch" if execution.micro_batch else "graphs" if execution.graphs else None
    if asked and candidate.kind == "loop" and (obstacle := _pieces_obstacle(setting)):
        raise ValueError(f"{asked}: not possible: {obstacle}")
    return Plan(candidate.kind, chunk, why, memory_format)


def _preferred(setting: Setting) -> tuple[Candidate, str]:
    """The first candidate that nothing speaks against, and the reason for it."""
    before = ""
    for candidate in CANDIDATES:
        reason = candidate.rejected(setting)
        if reason is None:
            return candidate, candidate.why(before)
        before = reason
    raise AssertionError("the loop is always possible")


def _asked_for(setting: Setting, kind: str) -> tuple[Candidate, str]:
    """The candidate of this kind; an error that lists the other kinds if it is impossible."""
    candidate = next(candidate for candidate in CANDIDATES if candidate.kind == kind)
    if obstacle := candidate.impossible(setting):
        others = [repr(other.kind) for other in CANDIDATES if other.impossible(setting) is None]
        raise ValueError(f"plan: {kind!r} is not possible: {obstacle}. Use {', '.join(others)} or 'auto'")
    return candidate, ASKED_FOR


def _memory_format(setting: Setting, kind: Kind) -> MemoryFormat:
    """How images are stored in the loop: as asked for, else in the fastest format. Other plans have no formats."""
    execution, asked = setting.execution, setting.execution.memory_format
    about = setting.module, execution.device, execution.precision
    if asked and (obstacle := format_obstacle(asked, *about)):
        others = [fmt for fmt in get_args(MemoryFormat) if not format_obstacle(fmt, *about)]
        raise ValueError(f"memory_format: {asked!r} is not possible: {obstacle}. Use {' or '.join(map(repr, others))}")
    if kind == "loop":
        return fastest_format(*about) if asked is None else asked
    if asked not in (None, "contiguous"):
        why = f"images are stored so in the loop only, and the plan is {kind!r}"
        raise ValueError(f"memory_format: {asked!r} is not possible: {why}. Use 'contiguous', or plan 'loop'")
    return "contiguous"


def _pieces_obstacle(setting: Setting) -> str | None:
    """Why the loop cannot split a batch's gradient into micro batches or record it as a CUDA graph, or `None`."""
    algorithm = setting.algorithm
    if reason := custom_training(algorithm):
        return reason
    if any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in setting.module.modules()):
        return "BatchNorm takes statistics over the whole batch"
    if setting.execution.graphs and setting.facts.one_at_a_time:
        return setting.facts.one_at_a_time
    phases = setting.training.phases(0, 1)
    if setting.execution.graphs and (len(phases) > 1 or phases[0].trains is not None):
        return f"{type(algorithm).__name__} trains parts of the model one after another"
    return None


def _share(model: Params, cohort: int, gpu: bool = False) -> int:
    """The largest part of a cohort that one worker takes at once, whatever the number of workers.

    At most half of the cohort, so that a second worker has something to do. On a CPU, chunks that are large enough to
    make calls cheap may be as small as a sixteenth of the cohort, so that sixteen workers have something to do. A
    cohort that is trained faster than it is distributed stays together.
    """
    half, sixteenth = (1 << (-(-cohort // n) - 1).bit_length() for n in (2, SHARES))  # rounded up
    amortised = max(AMORTISED_CLIENTS, _power_of_two(AMORTISED_ELEMENTS // model.numel))
    whole = _power_of_two(WHOLE_ELEMENTS // model.numel)
    return max(whole, half if gpu else min(half, max(sixteenth, amortised)))


def _trains(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters())


def _power_of_two(n: int) -> int:
    """The largest power of two that is at most n; at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)
