"""Budgets: the value of a metric that runs reach before they have spent a given amount."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl.report.costs import COSTS, Row, cumulative_cost

# unit -> how many units of the cost one is; costs count in MB, hours, joules and numbers
_UNITS: dict[str, Mapping[str, float]] = {
    **dict.fromkeys(("up", "down", "total", "multicast"), {"": 1.0, "kB": 1e-3, "MB": 1.0, "GB": 1e3}),
    "hours": {"": 1.0, "s": 1 / 3600, "min": 1 / 60, "h": 1.0},
    "wall": {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0},
}


@dataclass(frozen=True)
class Budget:
    """Largest costs, all of which hold.

    >>> str(Budget.parse("up=100MB,hours=30min"))
    'up <= 100 MB, hours <= 0.5'

    Args:
        most: cost, a key of `COSTS` -> its largest value.
    """

    most: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read COST=VALUE[UNIT], several with commas between them.

        Raises:
            ValueError: the text is something else.
        """
        most: dict[str, float] = {}
        for part in text.split(","):
            cost, _, amount = (piece.strip() for piece in part.partition("="))
            found = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*([A-Za-z]*)", amount)
            units = _UNITS.get(cost, {"": 1.0})
            if cost not in COSTS or found is None or found[2] not in units:
                allowed = [unit for unit in units if unit] if cost in COSTS else list(COSTS)
                what = f"with one of the units {allowed}" if cost in COSTS else f"of one of the costs {allowed}"
                raise ValueError(f"budget: {part.strip()!r} is not COST=VALUE {what}, as in up=100MB,hours=2")
            if cost in most:
                raise ValueError(f"budget: {cost} is given twice in {text!r}; repeat --budget for a second column")
            most[cost] = float(found[1]) * units[found[2]]
        return cls(most)

    def __str__(self) -> str:
        unit = {cost: " MB" if "MB" in COSTS[cost].label else " s" if cost == "wall" else "" for cost in self.most}
        return ", ".join(f"{cost} <= {value:g}{unit[cost]}" for cost, value in self.most.items())

    def value(self, rows: Sequence[Row], metric: str) -> float | None:
        """Return the last value of a metric that a run measured within the budget; None if there is none."""
        within = np.ones(len(rows), bool)
        for cost, most in self.most.items():
            within &= cumulative_cost(rows, cost) <= most
        measured = [row[metric] for row, fits in zip(rows, within) if fits and row.get(metric) is not None]
        return measured[-1] if measured else None
