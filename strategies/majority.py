"""Majority class: what a client reaches without looking at inputs, for comparison.

    nothing goes down, nothing comes up; each client always predicts the most frequent label of its training data

Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import register

from .local import Local


@register("strategy", "majority")
@dataclass(frozen=True, kw_only=True)
class Majority(Local):
    """Exchange nothing; clients predict their majority class."""

    client: ClassVar[str] = "majority"
