"""A table of items: the shared part of the recommendation methods.    id of an item -> row q_i of d numbers

A recommendation method adds a user's part, which turns rows into scores (`clients/recommendation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fl.checks import at_least, positive
from fl.registry import register


class ItemRows(nn.Module):
    """One row for each item.

    Args:
        items: number of items.
        dim: numbers in a row.
        std: standard deviation of the first values.
    """

    def __init__(self, items: int, dim: int, std: float):
        super().__init__()
        self.items = nn.Embedding(items, dim)
        nn.init.normal_(self.items.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows (..., dim) of ids (...)."""
        return self.items(ids.long())


@register("model", "item_table")
@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """A row of numbers for each item, for the recommendation methods (fedmf, fedrap, ...).

    Args:
        dim: numbers in a row, d; positive.
        std: standard deviation of the first values, which are normal; positive.
        items: number of items. Default: the task's, which is the largest id plus 1.
    """

    dim: int = 32
    std: float = 0.1
    items: int | None = None

    head: ClassVar[bool] = False  # the outputs are rows
    example_config: ClassVar[dict[str, Any]] = {"model.items": 50}

    def __post_init__(self) -> None:
        at_least(1, dim=self.dim, items=self.items)
        positive(std=self.std)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) > 1:
            raise ValueError(f"model: item_table takes ids of items, a sample is {tuple(shape)}")
        if outputs < 3:
            raise ValueError(f"model: item_table gets {outputs} items from the task; use task: ranking")
        if self.items is not None and self.items < outputs:
            raise ValueError(f"items: {self.items} is less than the {outputs} items of the data; leave it out")
        return ItemRows(self.items or outputs, self.dim, self.std)
