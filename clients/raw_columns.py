"""A passive party that sends its own columns, for the upper bound of vertical methods (strategies/active_party.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import ClientAlgorithm, ClientContext, Reply, Tree, Update, aligned, register


@register("client", "raw_columns")
@dataclass(frozen=True, kw_only=True)
class RawColumns(ClientAlgorithm):
    """Send all columns of all rows of the view that the strategy asks for."""

    sends: ClassVar[tuple[str, ...]] = ("columns",)
    receives: ClassVar[tuple[str, ...]] = ()

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        x = aligned.all_rows(ctx).flatten(1).float()
        return Reply(Update({"columns": x}, len(x)))
