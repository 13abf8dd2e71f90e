"""The majority class: what a client reaches without looking at inputs, for comparison.

    nothing goes down, nothing comes up; each client always answers with the most frequent label of its training data

Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.registry import register
from strategies.local import Local


@register("strategy", "majority")
@dataclass(frozen=True, kw_only=True)
class Majority(Local):
    client: ClassVar[str] = "majority"
