"""The runs of a page, grouped into variants, and what sections often need of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fl.errors import ConfigError
from fl.report.charts import Draw, Lines, mean_line
from fl.report.costs import cumulative_cost, is_counted
from fl.report.variants import Row, Variant, read_variants
from fl.storage import sums
from fl.storage.run import rounds_done

if TYPE_CHECKING:
    from fl.data.dataset import Dataset
    from fl.data.partition import Partition

T = TypeVar("T")

AXES = ("round", "up", "total", "hours", "wall")  # costs that the page's x axis can be switched to
MOST_POINTS = 1_000  # of a line; longer ones are thinned out
BAND = "Line: mean over {} runs with different seeds; band: from the lowest to the highest run."


Load = Callable[[Path], "tuple[Dataset, Partition]"]


@dataclass(frozen=True)
class Runs:
    """What a section is made from.

    Args:
        variants: runs that differ only in their seeds, together (fl/report/variants.py).
        empty: runs that were left out because they have no finished round.
        load: loads the data set of a run directory and divides it again; None: sections read run directories only.
    """

    variants: Sequence[Variant]
    empty: Sequence[Path] = ()
    load: Load | None = None

    @classmethod
    def read(cls, directories: Sequence[Path], load: Load | None = None) -> Runs:
        """Read run directories, or folders of them.

        Raises:
            ValueError: no run has a finished round.
        """
        empty: list[Path] = []
        variants = read_variants(directories, empty)
        if not variants:
            raise ValueError(f"{empty[0]} has no finished round yet; wait, or resume it: fl resume {empty[0]}")
        return cls(variants, empty, load)

    # -- variants -------------------------------------------------------------------------------------------------
    @property
    def names(self) -> list[str]:
        """Names of the variants."""
        return [variant.name for variant in self.variants]

    def first_of_each(self) -> Iterator[tuple[str, Path]]:
        """Name and first run directory of each variant."""
        for variant in self.variants:
            yield variant.name, variant.directories[0]

    def unfinished(self) -> Iterator[tuple[str, Path, int, int | None]]:
        """Yield (variant, directory, rounds done, rounds of the configuration) of each run that has not ended."""
        for variant in self.variants:
            for directory, rows, config in zip(variant.directories, variant.runs, variant.configs):
                if not sums.present(directory):
                    yield variant.name, directory, rounds_done(rows[-1]), config.get("rounds")

    @cached_property
    def environments(self) -> list[list[Mapping[str, Any]]]:
        """For each variant, environment.json of each run; {} for a run without one."""
        files = [[path / "environment.json" for path in variant.directories] for variant in self.variants]
        return [[json.loads(file.read_text()) if file.is_file() else {} for file in each] for each in files]

    # -- metrics --------------------------------------------------------------------------------------------------
    @cached_property
    def metrics(self) -> list[str]:
        """Names of the columns of metrics.jsonl that hold numbers, in the order of their first appearance."""
        found: dict[str, None] = {}
        for row in self.rows():
            found |= {name: None for name, value in row.items() if isinstance(value, (int, float))}
        return list(found)

    def rows(self) -> Iterator[Row]:
        """All rows of metrics.jsonl, of all runs."""
        for variant in self.variants:
            for rows in variant.runs:
                yield from rows

    def lines(self, metric: str, title: str = "", note: str = "", draw: Draw | None = None) -> Lines:
        """A chart of a column of metrics.jsonl against a cost, a line for each variant that has it.

        Args:
            metric: name of the column.
            title: heading of the chart; "" for the metric's name.
            note: a sentence before the one that says what the band is.
            draw: as in `Chart`.
        """
        found = [(variant, mean_line(variant.name, _curves(variant, metric))) for variant in self.variants]
        several = {len(variant.runs) for variant, line in found if line is not None and line.low is not None}
        band = BAND.format(" or ".join(map(str, sorted(several)))) if several else ""
        lines = [line for _, line in found if line is not None]
        return Lines(title=title or metric, note=f"{note} {band}".strip(), lines=lines, y_label=metric, draw=draw)


def if_written(read: Callable[[], T]) -> T | None:
    """What `read` returns, or None if the run has not written it: another ValueError than that of a damaged file."""
    try:
        return read()
    except ConfigError:
        raise
    except ValueError:
        return None


def _curves(variant: Variant, metric: str) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """For each run, costs by name (measurements,) and the metric (measurements,)."""
    found = []
    for rows in variant.runs:
        at = np.array([i for i, row in enumerate(rows) if row.get(metric) is not None], np.int64)
        at = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), MOST_POINTS)).astype(np.int64))] if len(at) else at
        costs = {cost: cumulative_cost(rows, cost)[at] for cost in AXES if is_counted(rows, cost)}
        found.append((costs, np.array([rows[i][metric] for i in at], float)))
    return found
