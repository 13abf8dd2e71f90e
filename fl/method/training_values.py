"""What the hooks of `LocalTraining` get: inputs, the context of a step, a step, and the end of training."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias

from torch import Tensor, nn

from fl.method.phase import Phase
from fl.models.binding import Initial, outputs_under
from fl.models.probe import ModuleFacts
from fl.tensors.params import Params
from fl.tensors.trees import Tree, row


@dataclass(frozen=True)
class TrainingInputs:
    """What local training starts from.

    Attributes:
        received: groups of the broadcast by name, the same for all clients that train together.
        state: the client's state; with C clients each leaf has a leading axis C.
        config: values of the broadcast's `config`.
        initial: the model's tensors at the start of the run.
        facts: what `LocalTraining.facts` returned for the client's training data; with C clients each leaf has a
            leading axis C.
        prepared: what `LocalTraining.prepare` returned, likewise.
        round: the round, from 0.
        rounds: number of rounds of the run.
        training: name of the training, for methods with several of them, see `LocalTraining.trainings`.
        module: the model; its tensors are not those of the client.
    """

    received: Mapping[str, Tree]
    state: Tree
    config: Mapping[str, Any]
    initial: Initial
    facts: Tree = field(default=None, kw_only=True)
    prepared: Tree = field(default=None, kw_only=True)
    round: int = field(default=0, kw_only=True)
    rounds: int = field(default=1, kw_only=True)
    training: str = field(default="train", kw_only=True)
    module: nn.Module | None = field(default=None, kw_only=True)

    def row(self, clients: slice | Tensor) -> Self:
        """Return the inputs of some of the clients that train together."""
        state, facts, prepared = (row(tree, clients) for tree in (self.state, self.facts, self.prepared))
        return replace(self, state=state, facts=facts, prepared=prepared)


@dataclass(frozen=True)
class StepContext(TrainingInputs):
    """What the hooks of a step know besides the batch.

    Attributes:
        phase: the current phase.
        start: the parameters that the phase trains, as they were at its start.
        module_facts: what the model does beside computing outputs.
    """

    phase: Phase
    start: Params
    module_facts: ModuleFacts = field(default=ModuleFacts(), kw_only=True)

    def row(self, clients: slice | Tensor) -> Self:
        start = self.start.row(clients) if self.start.batch else self.start
        return replace(super().row(clients), start=start)

    def under(self, params: Params, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the model's outputs for x under other parameters, in evaluation mode and without gradients.

        Evaluation mode means: no Dropout. An objective may call it in every plan. The training goes on with its own
        parameters and mode.

        Args:
            params: for example `at.received["model"]`, or an old model in `at.state`. Tensors missing from them keep
                their initial values. In the hook `gradient` they may hold C clients, (C, ...); then x is the same for
                all clients, and each output has a leading axis C.
            x: inputs (B, ...).
            args: further arguments of the model's `forward`.
            kwargs: further keyword arguments of the model's `forward`.
        """
        if self.module is None:
            raise ValueError("module: this context has none; make it with module=...")
        if self.module_facts.writes_parameters:  # such a pass must not change what was received
            params = params.clone()
        return outputs_under(self.module, params, self.initial, (x, *args), kwargs)


@dataclass(frozen=True)
class TrainingResult(TrainingInputs):
    """The end of local training of one client; with C clients each number is a tensor (C,).

    Attributes:
        start: the local parameters before the first step.
        params: the local parameters after the last step.
        steps: number of steps.
        lr_sum: sum of the learning rates of all steps, without the factors of `Phase.rates`.
        num_examples: number of training samples of the client.
        full_gradient: function of parameters; mean gradient of the objective over the client's training data.
        fisher: function of parameters; the diagonal of the empirical Fisher information over the client's training
            data, see `fl.fisher`.
        memory: what `step_memory` returned, as the steps of the last phase left it.
    """

    start: Params
    params: Params
    steps: int | Tensor
    lr_sum: float | Tensor
    num_examples: int | Tensor
    full_gradient: Callable[[Params], Params]
    fisher: Callable[[Params], Params]
    memory: Mapping[str, Tree] = field(default_factory=dict)

    @property
    def delta(self) -> Params:
        """The local parameters minus `start`."""
        return self.params - self.start


Trainings: TypeAlias = Generator[TrainingInputs, TrainingResult, tuple[Mapping[str, Tree], Tree]]


class Step(Protocol):
    """One local step, which `LocalTraining.step` takes. With C clients it is the step of those that still train.

    Attributes:
        params: the parameters that the phase trains. They change in place (`descend`, `add_`, `sub_`, `mul_`,
            `copy_`); assigning them is an AttributeError.
        memory: what `step_memory` returned, as the step before left it. Its entries change in place; assigning one is
            a TypeError.
        at: the phase and the inputs.
        t: number of the step in its phase, from 0.
        rate: learning rate of the step.
    """

    @property
    def params(self) -> Params:
        """The parameters that the phase trains."""

    memory: Mapping[str, Tree]
    at: StepContext
    t: int
    rate: float

    def gradient(self, params: Params, batch: int = 0) -> Params:
        """Return the gradient of a batch's mean objective and of the penalty at `params`.

        The result may be changed in place. The engine overwrites its memory in the next step.

        Args:
            params: parameters with the tensors of `self.params`.
            batch: 0 is the batch of FedAvg's step. Each other number is the batch of a shuffle of its own, with its own
                Dropout masks and augmentation. All gradients of one batch have the same masks. Steps may use
                it or not. The client's loss is that of the first gradient of batch 0.
        """

    def descend(self, gradient: Params, name: str | None = None, rate: float | None = None) -> None:
        """Clip a gradient and take the optimiser's step along it, in place.

        Args:
            gradient: the direction.
            name: entry of `memory` to change, which holds `Params`. None changes `self.params`. Each of them has its
                own memory of the optimiser.
            rate: learning rate. Default: `self.rate`.
        """
