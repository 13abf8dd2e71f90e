"""The `evaluation` and `stop` sections of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fl.checks import at_least, not_negative, positive
from fl.data.partition import ViewName
from fl.method.client import ClientAlgorithm

Stage = Literal["received", "trained", "adapted"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When, and on which clients, the model is evaluated.

    Metrics: eval/* on the server's test set, val/* on clients' validation rows, clients/* on clients' test rows,
    train_rows/* on clients' training rows, unlabelled_rows/* on their rows without labels.

    Args:
        every: rounds between evaluations, 1 or more. The last round is always evaluated.
        server: evaluate on the server's test set.
        clients: "all" clients that train; a number of them, 0 or more, drawn once; or the clients that are "held_out"
            by `splits.clients`.
        splits: clients' rows that are evaluated: "val", "test", "train" and "unlabelled" (with the true labels, which
            clients do not get).
        stage: which model clients evaluate: "received" from the server, "trained" locally, or "adapted" by `adapt`; or
            a list of them. The metrics of the first have plain names, those of the others begin with the stage, as
            in trained/clients/loss_mean.
        adapt: client algorithm that adapts the received model in the stage "adapted"; None without this stage.
        shots: number of the client's training samples that `adapt` uses, the first ones, 1 or more; None: all.
        select: metric by which the best model is chosen. Default: val/accuracy or val/loss if there are
            validation rows, else train/loss. Losses, errors, deviations, Gini coefficients and gaps are minimised
            (names that end in loss, mse, perplexity, _std, _gini, gap or fgt), other metrics are maximised.
    """

    every: int = 1
    server: bool = True
    clients: int | Literal["all", "held_out"] = "all"
    splits: tuple[ViewName, ...] = ("val", "test")
    stage: Stage | tuple[Stage, ...] = "received"
    adapt: ClientAlgorithm | None = None
    shots: int | None = None
    select: str | None = None

    def __post_init__(self) -> None:
        at_least(1, every=self.every, shots=self.shots)
        if not self.stages:
            raise ValueError("stage: an empty list; name a stage, such as received")
        for name, values in (("stage", self.stages), ("splits", self.splits)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: {list(values)} names one twice")
        if ("adapted" in self.stages) != (self.adapt is not None):
            raise ValueError(f"adapt: {self.adapt} with stage {self.stage!r}; stage 'adapted' needs a client algorithm")
        if isinstance(self.clients, int):
            not_negative(clients=self.clients)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, one or several."""
        return (self.stage,) if isinstance(self.stage, str) else self.stage


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Conditions that end a run before its last round.

    Args:
        target: metric -> value, as in {val/accuracy: 0.9}; the run ends with the first evaluation that reaches all of
            them. A loss reaches values from above, an accuracy from below, as for `evaluation.select`. The epsilon of a
            private run is a limit: the run ends before the round that would exceed it.
        patience: number of evaluations, 1 or more, without a better `evaluation.select`; None: no limit.
        simulated_seconds: virtual time, positive; the run ends with the round in which it has passed. None: no limit.
    """

    target: dict[str, float] = field(default_factory=dict)
    patience: int | None = None
    simulated_seconds: float | None = None

    def __post_init__(self) -> None:
        at_least(1, patience=self.patience)
        positive(simulated_seconds=self.simulated_seconds)
