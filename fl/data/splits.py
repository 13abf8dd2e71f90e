"""The `splits` section of a configuration: rows and clients that are held out of training."""

from __future__ import annotations

from dataclasses import dataclass

from fl.checks import at_least, not_negative, within


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Rows and clients that are held out of training.

    Args:
        val: fraction of each client's rows for choosing between models, in [0, 1).
        test: fraction of each client's rows for its own test, in [0, 1); val + test < 1.
        clients: number of clients that never train, 0 or more: those with the highest ids. `evaluation.clients:
            held_out` evaluates on them.
        per_class: maximum number of training rows of each class per client, 1 or more; None: no limit.
        pooled: client 0 trains on the training rows of all clients (centralised training on the same splits).
    """

    val: float = 0.1
    test: float = 0.0
    clients: int = 0
    per_class: int | None = None
    pooled: bool = False

    def __post_init__(self) -> None:
        within("[0, 1)", val=self.val, test=self.test)
        not_negative(clients=self.clients)
        at_least(1, per_class=self.per_class)
        if self.val + self.test >= 1:
            raise ValueError(f"val: {self.val} and test: {self.test} leave nothing to train on")
