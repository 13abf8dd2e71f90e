"""Client algorithms that train by gradient steps. A method overrides only the hooks that differ:

    extend(module, shape, outputs)      the model, with own parts       default: the model
    facts(view, task, outputs)          facts of a client's data        default: None
    prepare(ctx, inputs)                values found before training    default: None
    prepare_together(clients, inputs)   the same for C clients          default: none; `prepare` takes one by one
    first_state(inputs)                 state of a new client           default: None
    samples(ctx)                        samples to train on             default: the labelled rows
    start(inputs)                       initial local parameters        default: the received model
    phases(round, rounds)               budget and learning rate        default: one phase with the arguments
    objective(net, batch, at, task)     per-sample loss                 default: the task's loss
    penalty(at)                         quadratic penalty of a phase    default: None
    gradient(grad, params, at)          direction of a step             default: the gradient
    protected(at)                       where weights do not move       default: nowhere
    step_memory(at)                     what the steps of a phase keep  default: {}
    step(step)                          one local step                  default: one gradient, one step along it
    finish(end)                         (groups to send, new state)     default: {"model": local minus start}, None
    metrics(end)                        numbers beside the loss         default: {}
    carry(end)                          kept until the next exchange    default: None
    trainings(inputs)                   trainings, one after another    default: one; then `finish`

A client with private tensors, such as a head, keeps them in its state and inserts them in `start`. A method with
several gradients of a batch overrides `step`, and one that trains several models overrides `trainings`. An exchange
whose work is not "train" is answered by `answer`.

The engine owns batches, Dropout masks, means, updates and the loop. It runs the same hooks for one client or for C
clients at once: `Params` then hold C clients, and numbers per client are tensors (C,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import Tensor

from fl.checks import not_negative, one_of, positive, within
from fl.data.views import Batch, View
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.facts import data_facts, only_tensors
from fl.method.hook_checks import check_hooks
from fl.method.optimiser import SGD, LRSchedule, Optimiser
from fl.method.optimiser_memory import OptimiserState, require_memory
from fl.method.penalty import Penalty
from fl.method.phase import LastBatch, Phase, rate_at
from fl.method.preparation import Preparation
from fl.method.protected import protected_by
from fl.method.training_values import Step, StepContext, TrainingInputs, TrainingResult, Trainings
from fl.method.views import TrainingView
from fl.tensors import subspace
from fl.tensors.params import Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class LocalTraining(ClientAlgorithm):
    """Gradient steps from the received model. The module lists the hooks that a method overrides.

    Args:
        epochs: passes over the client's training data per round, positive. 0.5 takes half of the batches of an epoch,
            rounded to the nearest number (a half is rounded up), at least one. Default: 1 if `steps` is not given.
        steps: number of local steps per round, positive. Cannot be combined with `epochs`.
        batch: samples per step, positive; "full" takes all samples of the client.
        last_batch: what happens to the last batch of an epoch if it is shorter than `batch`. "keep": it is a batch.
            "drop": it is left out; a client with fewer samples than `batch` keeps its only batch. "merge": it joins
            the batch before it. "merge_one": as "merge" if it has one sample, else as "keep". Default: "merge_one" if
            the model cannot train on one sample alone (BatchNorm), else "keep".
        lr: learning rate, at least 0, or a schedule over rounds or steps.
        optimiser: the rule of a step.
        clip: largest Euclidean norm of a step's gradient, positive. Default: no clipping.
        trains: glob patterns of the names of trained parameters. Default: all.
        rates: glob pattern -> factor of the learning rate of the parameters whose names match, positive, such as
            {"head.*": 10.0}. A parameter may match one pattern. Default: 1 for all.
        optimiser_state: what happens to the optimiser's memory, such as velocities, between two local trainings.
            "reset": it is dropped. "kept": each client keeps its own as state. "averaged": the server averages it and
            sends it down, at the cost of bytes in both directions. Needs an optimiser with memory; trains in the loop.
    """

    epochs: int | float | None = None  # noqa: PYI041  # the configuration keeps 2 an int
    steps: int | None = None
    batch: int | Literal["full"] = 32
    lr: float | LRSchedule = 0.1
    optimiser: Optimiser = field(default_factory=SGD)
    clip: float | None = None
    trains: tuple[str, ...] | None = None
    last_batch: LastBatch | None = None
    rates: dict[str, float] | None = None
    optimiser_state: OptimiserState = "reset"

    def __post_init__(self) -> None:
        check_hooks(type(self), LocalTraining)
        positive(epochs=self.epochs, steps=self.steps, batch=self.batch, clip=self.clip)
        within("(0, inf)", epochs=self.epochs)
        one_of(get_args(LastBatch), last_batch=self.last_batch)
        one_of(get_args(OptimiserState), optimiser_state=self.optimiser_state)
        for pattern, factor in (self.rates or {}).items():
            positive(rates=factor, hint=f"it is the factor of {pattern!r}; `trains` leaves parameters out")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"steps: {self.steps} beside epochs: {self.epochs}; they are two budgets for the same training. "
                "Leave one out, or set it to null"
            )
        if not isinstance(self.lr, LRSchedule):  # a schedule checks itself
            not_negative(lr=self.lr)
        if self.optimiser_state != "reset":
            for name in ("work", "step", "trainings"):
                if getattr(type(self), name) is not getattr(LocalTraining, name):
                    hint = f"{type(self).__name__} has its own {name}()"
                    one_of(("reset",), optimiser_state=self.optimiser_state, hint=hint)
            require_memory(self)

    # -- hooks of a method ---------------------------------------------------------------------------------------
    @property
    def weight_view(self) -> TrainingView:
        """View whose rows are the client's `num_examples`, the weight of its update. Default: labelled rows.

        A method overrides it by a class attribute, or by a field that the user sets.
        """
        return "train"

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        """Return facts of a client's training data, such as class counts; hooks see them as `inputs.facts`.

        The engine calls it once for each client (and period of a stream) on each worker, so it must be pure. Leaves are
        tensors; clients that train together need the same shapes. `fl.class_counts` counts classes.

        Args:
            view: the client's training data; empty where the server predicts.
            task: the run's task.
            outputs: number of the model's outputs for a sample; for a classification, the number of classes.
        """
        return None

    def first_state(self, inputs: TrainingInputs) -> Tree:
        """Return the state of a client that has none yet."""
        return None

    def prepare(self, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
        """Return values that a client computes before training, such as its loss; hooks see them as `inputs.prepared`.

        It may take passes over the client's data and local steps of its own (`fl.LocalSteps` with `at=...`). The engine
        calls it for one client at a time, in every plan, and before predictions. `extra_samples` tells virtual time
        how many gradients it takes. Leaves are `Params` and tensors; clients that train together need the same shapes.

        Args:
            ctx: the client's data and what it received; for predictions of the server it has no data.
            inputs: the inputs of the training, without `prepared`.
        """
        return None

    def prepare_together(self, clients: Preparation, inputs: TrainingInputs) -> Tree:
        """Return what C clients prepare; each leaf has a leading axis C.

        A method that fits some tensors before training overrides it, and defines `prepare` as
        `return fl.prepare_alone(self, ctx, inputs)`. Then the plan `compiled` fits all clients that train together in
        one call of machine code, unless there is Dropout.

        Args:
            clients: their numbers of samples, and fits to their data.
            inputs: the inputs of the training, without `prepared`. States and facts have a leading axis C.
        """
        raise NotImplementedError

    def start(self, inputs: TrainingInputs) -> Params:
        """Return the parameters at the start of local training. The client also predicts with them.

        Tensors missing from them keep their initial values.
        """
        return inputs.received["model"]

    def samples(self, ctx: ClientContext) -> View:
        """Return the samples that the client trains on this time, as its view `train`. Default: `ctx.train`.

        A view of new arrays may have further samples, or further arrays beside "x" and "y". The number of its rows is
        the client's `num_examples`; `extra_samples` tells virtual time how many rows it has beyond `ctx.train`.
        """
        return ctx.train

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        """Return the phases of one round, in order.

        Args:
            round_: the round, from 0.
            rounds: number of rounds of the run.
        """
        lr, decay = rate_at(self.lr, round_, rounds)
        phase = Phase(
            self.optimiser,
            lr=lr,
            batch=self.batch,
            epochs=1 if self.epochs is None else self.epochs,
            steps=self.steps,
            trains=self.trains,
            clip=self.clip,
            decay=decay,
            last_batch=self.last_batch or "keep",
            rates=self.rates,
        )
        return (phase,)

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        """Return the phases, for a method that needs the inputs to name the trained tensors. Default: `phases`.

        Numbers of steps and samples must equal those of `phases`, because `workload` uses `phases`.
        """
        return self.phases(round_, rounds)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        """Return the loss of each sample, (B,). The engine takes the mean.

        If the class attribute `loss_over_batch` is True, it may return one loss of the whole batch, ().

        Args:
            net: the model under the parameters being trained. `net(x, *args, **kwargs)` returns what the model's
                `forward` returns; `net(x)` returns the outputs (B, ...) that evaluations use.
            batch: arrays of B samples by name.
            at: the phase and the inputs.
            task: the run's task.
        """
        return task.objective(net, batch)

    def penalty(self, at: StepContext) -> Penalty | None:
        """Return a quadratic penalty that is added to the objective of a phase, or None. Called once for each phase.

        Proximal terms, control variates and regularisation by diagonal weights are such penalties. Unlike `gradient`,
        a penalty keeps the compiled plan.

        Args:
            at: the phase, with its start, and the inputs. With C clients states and starts have a leading axis C.
        """
        return None

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        """Return the direction to step along, before clipping.

        Args:
            grad: gradient of the batch's mean objective and of the penalty. The engine overwrites its memory in the
                next step.
            params: the parameters that the phase trains.
            at: the phase and the inputs.
        """
        bases = protected_by(self, at)
        return grad.replace({name: subspace.project(grad[name], u) for name, u in bases.items()}) if bases else grad

    def protected(self, at: StepContext) -> Mapping[str, Tensor]:
        """Return the subspaces of inputs in which weights do not move, by the name of the weights.

        Each is a matrix U (d, k) of orthonormal columns, in the weights' type, where d is the number of a weight's
        inputs and k <= d; for a convolution the inputs are in the order of channel, kernel row, kernel column. The
        default of `gradient` takes the part in their span from the gradient: g <- g - (g U) U^T. Biases are free.
        Weight decay, and optimisers that rescale gradients (Adam), still move weights in these subspaces.

        Unlike `gradient`, `protected` keeps the compiled plan, if there is no own `penalty` and no own `step`. The
        subspaces are the same for all clients, and for all steps of a phase. Names of weights that the phase does not
        train are left out.

        Args:
            at: the phase, with its start, and the inputs.
        """
        return {}

    def step_memory(self, at: StepContext) -> Mapping[str, Tree]:
        """Return what the steps of a phase keep by name, such as a second model. Called once for each phase.

        The engine copies it, and `step` changes the copy in place. `finish` gets it as `end.memory`.

        Args:
            at: the phase, with its start, and the inputs. With C clients, tensors need a leading axis C, as those of
                `at.state` have it. `Params` without this axis are the same for all clients at first.
        """
        return {}

    def step(self, step: Step) -> None:
        """Take one local step: change `step.params` and `step.memory` in place.

        A method that takes several gradients of a batch, or moves several models at once, overrides it. The same code
        runs for one client and for C clients: numbers per client are tensors (C,).

        Args:
            step: gives gradients at any parameters, and takes steps of the optimiser.
        """
        step.descend(self.gradient(step.gradient(step.params), step.params, step.at))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        """Return (groups of the update, new state of the client). A state of None keeps the old one."""
        return {"model": end.delta}, None

    def metrics(self, end: TrainingResult) -> Mapping[str, float | Tensor]:
        """Return numbers that are reported beside the client's loss, by name; with C clients, tensors (C,).

        Args:
            end: the end of the first training.
        """
        return {}

    def carry(self, end: TrainingResult) -> Tree:
        """Return what the client keeps until the round's next exchange, where `answer` gets it; None keeps the old one.

        Args:
            end: the end of the first training.
        """
        return None

    def trainings(self, inputs: TrainingInputs) -> Trainings:
        """Train one model after another: yield the inputs of each training, and get its end.

        Returns what `finish` returns. The other hooks see the yielded inputs; `inputs.training` tells them which
        training it is. All trainings have the same budget, batches and Dropout masks. The client's loss is that of the
        first one.

        Args:
            inputs: those of the first training.
        """
        end = yield inputs
        return self.finish(end)

    def gradients_per_step(self) -> int:
        """Return the number of gradients per local step, for `workload`."""
        return 1

    def answer(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        """Answer an exchange whose work is not "train", such as a measurement. Default: local training.

        It runs for one client at a time, in every plan. The arguments are those of `work`.
        """
        return LocalTraining.work(self, "train", ctx, carry)  # not a work() of a subclass, which may have called this

    # -- what the engine calls -----------------------------------------------------------------------------------
    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        """Train if the exchange's work is "train"; pass other exchanges to `answer`.

        A method that overrides it trains one client at a time.

        Raises:
            ValueError: the context has no training loop.
        """
        if name != "train":
            return self.answer(name, ctx, carry)
        if ctx.training_loop is None:
            raise ValueError(
                "training_loop: this context has none; make it with training_loop=fl.execution.training.loop.train"
            )
        return ctx.training_loop(self, ctx)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (local steps, samples) of clients, (C,) each.

        The samples are those of all phases times `gradients_per_step`, plus `extra_samples`.
        """
        return self.workload_of_views(sizes, np.zeros_like(sizes), round_, rounds, name)

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return `workload` of clients with these numbers of training rows with and without labels, (C,) each."""
        steps, samples = np.zeros_like(labelled), np.zeros_like(labelled)
        for phase in self.phases(round_, rounds):
            n = phase.rows(labelled, unlabelled)
            taken = phase.num_steps(n)
            steps, samples = steps + taken, samples + phase.num_samples(n)
            if phase.beside:
                samples = samples + taken * phase.samples_beside(labelled, unlabelled)
        return steps, samples * self.gradients_per_step() + self.extra_samples(labelled, round_, rounds, name)

    def smallest_batches(self, sizes: np.ndarray, round_: int, rounds: int) -> np.ndarray:
        """Return the size of the smallest batch of clients with `sizes` (C,) training samples, (C,)."""
        phases = [phase for phase in self.phases(round_, rounds) if phase.view == "train"]
        return np.min([phase.smallest_batch(sizes) for phase in phases], 0) if phases else np.zeros_like(sizes)

    def inputs(self, ctx: ClientContext) -> TrainingInputs:
        """Return the inputs of one client's training, prepared, with the first state if the client is new."""
        facts = data_facts(self, ctx.train, ctx.task, ctx.module_facts.outputs) if ctx.facts is None else ctx.facts
        inputs = TrainingInputs(
            ctx.received,
            ctx.state,
            ctx.config,
            ctx.initial,
            facts=facts,
            module=ctx.module,
            round=ctx.round,
            rounds=ctx.rounds,
        )
        first = self.first_state(inputs) if ctx.state is None else None
        inputs = inputs if first is None else replace(inputs, state=first)
        prepared = only_tensors(self.prepare(ctx, inputs), "prepare", self)
        return inputs if prepared is None else replace(inputs, prepared=prepared)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        """Return the model at the start of local training, private tensors included."""
        return ctx.net(self.start(self.inputs(ctx)))
