"""Requests that a strategy's generators yield to the engine.

round, setup, final:  Exchange, ServerWork, Transfer, Evaluate
evaluation:           Exchange(free=True), ServerWork, Evaluate, EvaluateModel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from fl.method.messages import Broadcast
from fl.method.reduction import Reduction, WeightedMean
from fl.tensors.params import Params
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Exchange:
    """One message down to each client of a cohort, client work, and one message up. Answered by `ExchangeResult`.

    Args:
        broadcast: what the server sends; see `Broadcast.of` for the short forms.
        reduction: a reduction of the group "model", or one reduction per group.
        work: name that the client algorithm's `work` is called with.
        cohort: ids of the clients. Default: the round's cohort.
        skeleton: module that clients use in place of the run's model, with other widths or ranks.
        pin: True keeps each client on one worker during all exchanges of a round.
        free: True for an exchange of an evaluation. It costs no bytes and no virtual time, and its metrics are not in
            `train/*`. Clients keep the states that they had. Only `evaluation` may yield it.
        samples: number of samples whose gradient each client takes in this exchange, at least 0. Virtual time is
            computed from it. Default: the client's `workload`.
    """

    broadcast: Broadcast | Params | Mapping[str, Tree]
    reduction: Reduction | Mapping[str, Reduction] = field(default_factory=WeightedMean)
    work: str = "train"
    cohort: Sequence[int] | np.ndarray | None = None
    skeleton: torch.nn.Module | None = None
    pin: bool = False
    free: bool = False
    samples: int | None = None

    @property
    def reductions(self) -> dict[str, Reduction]:
        """One reduction per group of the update."""
        return {"model": self.reduction} if isinstance(self.reduction, Reduction) else dict(self.reduction)

    def reduced(self, values: Mapping[str, Any] | None) -> Any:
        """Return reduced groups in the form of `reduction`: a mapping by group, or the value of "model" alone.

        None stays None.

        >>> Exchange({}).reduced({"model": 1.5})
        1.5
        >>> Exchange({}, {"model": WeightedMean()}).reduced({"model": 1.5})
        {'model': 1.5}
        """
        return values["model"] if values and isinstance(self.reduction, Reduction) else values


@dataclass(frozen=True)
class ServerWork:
    """A call `fn(*args)` on a worker or GPU, answered by its result. Its time is booked as `server_seconds`.

    Args:
        fn: a function that can be pickled.
        args: its arguments, which can be pickled.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """Messages between servers, one tree per node of a lower tier. Answered by what arrives, node -> tree.

    The trees pass through the codec of their direction. The ledger counts them under their tier. They take no virtual
    time. A tree that several nodes share is encoded once. Codecs have no memory of nodes (`delta`, `error_feedback`).

    Args:
        trees: node -> tree.
        direction: "up" from the nodes, or "down" to them.
        group: name of the group in the ledger.
        tier: name of the nodes' tier in the ledger.
    """

    trees: Mapping[int, Tree]
    direction: Literal["up", "down"]
    group: str = "model"
    tier: str = "edge"


@dataclass(frozen=True)
class Evaluate:
    """An evaluation in the middle of a round, on sets of the server's test rows. It costs no bytes.

    Without a cohort the server's model is evaluated. With a cohort the metrics are means over its clients' models.
    Answered by set -> metric -> value.

    Args:
        broadcast: what the models are made from; see `Broadcast.of` for the short forms.
        rows: set -> positions in the server's test set, (n,).
        cohort: ids of the clients.
        stage: evaluate clients' models as "received", or "trained" after the client's own work.
    """

    broadcast: Broadcast | Params | Mapping[str, Tree]
    rows: Mapping[str, np.ndarray]
    cohort: Sequence[int] | np.ndarray | None = None
    stage: Literal["received", "trained"] = "received"


@dataclass(frozen=True)
class EvaluateModel:
    """The evaluation of one model that the configuration asks for (`evaluation:`). It costs no bytes.

    Answered by metric -> value, such as eval/*, val/* and clients/*.

    Args:
        broadcast: the model, and the groups that clients receive with it; see `Broadcast.of` for the short forms.
        name: prefix of the metrics, as in `NAME/eval/loss`; a strategy that evaluates several models names all but one.
    """

    broadcast: Broadcast | Params | Mapping[str, Tree]
    name: str = ""


@dataclass(frozen=True)
class ExchangeResult:
    """The result of an exchange.

    Attributes:
        value: the reduced value in the form of `Exchange.reduction`; None if no client answered.
        clients: ids of the clients that answered, ascending, (n,).
        num_examples: their numbers of training samples, (n,).
        metrics: means over these clients, weighted by `num_examples`.
        tier: tier of the clients, for a tiered server; else 0.
    """

    value: Any
    clients: np.ndarray
    num_examples: np.ndarray
    metrics: Mapping[str, Any]
    tier: int = 0
