"""Client algorithms: what a client does with what it receives.

`ClientAlgorithm.work` is the whole seam. Nearly all methods are `LocalTraining`: gradient steps in phases, of which a method
gives only what differs, as functions of values:

    start(given)                  where training starts            default: the received model
    objective(net, batch, at)     per-sample loss                  default: the task's
    gradient(grad, params, at)    the gradient to step along       default: as it is
    finish(end)                   what is sent, what is kept       default: {"model": local minus start}, nothing

A client with something of its own (a head, half of an adapter) keeps it in its state and puts it back in `start`, which is
also what it predicts with.

The engine owns batching, masks, means, updates and the loop, and runs the same definition for one client or for many at
once; `Params` arithmetic and per-client numbers (a float, or a tensor (C,)) serve both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl.data.augment import Augment
from fl.data.views import Batch, View
from fl.method.messages import Update
from fl.method.optimiser import SGD, LRSchedule, Optimiser
from fl.models.binding import Initial, bind
from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.tasks.task import Task


@dataclass(frozen=True)
class ClientContext:
    """What a client knows: its data, what it received, its own state from last time (`None` the first time), and the model
    as the run began."""

    client: int
    seed: int
    round: int
    rounds: int
    participation: int  # the server's dispatch number, unique per exchange
    received: Mapping[str, Tree]
    config: Mapping[str, Any]
    state: Tree
    train: View
    val: View
    test: View
    initial: Initial
    module: torch.nn.Module
    task: Task
    augment: tuple[Augment, ...] = ()  # what changes training batches at random
    micro_batch: int | None = None  # samples that pass through the model at once, as the plan has it
    graphs: bool = False  # whether gradients are CUDA graphs
    limit: int | None = None  # maximum number of local steps; set when a deadline cuts training short
    training_loop: Callable[[LocalTraining, ClientContext], Reply] | None = None  # the engine's, of `LocalTraining`

    def net(self, params: Params) -> Callable[[Tensor], Tensor]:
        """The model under `params` (what they lack is as it was initially), for predictions: x -> outputs."""
        bind(self.module, params, self.initial)
        self.module.eval()
        return self.module

    def generator(self, purpose: str) -> torch.Generator:
        """A stream of this client, participation and purpose."""
        return random.torch_generator(self.seed, self.client, self.participation, purpose)


@dataclass(frozen=True)
class Reply:
    """What a client answers: the update to send, its new state and its carry to the round's next exchange
    (`None`: nothing new)."""

    update: Update
    state: Tree = None
    carry: Tree = None


class ClientAlgorithm:
    """Base of client algorithms: a frozen dataclass of hyper-parameters."""

    # groups of the update, and what of the broadcast (groups and config) they are made from: checked against the strategy
    sends: ClassVar[tuple[str, ...]] = ("model",)
    optional: ClassVar[tuple[str, ...]] = ()  # those of `sends` that some settings leave out
    receives: ClassVar[tuple[str, ...]] = ("model",)
    # of groups of the update, the group received that they are like: as large, and what `delta` sends the difference to
    delta_reference: ClassVar[Mapping[str, str]] = {}

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        raise NotImplementedError

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(local steps, samples) of clients with `sizes` (n,) training samples in the work `name`, (n,) each.

        Virtual time is made of them. A sample counts once for each gradient, that is each time it passes forward and
        backward; forward passes alone are not counted.
        """
        return np.ones_like(sizes), sizes

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        """(n,): those of the samples in `workload` that belong to no local step; a deadline does not cut them."""
        return np.zeros_like(sizes)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        """What this client predicts with, x -> outputs: the received model, unless it keeps something of its own.

        The server's evaluation asks a client without data and state."""
        return ctx.net(ctx.received["model"])

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        """The context as the client's own work leaves it, to predict with before anything is merged."""
        model = ctx.received["model"] + reply.update.groups["model"]
        state = ctx.state if reply.state is None else reply.state
        return replace(ctx, received={**ctx.received, "model": model}, state=state)


@dataclass(frozen=True)
class Phase:
    """A stretch of gradient steps with one setting.

    trains: glob patterns of parameter names (None: all); budget: `epochs` over the view, or `steps`. `lr` is the rate of all
    steps, unless `decay` gives each its own.
    """

    optimiser: Optimiser
    lr: float
    batch: int | Literal["full"]
    epochs: int = 1
    steps: int | None = None
    trains: tuple[str, ...] | None = None
    clip: float | None = None
    name: str = "train"
    decay: LRSchedule | None = None

    def at_rate(self, lr: float | LRSchedule, round_: int, rounds: int) -> Phase:
        """The phase with another learning rate."""
        if not isinstance(lr, LRSchedule):
            return replace(self, lr=float(lr), decay=None)
        return (
            replace(self, lr=lr.at(round_, rounds), decay=None)
            if lr.by == "round"
            else replace(self, lr=lr.start, decay=lr)
        )

    def num_steps(self, n: np.ndarray) -> np.ndarray:
        """Steps that clients with n samples take."""
        if self.steps is not None:
            return np.where(n > 0, self.steps, 0)
        size = np.maximum(n, 1) if self.batch == "full" else self.batch
        return self.epochs * -(-n // size)

    def num_samples(self, n: np.ndarray) -> np.ndarray:
        """Samples in all batches of clients with n samples; the last batch of an epoch may be short."""
        if self.steps is None:
            return self.epochs * n
        size = np.maximum(n, 1) if self.batch == "full" else self.batch
        epochs, rest = np.divmod(self.num_steps(n), np.maximum(-(-n // size), 1))
        return epochs * n + np.minimum(rest * size, n)

    def rate(self, t: int) -> float:
        """Of step t, from 0."""
        return self.lr if self.decay is None else self.decay.at(t)

    def lr_sum(self, steps: int | np.ndarray) -> Any:
        """The sum of the rates of so many steps."""
        if self.decay is None:
            return steps * self.lr
        rates = [0.0, *(self.decay.at(t) for t in range(int(np.max(steps))))]
        return np.cumsum(rates)[steps]


@dataclass(frozen=True)
class TrainingInputs:
    """What local training is given. Batched training puts an axis C in front of `state`'s leaves; the rest is shared."""

    received: Mapping[str, Tree]
    state: Tree
    config: Mapping[str, Any]
    initial: Initial


@dataclass(frozen=True)
class StepContext(TrainingInputs):
    """Where a hook is called from."""

    phase: Phase
    start: Params  # of what the phase trains, as the phase found it


@dataclass(frozen=True)
class TrainingResult(TrainingInputs):
    """The end of local training, for one client or, with numbers as tensors (C,), for C."""

    start: Params
    params: Params
    steps: int | Tensor
    lr_sum: float | Tensor  # sum of the learning rates of all steps
    num_examples: int | Tensor
    full_gradient: Callable[[Params], Params]  # mean gradient of the objective over the client's training data

    @property
    def delta(self) -> Params:
        """Local minus where it started."""
        return self.params - self.start


@dataclass(frozen=True, kw_only=True)
class LocalTraining(ClientAlgorithm):
    """Local gradient steps from the received model; see the module for what a method overrides.

    Budget: `epochs` over the local data in batches of `batch` ("full": all of it), or `steps` if given. `lr` is a number
    or a schedule over rounds or steps. `clip` bounds the norm of each step's gradient. `trains`: patterns of trained parameters.
    """

    epochs: int = 1
    steps: int | None = None
    batch: int | Literal["full"] = 32
    lr: float | LRSchedule = 0.1
    optimiser: Optimiser = field(default_factory=SGD)
    clip: float | None = None
    trains: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch", "clip"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ValueError(f"{name}: {value} is not positive")
        if isinstance(self.lr, (int, float)) and self.lr < 0:
            raise ValueError(f"lr: {self.lr} is negative")

    # -- what a method overrides ---------------------------------------------------------------------------------
    def first_state(self, given: TrainingInputs) -> Tree:
        """The state of a client that has none yet."""
        return None

    def start(self, given: TrainingInputs) -> Params:
        """Where local training starts, and what the client predicts with; the tensors that it lacks are the initial ones."""
        return given.received["model"]

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        phase = Phase(self.optimiser, 0.0, self.batch, self.epochs, self.steps, self.trains, self.clip)
        return (phase.at_rate(self.lr, round_, rounds),)

    def phases_of(self, given: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        """`phases`, for a method that has to see what is given to name the tensors that each trains."""
        return self.phases(round_, rounds)

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        """Per-sample loss (B,); `net` is the model under the parameters being trained."""
        return task.loss(net(batch["x"]), batch)

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        return grad

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        """(groups to send, state to keep)."""
        return {"model": end.delta}, None

    # -- what the engine provides --------------------------------------------------------------------------------
    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        """The engine's training loop over the hooks above."""
        if ctx.training_loop is None:
            raise ValueError(
                "training_loop: this context has none; make it with training_loop=fl.execution.training.loop.train"
            )
        return ctx.training_loop(self, ctx)

    def gradients_per_step(self) -> int:
        """Gradients that a local step takes of its batch, for `workload`."""
        return 1

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The steps and samples of all phases, times `gradients_per_step`, and `extra_samples`."""
        steps, samples = np.zeros_like(sizes), np.zeros_like(sizes)
        for phase in self.phases(round_, rounds):
            steps, samples = steps + phase.num_steps(sizes), samples + phase.num_samples(sizes)
        return steps, samples * self.gradients_per_step() + self.extra_samples(sizes, round_, rounds, name)

    def inputs(self, ctx: ClientContext) -> TrainingInputs:
        """What one client's training is given, a new client's first state included."""
        given = TrainingInputs(ctx.received, ctx.state, ctx.config, ctx.initial)
        return replace(given, state=self.first_state(given)) if ctx.state is None else given

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(self.start(self.inputs(ctx)))
