"""What a client algorithm gets (`ClientContext`) and returns (`Reply`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fl.data.augment import Augment
from fl.data.views import NO_ROWS, View
from fl.method.messages import Update
from fl.models.binding import Initial, bind
from fl.models.probe import ModuleFacts
from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.method.local_training import LocalTraining
    from fl.tasks.task import Task


@dataclass(frozen=True)
class ClientContext:
    """What a client knows in one exchange: its data, the broadcast, its own state and the initial model.

    Attributes:
        client: the client's id.
        seed: seed of the run.
        round: the round, from 0.
        rounds: number of rounds of the run.
        participation: number of the exchange in the run, unique; part of the address of random draws.
        received: groups of the broadcast by name, decoded.
        config: values of the broadcast's `config` for this client.
        state: the client's state from its last participation; None before the first.
        train: the client's training rows; with `labels:` those that have labels.
        val: its validation rows.
        test: its test rows.
        initial: the model's tensors at the start of the run.
        module: the model; `net` binds parameters to it.
        task: the loss and the metrics.
        augment: random changes of training batches.
        strong: the chain `data.strong`, for methods that change samples in two ways.
        micro_batch: most samples in one forward pass; None does not split batches.
        graphs: whether gradients are recorded as CUDA graphs.
        machine_code: whether machine code computes gradients of `fl.LocalSteps` where it can: the plan is `compiled`.
        limit: maximum number of local steps; set when a deadline cuts training short.
        module_facts: what the module does beside computing outputs.
        facts: what `LocalTraining.facts` returned for the training rows; None if nobody has asked for them yet.
        unlabelled: the client's training rows without labels, without the array "y".
        optimiser: memory of the client's optimisers by phase, for `optimiser_state: kept`; None if there is none.
        training_loop: the engine's loop for `LocalTraining`, such as `fl.execution.training.loop.train`.
    """

    client: int
    seed: int
    round: int
    rounds: int
    participation: int
    received: Mapping[str, Tree]
    config: Mapping[str, Any]
    state: Tree
    train: View
    val: View
    test: View
    initial: Initial
    module: torch.nn.Module
    task: Task
    augment: tuple[Augment, ...] = ()
    micro_batch: int | None = None
    graphs: bool = False
    machine_code: bool = False
    limit: int | None = None
    module_facts: ModuleFacts = ModuleFacts()
    facts: Tree = None
    unlabelled: View = NO_ROWS
    strong: tuple[Augment, ...] = ()
    optimiser: Tree = None
    training_loop: Callable[[LocalTraining, ClientContext], Reply] | None = None

    @property
    def random_batches(self) -> bool:
        """Whether training batches differ from the stored samples: `augment`, or random rows of a user's data set."""
        return bool(self.augment) or self.train.is_redrawn

    def net(self, params: Params) -> torch.nn.Module:
        """Return the model under `params` for predictions: x (B, ...) -> outputs (B, ...).

        Tensors missing from `params` keep their initial values. The model is valid until the next call.
        """
        if self.module_facts.writes_parameters:  # evaluation must not change the model
            params = params.clone()
        bind(self.module, params, self.initial)
        self.module.eval()
        return self.module

    def generator(self, purpose: str) -> torch.Generator:
        """Return a random stream of this client, exchange and purpose."""
        return random.torch_generator(self.seed, self.client, self.participation, purpose)


@dataclass(frozen=True)
class Reply:
    """What a client algorithm returns. With C clients that trained together each leaf has a leading axis C.

    Attributes:
        update: the update to send.
        state: the client's new state; None keeps the old one.
        carry: value that the client gets in the round's next exchange; None keeps the old one.
        optimiser: memory of the client's optimisers to keep, for `optimiser_state: kept`; None keeps the old one.
    """

    update: Update
    state: Tree = None
    carry: Tree = None
    optimiser: Tree = None
