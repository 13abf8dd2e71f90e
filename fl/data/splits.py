"""The `splits` section of a configuration: which rows and clients are held out of training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Fractions of each client's rows that are held out: `val` for selection, `test` for its personal test; and how many
    `clients`, the last ones, are held out altogether: they never train, evaluation.clients: held_out asks them. `per_class`: at
    most so many training rows of each class for each client. `pooled`: client 0 has everybody's training rows (centralised
    training on the same splits)."""

    val: float = 0.1
    test: float = 0.0
    clients: int = 0
    per_class: int | None = None
    pooled: bool = False

    def __post_init__(self):
        for name in ("val", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if self.clients < 0:
            raise ValueError(f"clients: {self.clients} is negative")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class: {self.per_class} is not at least 1")
        if self.val + self.test >= 1:
            raise ValueError(f"val: {self.val} and test: {self.test} leave nothing to train on")
