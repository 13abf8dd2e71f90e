"""Compiled local training of stacks of linear layers: the folder native/ behind the interface of `LinearStack`.

It covers training on a client's own samples by SGD (with momentum and weight decay) or Adam, with clipping and
penalties, also where weights do not move in some subspaces. Steps that a method takes itself run as programs if they
can be recorded (recorded_steps.py); else machine code computes their gradients. With a gradient hook or augmentation,
`LinearStack` trains.
"""

from __future__ import annotations

import functools
import importlib
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fl.execution.training.chunk import Asked, Chunk, PassesOfSome, Programs, Wanted, WholePhase, mask_words
from fl.execution.training.customised import overrides, takes_plain_steps
from fl.execution.training.kernels import LinearStack
from fl.execution.training.native import cache
from fl.execution.training.split import train_split
from fl.execution.workers.process import release_lock
from fl.method.client import ClientAlgorithm
from fl.method.hook_checks import names_in, names_of
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.optimiser import SGD, Adam
from fl.method.penalty import Penalty
from fl.method.phase import Phase
from fl.method.preparation import Preparation
from fl.method.training_values import StepContext
from fl.models.dropout import Dropout, share_of_zeros
from fl.models.normalise import FeatureNorm, SampleNorm
from fl.models.structure import structure
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.buffers import pooled_buffer
from fl.tensors.params import Layout, Params

if TYPE_CHECKING:
    from fl.execution.training.native.rules import Formulas

SHUFFLED = True  # benchmarks that need the same batches in two programs take samples in order
ACTIVATIONS = {nn.ReLU: "RELU", nn.Tanh: "TANH", nn.Sigmoid: "SIGMOID"}
NORMS = {FeatureNorm: "FEATURE", SampleNorm: "LAYER"}
SECONDS = {
    "clients": 30,
    "convolutions": 15,
    "fits": 10,
    "gradients": 5,
    "programs": 5,
    "split": 10,
    "squares": 5,
    "transformer": 10,
}  # to compile
GIVEN_RESULTS = ("finish", "metrics", "carry", "trainings")  # hooks that get a `TrainingResult`, with its `fisher`

_Arrays = tuple[np.ndarray, ...]
_NO_WEIGHTS, _NO_LABELS, _NO_WORDS = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.uint64)
NO_ROWS = np.empty((0, 0), np.float32)


class Compiled(LinearStack):
    """Trains whole phases, see `chunk.TrainsWholePhases`; other phases as `LinearStack`."""

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task) -> str | None:
        if reason := LinearStack.covers(algorithm, module, task):
            return reason
        obstacle = _split_obstacle if isinstance(algorithm, LossOfOutputs) else _obstacle
        return obstacle(algorithm, algorithm.phases(0, 1), module)

    @staticmethod
    def trains_whole(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
        """Whether the phases of this round can be compiled. `covers` looks at those of round 0."""
        if isinstance(algorithm, LossOfOutputs) and _split_obstacle(algorithm, phases, chunk.module):
            return False
        return not overrides(algorithm, "step") and _compiles(algorithm, chunk, phases)

    @staticmethod
    def formulas(
        whole: WholePhase, clients: int, penalty: Penalty | None, trained: Params, wanted: Sequence[Wanted]
    ) -> Formulas:
        from fl.execution.training.native import rules

        sources = rules.Sources(clients, whole.start, trained)
        return rules.Formulas(sources, rules.rule_of(whole.phase, penalty, whole.of_phase, sources), wanted)

    @staticmethod
    def train_whole(
        chunk: Chunk, whole: WholePhase, asked: Asked
    ) -> tuple[list[Params], np.ndarray, Tensor, np.ndarray]:
        phase, start = whole.phase, whole.start
        layers, (shares, masked) = layers_of(chunk.module, start.layout, whole.of_phase.layout), _shares(chunk.module)
        fixed = fixed_layers(chunk.module, start.layout, chunk.initial.trained, chunk.initial.frozen)
        if chunk.own_loss is not None:
            return train_split(chunk, whole, asked, layers, fixed)
        from fl.execution.training.native import clients, dropout, rules, steps  # one statement costs less than five

        x, y = chunk.arrays["x"], chunk.arrays["y"].numpy()
        sizes, batch = chunk.sizes.astype(np.int64, copy=False), 0 if phase.batch == "full" else phase.batch
        taken, loss, seen = phase.num_steps(sizes), np.zeros(len(sizes)), np.zeros(len(sizes), np.int64)
        formulas: Formulas = asked.formulas
        rule, outputs = formulas.rule(asked.part), formulas.outputs(len(sizes), asked)
        classes = int(layers[-1, 1])
        labels, targets = answers(chunk.task.kernel, y, classes)
        longest = int(sizes.max(initial=1))
        copies = len(sizes).bit_length() * formulas.summed + (0 if rule.optimiser == steps.PLAIN else rules.KEPT)
        longest = min(batch or longest, longest)
        protected = _protected(chunk.module, start.layout, whole.protected)
        length = _memory_length(chunk.module, start.layout, longest, copies, len(protected[1]) > 0)
        memory = thread_memory(length)
        start_rows, (word, address) = rules.rows(start), _shuffles(chunk.seed, chunk.participation, whole.index)
        with release_lock():
            wrong = clients.train_clients(
                clients.Start(start_rows, layers, fixed),
                clients.Samples(x.numpy().reshape(len(x), -1), labels, targets, chunk.rows, chunk.starts, sizes),
                clients.Steps(taken, rules.rates_of(phase, int(taken.max())), batch, phase.samples_per_epoch(sizes)),
                rule,
                clients.Shuffles(word, chunk.clients, address, SHUFFLED),
                dropout.Dropouts(shares, mask_words(chunk, whole.index) if masked else _NO_WORDS),
                clients.Protected(*protected),
                clients.Results(*outputs.plain, loss, seen),
                outputs.combined,
                memory,
            )
        check_labels(y, wrong, classes)
        return outputs.found, taken, torch.from_numpy(loss), seen

    @staticmethod
    def runs_programs(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
        """Whether there is one phase, with steps of the method's own, and these may be compiled."""
        return overrides(algorithm, "step") and len(phases) == 1 and _compiles(algorithm, chunk, phases)

    @staticmethod
    def run_programs(
        chunk: Chunk, phase: Phase, programs: Programs, layout: Layout, values: Tensor, others: Params
    ) -> tuple[Tensor, np.ndarray]:
        from fl.execution.training.native.programs import run_programs

        layers, x, y = layers_of(chunk.module, layout), chunk.arrays["x"], chunk.arrays["y"].numpy()
        fixed = fixed_layers(chunk.module, layout, others, chunk.initial.trained, chunk.initial.frozen)
        (shares, masked), kinds = _shares(chunk.module), programs.batches
        sizes, batch = chunk.sizes.astype(np.int64, copy=False), 0 if phase.batch == "full" else phase.batch
        loss, seen, outputs = np.zeros(len(sizes)), np.zeros(len(sizes), np.int64), int(layers[-1, 1])
        labels, targets = answers(chunk.task.kernel, y, outputs)
        address = (chunk.seed, chunk.clients, chunk.participation, "shuffle")
        words = np.stack([random.hash64_prefix(2, *address, number) for number in kinds], 1)
        drawn = np.stack([mask_words(chunk, number) for number in kinds], 1) if masked else _NO_WORDS.reshape(0, 0)
        longest = int(sizes.max(initial=1))
        longest = min(batch or longest, longest)
        memory = thread_memory(_memory_length(chunk.module, layout, longest, programs.slots - 1))
        with release_lock():
            wrong = run_programs(
                *(values.numpy(), layers, fixed),
                *(programs.firsts, programs.operations, programs.factors),
                *(x.flatten(1).numpy(), labels, targets, chunk.rows, chunk.starts, sizes),
                *(phase.num_steps(sizes), batch, phase.samples_per_epoch(sizes), words, SHUFFLED, shares, drawn),
                *(loss, seen, memory),
            )
        check_labels(y, wrong, outputs)
        return torch.from_numpy(loss), seen

    @staticmethod
    def mean_squares(chunk: Chunk, params: Params) -> Params | None:
        from fl.execution.training.native.memory import memory_length
        from fl.execution.training.native.rules import rows
        from fl.execution.training.native.squares import SAMPLES, mean_squares

        if module_obstacle(chunk.module) is not None:
            return None
        layers, x, y = layers_of(chunk.module, params.layout), chunk.arrays["x"], chunk.arrays["y"].numpy()
        fixed = fixed_layers(chunk.module, params.layout, chunk.initial.trained, chunk.initial.frozen)
        classes = int(layers[-1, 1])
        labels, targets = answers(chunk.task.kernel, y, classes)
        sizes = chunk.sizes.astype(np.int64, copy=False)
        length = params.layout.lengths[0]
        out = Params(params.layout, (pooled_buffer(len(sizes) * length).view(-1, length),))
        samples = (x.flatten(1).numpy(), labels, targets, chunk.rows, chunk.starts, sizes)
        memory = thread_memory(memory_length(layers, SAMPLES, 0))
        with release_lock():
            wrong = mean_squares(rows(params), layers, fixed, *samples, SAMPLES, out.buffers[0].numpy(), memory)
        check_labels(y, wrong, classes)
        return out

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        super().__init__(algorithm, chunk, local, theta, index)
        self.described, self.shares = layers_of(chunk.module, theta.layout), _shares(chunk.module)[0]
        self.own_steps = overrides(algorithm, "step") and module_obstacle(chunk.module) is None
        self.fixed = NO_ROWS
        if self.own_steps:
            rest = (local, chunk.initial.trained, chunk.initial.frozen)
            self.fixed = fixed_layers(chunk.module, theta.layout, *rest)
        self.lowest = int(self.described[:, 7].nonzero()[0][0])
        self.memory: dict[int, np.ndarray] = {}  # by the samples of a batch
        self.taken: tuple[Mapping[str, Tensor], _Arrays] | None = None  # the last batch, as arrays

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        """Write the gradients into `grad`; return the sum of each client's losses, then zeros, (A, B)."""
        if not self.own_steps:
            return super().__call__(params, batch, weights, masks, at, grad)
        from fl.execution.training.native.gradients import gradients

        losses, width = torch.empty(weights.shape), weights.shape[1]
        if width not in self.memory:
            from fl.execution.training.native.memory import memory_length

            self.memory[width] = torch.zeros(memory_length(self.described, width, 0, bool(masks))).numpy()
        if self.taken is None or self.taken[0] is not batch:
            self.taken = (batch, self._arrays(batch, weights, masks))
        at_params, out = params.buffers[0].numpy(), grad.buffers[0].numpy()
        with release_lock():
            wrong = gradients(
                *(at_params, self.described, self.fixed, *self.taken[1], self.lowest, 0),
                *(out, losses.numpy(), self.memory[width]),
            )
        check_labels(self.taken[1][1], wrong, self.described[-1, 1])
        return losses

    @staticmethod
    def preparation(chunk: Chunk, phase: Phase) -> Preparation | None:
        from fl.execution.training.prepared_chunk import ChunkPreparation

        complete = len(chunk.initial.trained) == len(structure(chunk.module).parameters)
        if not complete or module_obstacle(chunk.module) is not None or _shares(chunk.module)[1]:
            return None
        return ChunkPreparation(chunk, phase)

    @staticmethod
    def model_passes(
        chunk: Chunk, params: Params, x: Tensor, taken: np.ndarray, known: PassesOfSome | None
    ) -> tuple[Tensor, Tensor]:
        from fl.execution.training.native.memory import memory_length
        from fl.execution.training.native.rules import rows
        from fl.execution.training.native.split import PASS, model_passes

        layers, sizes = layers_of(chunk.module, params.layout), chunk.sizes
        fixed = fixed_layers(chunk.module, params.layout, chunk.initial.trained, chunk.initial.frozen)
        if known is None:
            outputs, features = (torch.empty(len(taken), int(layers[-1, side])) for side in (1, 0))
        else:
            outputs, features = (found.clone() for found in known[1:])
        starts, counts = np.cumsum(sizes) - sizes, sizes if known is None else np.where(known[0], 0, sizes)
        if not params.batch:  # one model passes the samples of all clients
            starts, counts = starts[:1], counts.sum(keepdims=True)
        memory, samples = thread_memory(memory_length(layers, PASS, 0)), x.flatten(1).numpy()
        arrays = (samples, taken, starts, counts, memory, outputs.numpy(), features.numpy())
        with release_lock():
            model_passes(rows(params), layers, fixed, *arrays)
        return outputs, features

    def _arrays(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor]) -> _Arrays:
        """Samples, labels, targets, weights and masks as machine code takes them."""
        x, y = (batch[name].reshape(weights.numel(), -1).numpy() for name in ("x", "y"))
        labels, targets = answers(self.kernel, y, int(self.described[-1, 1]))
        if not masks:
            return x, labels, targets, weights.contiguous().numpy(), np.zeros_like(self.shares), _NO_WEIGHTS[None, :0]
        factors = torch.cat([mask.reshape(weights.numel(), -1) for mask in masks], 1)
        return x, labels, targets, weights.contiguous().numpy(), self.shares, factors.numpy()


def answers(kernel: str | None, y: np.ndarray, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int64 (N,) and targets float32 (N, outputs) as machine code takes them; one of them is empty."""
    if kernel == "cross_entropy":
        return y.reshape(-1), _NO_WEIGHTS.reshape(0, outputs)
    return _NO_LABELS, y.reshape(-1, outputs)


def check_labels(labels: np.ndarray, wrong: int, classes: int) -> None:
    """Raise an error if machine code has found a wrong label.

    Raises:
        IndexError: `wrong`, the place of the wrong label, is not negative.
    """
    if wrong >= 0:
        raise IndexError(f"label {labels[wrong]} of sample {wrong} is not one of the model's {classes} classes")


@functools.lru_cache(maxsize=8)
def layers_of(module: nn.Module, layout: Layout, trained: Layout | None = None, lowest: int = 0) -> np.ndarray:
    """Return the layers as `native/memory.py` describes them, (L, 8).

    Args:
        module: the model.
        layout: the layout of rows of parameters. What it lacks is frozen.
        trained: the layout of the parameters among them that are trained. Default: all.
        lowest: the first of the model's linear layers that counts.
    """
    from fl.execution.training.native import norms, products
    from fl.execution.training.native.memory import BIAS, WEIGHTS, client_length

    rows: list[list[int]] = []
    learns = (layout if trained is None else trained).entries
    for name, child in module._modules.items():
        if isinstance(child, nn.Linear):
            if lowest:
                lowest -= 1
                continue
            weight, bias = (layout.entries.get(f"{name}.{tensor}") for tensor in ("weight", "bias"))
            offset = client_length(rows) if rows else 0
            places = [-1 if entry is None else entry.offset for entry in (weight, bias)]
            changes = WEIGHTS * (f"{name}.weight" in learns) + BIAS * (f"{name}.bias" in learns)
            rows.append([child.in_features, child.out_features, *places, 0, offset, 0, changes])
        elif rows and child is not None and type(child) in ACTIVATIONS:
            rows[-1][4] = getattr(products, ACTIVATIONS[type(child)])
        elif rows and child is not None and type(child) in NORMS:
            rows[-1][6] = getattr(norms, NORMS[type(child)])
    return np.array(rows, np.int64)


def _protected(module: nn.Module, layout: Layout, bases: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return `native.clients.Protected` from orthonormal columns (inputs, k) by the name of a layer's weights."""
    layers, found = layers_of(module, layout), list[np.ndarray]()
    if not bases:
        return np.zeros((len(layers), 2), np.int64), _NO_WEIGHTS
    from fl.execution.training.native.memory import padded, weights_length

    places, end = np.zeros((len(layers), 2), np.int64), 0
    linear = [name for name, child in module._modules.items() if isinstance(child, nn.Linear)]
    for place, name in zip(places, linear):
        basis = bases.get(f"{name}.weight")
        if basis is None or not basis.shape[1]:
            continue
        (n_in, k), wide = basis.shape, padded.py_func(basis.shape[0])
        columns = np.zeros(weights_length.py_func(n_in, k) + padded.py_func(k), np.float32)
        columns[: k * wide].reshape(k, wide)[:, :n_in] = basis.T.numpy()
        place[:] = end, k
        found.append(columns)
        end += len(columns)
    return places, np.concatenate(found) if found else _NO_WEIGHTS


def fixed_layers(module: nn.Module, layout: Layout, *sources: Params) -> np.ndarray:
    """Return padded layers with the tensors that a layout lacks, each from the first source that has it.

    They are float32 (1, length), or (C, length) if a source of C clients has some of them; (0, 0) if none is lacking.
    """
    places, length = _lacking(module, layout)
    if not places:
        return NO_ROWS
    found = [next(source for source in sources if name in source) for name in places]
    out = np.zeros((max((*source.batch, 1) for source in found)[0], length), np.float32)
    for source, (name, (place, shape)) in zip(found, places.items()):
        rows = out[:, place : place + math.prod(shape)].reshape(len(out), *shape)  # a view of rows that are contiguous
        rows[..., : source[name].shape[-1]] = source[name].numpy()
    return out


@functools.lru_cache(maxsize=8)
def _lacking(module: nn.Module, layout: Layout) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Return where tensors that a layout lacks lie in padded layers, their padded shapes, and the layers' length."""
    from fl.execution.training.native.memory import client_length, padded, weights_length

    layers, found = layers_of(module, layout), dict[str, tuple[int, tuple[int, ...]]]()
    linear = [(name, child) for name, child in module._modules.items() if isinstance(child, nn.Linear)]
    for (name, child), offset in zip(linear, layers[:, 5].tolist()):
        n_in, n_out = child.in_features, child.out_features
        after = offset + weights_length.py_func(n_in, n_out)
        found[f"{name}.weight"] = offset, (n_out, padded.py_func(n_in))
        if child.bias is not None:
            found[f"{name}.bias"] = after, (n_out,)
    return {name: place for name, place in found.items() if name not in layout.entries}, client_length(layers)


@functools.lru_cache(maxsize=8)
def _shares(module: nn.Module) -> tuple[np.ndarray, bool]:
    """The share of zeros that Dropout makes in the inputs of each linear layer, int64 (L,), and whether it makes any.

    See `share_of_zeros`.
    """
    found, share = [], 0
    for layer in module._modules.values():
        if isinstance(layer, Dropout):
            share = share or share_of_zeros(layer.p)
        elif isinstance(layer, nn.Linear):
            found.append(share)
            share = 0
    return np.array(found, np.int64), any(found)


@functools.lru_cache(maxsize=64)
def _memory_length(module: nn.Module, layout: Layout, longest: int, copies: int, protected: bool = False) -> int:
    """Elements of memory that machine code needs, see native/memory.py."""
    from fl.execution.training.native.memory import memory_length

    return memory_length(layers_of(module, layout), longest, copies, _shares(module)[1], protected)


@functools.lru_cache(maxsize=8)
def _shuffles(seed: int, participation: int, index: int) -> tuple[np.uint64, np.ndarray]:
    """The first word of the addresses of a phase's shuffles, and the parts after the client's id, uint64 (3,)."""
    address = np.array([random.as_word(part) for part in (participation, "shuffle", index)])
    word: Any = random.hash64_prefix(1 + len(address) + 2, seed)
    return word, address


class _Memory(threading.local):
    """Memory of one thread. Memory that each call took and freed would leave holes between what is kept."""

    array = np.empty(0, np.float32)


_memory = _Memory()


def thread_memory(elements: int) -> np.ndarray:
    """At least `elements` float32, aligned as tensors are; the same memory at every call of a thread."""
    if len(_memory.array) < elements:
        _memory.array = torch.empty(elements, dtype=torch.float32, device="cpu").numpy()
    return _memory.array


def machine_code(plan: str, memory_format: str, algorithm: ClientAlgorithm) -> tuple[str, ...]:
    """Return the modules of the folder native/ that the clients of an algorithm need in a plan and a memory format.

    Whether a method takes gradients or squares beside its training is read from the names in its code. Where a function
    outside its class takes them, their module is compiled when it is first needed.
    """
    if memory_format == "compiled":
        return ("convolutions",)
    if plan != "compiled":
        return ("transformer",) if plan == "fused" else ()
    assert isinstance(algorithm, LocalTraining)  # no other algorithm has this plan
    own_steps, kind = overrides(algorithm, "step"), type(algorithm)
    modules = ["split"] if isinstance(algorithm, LossOfOutputs) else ["programs"] if own_steps else ["clients"]
    if own_steps or any("LocalSteps" in names_in(cls) for cls in kind.__mro__ if cls not in LocalTraining.__mro__):
        modules.append("gradients")
    if any("fisher" in names_of(getattr(kind, hook)) for hook in GIVEN_RESULTS):
        modules.append("squares")
    if overrides(algorithm, "prepare_together"):
        modules += ["fits", "split"]
    return tuple(modules)


def seconds_to_compile(modules: Iterable[str]) -> int:
    """Return about how many seconds it takes to compile those modules that this machine has not compiled yet."""
    return sum(SECONDS[module] for module in modules if not cache.is_cached(module))


def load(modules: Iterable[str]) -> None:
    """Load machine code: half a second, or `SECONDS` for each module that has to be compiled first."""
    for module in modules:
        importlib.import_module(f"fl.execution.training.native.{module}")


def _compiles(algorithm: LocalTraining, chunk: Chunk, phases: Sequence[Phase]) -> bool:
    """Whether these phases can be compiled."""
    return not chunk.augment and _obstacle(algorithm, phases, chunk.module) is None


def _obstacle(algorithm: LocalTraining, phases: Sequence[Phase], module: nn.Module) -> str | None:
    """Why these phases of a stack of linear layers cannot be compiled, or `None`."""
    if any(phase.rates for phase in phases):
        return "parameters have different learning rates (rates)"
    if overrides(algorithm, "gradient"):
        return f"{type(algorithm).__name__} has its own gradient()"
    if overrides(algorithm, "protected") and any(overrides(algorithm, name) for name in ("penalty", "step")):
        return f"{type(algorithm).__name__} has protected() beside its own penalty() or step()"
    for phase in phases:
        if type(phase.optimiser) not in (SGD, Adam):
            return f"optimiser {type(phase.optimiser).__name__} is not compiled"
    if any(phase.last_batch in ("merge", "merge_one") for phase in phases):
        return "last batches are merged"
    return module_obstacle(module)


def _split_obstacle(algorithm: LocalTraining, phases: Sequence[Phase], module: nn.Module) -> str | None:
    """Why steps along losses of a method's own cannot be taken in machine code, or `None`."""
    plain = all(takes_plain_steps(algorithm, phase, None) for phase in phases)
    if not plain or overrides(algorithm, "penalty") or overrides(algorithm, "step"):
        return f"{type(algorithm).__name__} has its own loss, and its steps are not those of plain SGD"
    if _shares(module)[1]:
        return f"{type(algorithm).__name__} has its own loss, and the model has Dropout"
    return _obstacle(algorithm, phases, module)


@functools.lru_cache(maxsize=8)
def module_obstacle(module: nn.Module) -> str | None:
    """Why a stack of linear layers has no machine code, or `None`."""
    layers = [layer for layer in module._modules.values() if type(layer) is not nn.Flatten]
    kinds = [type(layer) for layer in layers if not (isinstance(layer, Dropout) and layer.p == 0)]
    for kind, following in zip(kinds, kinds[1:]):
        if kind in ACTIVATIONS and following in ACTIVATIONS:
            return "the model has two activations in a row"
        if kind in NORMS and following in (*ACTIVATIONS, *NORMS):
            return f"the model has a {following.__name__} after a {kind.__name__}"
        if issubclass(kind, Dropout) and following is not nn.Linear:
            return f"the model has a {following.__name__} after a Dropout"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "the model's parameters are not float32"
    return None
