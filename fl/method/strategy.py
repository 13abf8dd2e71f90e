"""Server rules. A strategy is a frozen dataclass of hyper-parameters with pure methods; what must last is in its State.

The simple form is `init` and `step`, with defaults for `broadcast` (the model) and `reduction` (the weighted mean):

    state = init(model)        each round:  broadcast(state) ~~> clients ~~> reduction(state)  ->  state = step(state, reduced)

The full form writes the round itself, as a generator that yields `Exchange`s, `ServerWork`, `Transfer`s and `Evaluate` and is sent
what came of each; the simple form is one exchange:

    def round(self, state, ctx):
        outcome = yield Exchange(broadcast=..., reduction=...)
        return self.step(state, outcome.value, ctx)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl.kinds import KINDS
from fl.method.messages import Broadcast
from fl.method.reduction import Reduction, WeightedMean
from fl.tensors import random
from fl.tensors.params import NOTHING, Params

if TYPE_CHECKING:
    from fl.tasks.task import Task

State = Any
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class ServerContext:
    """What a server rule may know of the moment it runs in."""

    seed: int
    round: int  # counts from 0
    rounds: int  # planned
    population: int  # number of clients
    cohort: np.ndarray  # ids of this round's clients, ascending
    task: Task
    module: torch.nn.Module  # the model's structure; its weights mean nothing
    frozen: Params = field(default_factory=lambda: NOTHING)  # the tensors of the model that are not trained
    stage: int = 0  # of the task stream: which, whether its first round, whether its last
    stage_begins: bool = False
    stage_ends: bool = False
    server: Mapping[str, Tensor] = field(default_factory=dict)  # the server's own training data
    test: Mapping[str, Tensor] = field(default_factory=dict)  # the server's test set, for evaluations
    tiers: int = 1  # of a tiered server

    @property
    def last(self) -> bool:
        return self.round == self.rounds - 1

    def generator(self, purpose: str) -> torch.Generator:
        """A stream of this round and purpose."""
        return random.torch_generator(self.seed, "server", self.round, purpose)


@dataclass(frozen=True)
class Exchange:
    """One message down to each client of `cohort` (default: the round's) and one back.

    work: what the clients do, the name their algorithm is called with.
    reduction: a Reduction of the group "model", or a mapping group -> Reduction.
    skeleton: a module for the clients in place of the run's model (other widths, ranks, heads).
    pin: True keeps each client on one worker through the exchanges of a round (no work stealing).
    """

    broadcast: Broadcast | Params | Mapping[str, Any]
    reduction: Reduction | Mapping[str, Reduction] = field(default_factory=WeightedMean)
    work: str = "train"
    cohort: Sequence[int] | np.ndarray | None = None
    skeleton: torch.nn.Module | None = None
    pin: bool = False

    @property
    def reductions(self) -> dict[str, Reduction]:
        """One reduction per group of the update."""
        return {"model": self.reduction} if isinstance(self.reduction, Reduction) else dict(self.reduction)

    def reduced(self, values: Mapping[str, Any] | None) -> Any:
        """Return reduced groups in the form of `reduction`: a mapping by group, or the value of "model" alone."""
        return values["model"] if values and isinstance(self.reduction, Reduction) else values


@dataclass(frozen=True)
class ServerWork:
    """fn(*args) on a worker (or GPU), its time reported apart as `server_seconds`; the result is sent back."""

    fn: Callable[..., Any]
    args: tuple = ()


@dataclass(frozen=True)
class Transfer:
    """Messages between servers, which no client works on: a tree `up` from each of some nodes of a lower `tier`, or `down` to each.

    They go through the codec of that direction and into the ledger, under their tier, and take no virtual time. What is sent back is
    what arrives, node -> tree. A tree that is the same for all nodes is encoded once. What codecs keep of a client (`delta`,
    `error_feedback`) there is none of here.
    """

    trees: Mapping[int, Any]  # by node
    direction: Literal["up", "down"]
    group: str = "model"
    tier: str = "edge"


@dataclass(frozen=True)
class Evaluate:
    """Metrics in the middle of a round, which cost no bytes: on sets of `rows` of the server's test set, of what the server
    would predict with after `broadcast`, or of the mean of what each client of `cohort` would, once it has done its own work
    (`stage` trained) or before (received). The answer is set -> metric -> value."""

    broadcast: Broadcast | Params | Mapping[str, Any]
    rows: Mapping[str, np.ndarray]
    cohort: Sequence[int] | np.ndarray | None = None
    stage: Literal["received", "trained"] = "received"


@dataclass(frozen=True)
class ExchangeResult:
    """What came of an exchange: the reduced value (`None` if nobody answered), who answered, metrics pooled over them, and of
    a tiered server the tier they are in."""

    value: Any
    clients: np.ndarray
    num_examples: np.ndarray
    metrics: Metrics
    tier: int = 0


RoundGenerator = Generator[Exchange | ServerWork | Transfer | Evaluate, Any, tuple[State, Metrics]]


@dataclass(frozen=True)
class FedAvgEquivalent:
    """The hyper-parameters under which a method is FedAvg: to the bit where the operations coincide, else to 1e-6."""

    strategy: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    fedavg: Mapping[str, Any] = field(default_factory=dict)  # FedAvg's own settings that it then equals
    bits: bool = True


class Strategy:
    """Base of server rules; see the module. `client` names the client algorithm a strategy brings by default."""

    client: ClassVar[str] = KINDS["client"].default()
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None  # `None`: no setting of this method is FedAvg
    example_config: ClassVar[Mapping[str, Any]] = {}
    """Settings (dotted paths) that a small example run of this strategy needs; `fl check` runs with them."""

    def averages(self) -> bool:
        """Whether the next model lies between the last one and the clients', as averaged statistics of BatchNorm have to."""
        return False

    # -- the simple form -----------------------------------------------------------------------------------------
    def init(self, model: Params, ctx: ServerContext) -> State:
        return model

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast | Params | Mapping[str, Any]:
        return self.model(state)

    def reduction(self, state: State, ctx: ServerContext) -> Reduction | Mapping[str, Reduction]:
        return WeightedMean()

    def step(self, state: State, reduced: Any, ctx: ServerContext) -> tuple[State, Metrics]:
        raise NotImplementedError(f"{type(self).__name__} defines neither step() nor round()")

    def model(self, state: State) -> Params:
        """The model to evaluate and to save: the state itself, or its field `model`."""
        return state if isinstance(state, Params) else state.model

    # -- the full form -------------------------------------------------------------------------------------------
    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        """Before round 0 (statistics over all clients, server-side pre-training)."""
        yield from ()
        return state, {}

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        if outcome.value is None:  # nobody answered: nothing to learn from
            return state, {}
        return self.step(state, outcome.value, ctx)

    def final(self, state: State, ctx: ServerContext) -> RoundGenerator:
        """After the last round (post-training stages)."""
        yield from ()
        return state, {}
