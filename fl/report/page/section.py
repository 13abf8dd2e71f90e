"""A section of the page: a title, and blocks that are charts, tables or sentences.

A section is made by a function of the runs. It returns None if the run directories hold nothing for it:

    def section(runs: Runs) -> Section | None
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fl.report.charts import Chart

if TYPE_CHECKING:
    from fl.report.page.runs import Runs


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        rows: rows with equal keys; the keys are the header.
        title: heading; "" for none.
        note: a sentence below it.
    """

    rows: Sequence[Mapping[str, Any]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Folded:
    """Text of fixed width that the reader unfolds, such as a configuration.

    Args:
        title: what it is.
        text: the text.
    """

    title: str
    text: str


Block: TypeAlias = "Chart | Table | Folded | str"  # text: one paragraph


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: heading, and the name in the page's contents.
        blocks: charts, tables and sentences, in this order.
    """

    title: str
    blocks: Sequence[Block]


MakeSection: TypeAlias = "Callable[[Runs], Section | None]"
