"""The strategy: the server's rule. A strategy is a frozen dataclass of hyper-parameters with pure methods.

Everything that lasts from round to round is in its state, a tree of tensors, numbers and dataclasses.

The simple form defines `init` and `step`. Defaults: `broadcast` sends the model, `reduction` is the weighted mean.

    state = init(model)     each round: broadcast(state) ~~> clients ~~> reduction(state); state = step(state, reduced)

The full form defines the round as a generator. It yields requests (fl/method/requests.py) and is sent their answers.
The simple form is one exchange:

    def round(self, state, ctx):
        outcome = yield Exchange(broadcast=..., reduction=...)
        return self.step(state, outcome.value, ctx)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl.kinds import KINDS
from fl.method.messages import Broadcast
from fl.method.reduction import Reduction, WeightedMean
from fl.method.requests import Evaluate, EvaluateModel, Exchange, ServerWork, Transfer
from fl.tensors import random
from fl.tensors.params import NOTHING, Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.method.client import ClientAlgorithm
    from fl.tasks.task import Task

State = Any  # a tree; each strategy has its own
Metrics = Mapping[str, Any]  # name -> number, tensor () or JSON value


@dataclass(frozen=True)
class ServerContext:
    """What a strategy knows besides its state.

    Attributes:
        seed: seed of the run.
        round: the round, from 0.
        rounds: number of rounds planned.
        population: number of clients.
        cohort: ids of the round's clients, ascending, (n,); empty in `setup` and `final`.
        task: the loss and the metrics.
        module: the model's structure; its weights have no meaning.
        frozen: tensors of the model that are not trained.
        period: index of the current period of a stream, from 0.
        period_begins: whether this is the first round of the period.
        period_ends: whether this is the last round of the period.
        server: the server's own training data by name, (N, ...) each.
        test: the server's test set by name, (N, ...) each.
        tiers: number of tiers of a tiered server; else 1.
        sample_shape: shape of one sample `x`, without the batch axis.
        outputs: number of outputs that the model is built for, K.
        evaluated: ids of the clients that the configuration evaluates, ascending, (n,); empty outside `evaluation`.
        val: validation rows of the active party by name, if the partition is vertical; else {}. Then `server`, `val`
            and `test` hold the active party's columns and labels, row by row as `ctx.train`, `ctx.val` and `ctx.test`
            of the other parties.
        periods: number of periods of the stream; 1 without one.
    """

    seed: int
    round: int
    rounds: int
    population: int
    cohort: np.ndarray
    task: Task
    module: torch.nn.Module
    frozen: Params = field(default_factory=lambda: NOTHING)
    period: int = 0
    period_begins: bool = False
    period_ends: bool = False
    server: Mapping[str, Tensor] = field(default_factory=dict)
    test: Mapping[str, Tensor] = field(default_factory=dict)
    tiers: int = 1
    sample_shape: tuple[int, ...] = ()
    outputs: int = 0
    evaluated: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    val: Mapping[str, Tensor] = field(default_factory=dict)
    periods: int = 1

    @property
    def last(self) -> bool:
        """Whether this is the last round planned."""
        return self.round == self.rounds - 1

    def generator(self, purpose: str) -> torch.Generator:
        """Return a random stream of this round and purpose."""
        return random.torch_generator(self.seed, "server", self.round, purpose)


RoundGenerator = Generator[Exchange | ServerWork | Transfer | Evaluate, Any, tuple[State, Metrics]]
EvaluationGenerator = Generator[Exchange | ServerWork | Evaluate | EvaluateModel, Any, Metrics]


@dataclass(frozen=True)
class FedAvgEquivalent:
    """The hyper-parameters with which a method is FedAvg. `fl check` compares the two runs.

    Args:
        strategy: hyper-parameters of the strategy.
        client: hyper-parameters of the client algorithm.
        fedavg: hyper-parameters of the FedAvg that it equals.
        bits: True requires equal bits, False a relative difference of at most 1e-6.
    """

    strategy: Mapping[str, Any] = field(default_factory=dict)
    client: Mapping[str, Any] = field(default_factory=dict)
    fedavg: Mapping[str, Any] = field(default_factory=dict)
    bits: bool = True


def checked_outcome(strategy: Strategy, hook: str, value: Any) -> tuple[State, Metrics]:
    """Return `value`, the result of a strategy's hook, if it is a pair (state, metrics).

    Raises:
        TypeError: it is something else; the message names the class, the hook and what came.
    """
    who = f"strategy {type(strategy).__name__}: {hook} returned"
    if not isinstance(value, tuple) or len(value) != 2:
        came = f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__
        raise TypeError(f"{who} {came}, expected a pair (state, metrics), as in `return state, {{}}`")
    return value[0], checked_metrics(strategy, hook, value[1])


def checked_metrics(strategy: Strategy, hook: str, metrics: Any) -> Metrics:
    """Return the metrics that a strategy's hook returned, if they are a mapping of names.

    Raises:
        TypeError: they are something else; the message names the class, the hook and what came.
    """
    who = f"strategy {type(strategy).__name__}: {hook} returned"
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{who} metrics that are {type(metrics).__name__}, expected a mapping name -> number")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{who} a metric with the name {name!r}, expected a string")
        if isinstance(value, Tensor) and value.numel() != 1:
            raise TypeError(f"{who} the metric {name!r} as a tensor {tuple(value.shape)}, expected one number")
    return metrics


class Strategy:
    """Base of strategies; the module describes the two forms.

    Attributes:
        client: registered name of the client algorithm that the strategy uses by default.
        fedavg_equivalent: setting with which the method is FedAvg; None if there is none.
        example_config: settings by dotted path for a small example run; `fl check` uses them.
        later_metrics: names of metrics that the first rounds may lack, also as glob patterns. `stop.target` and
            `evaluation.select` may name them.
        axis: what clients hold: "rows", with all columns, or "columns" of all rows (vertical federated learning).
    """

    client: ClassVar[str] = KINDS["client"].default()
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
    example_config: ClassVar[Mapping[str, Any]] = {}
    later_metrics: ClassVar[tuple[str, ...]] = ()
    axis: ClassVar[Literal["rows", "columns"]] = "rows"

    def averages(self) -> bool:
        """Return whether the next model is a mean of the last model and the clients' models.

        Models with averaged BatchNorm statistics are refused if it is not.
        """
        return False

    def check_client(self, client: ClientAlgorithm) -> None:
        """Check before round 0 that the method can have this client algorithm and its hyper-parameters. Default: any.

        That the client sends and receives the groups of the first exchange is checked without this hook.

        Raises:
            ValueError: it cannot; the message is "key: reason and way out" with a key of the section `client`.
        """

    # -- the simple form -----------------------------------------------------------------------------------------
    def init(self, model: Params, ctx: ServerContext) -> State:
        """Return the state before round 0, from the initial model. Default: the model."""
        return model

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast | Params | Mapping[str, Tree]:
        """Return what the server sends; see `Broadcast.of` for the short forms. Default: the model."""
        return self.model(state)

    def reduction(self, state: State, ctx: ServerContext) -> Reduction | Mapping[str, Reduction]:
        """Return the reduction of the group "model", or one reduction per group. Default: the weighted mean."""
        return WeightedMean()

    def step(self, state: State, reduced: Any, ctx: ServerContext) -> tuple[State, Metrics]:
        """Return (next state, metrics of the round).

        Args:
            state: the state before the round.
            reduced: value of `reduction`, or a mapping by group if `reduction` is one.
            ctx: the round.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither step() nor round()")

    def model(self, state: State) -> Params:
        """Return the model to evaluate and to save. Default: the state itself, or its field `model`."""
        if isinstance(state, Params):
            return state
        if not hasattr(state, "model"):
            raise TypeError(
                f"strategy {type(self).__name__}: the state is {type(state).__name__} without a field `model`; a state "
                "is Params or a dataclass with the field `model`, or the strategy defines model(self, state)"
            )
        return state.model

    # -- the full form -------------------------------------------------------------------------------------------
    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        """Work before round 0, such as statistics over all clients. Returns (state, metrics)."""
        yield from ()
        return state, {}

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        """Work of one round. Returns (next state, metrics of the round)."""
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        if outcome.value is None:  # no client answered
            return state, {}
        return checked_outcome(self, "step", self.step(state, outcome.value, ctx))

    def final(self, state: State, ctx: ServerContext) -> RoundGenerator:
        """Work after the last round, such as training on the server. Returns (state, metrics).

        The model of the new state is evaluated and saved. A run that continues with more rounds starts from the state
        before.
        """
        yield from ()
        return state, {}

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        """Evaluate after a round. Returns metrics by name.

        Default: evaluate the model, with the groups that clients receive beside it. A method whose clients have to be
        asked for something first yields `Exchange(free=True)`.
        """
        broadcast = Broadcast.of(self.broadcast(state, ctx))
        return (yield EvaluateModel(broadcast.with_model(self.model(state))))
