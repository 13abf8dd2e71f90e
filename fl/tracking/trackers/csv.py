"""metrics.csv in the run directory."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl.registry import register
from fl.storage import files
from fl.tracking.callback import Callback, Row, Run


@register("tracker", "csv")
@dataclass(kw_only=True)
class Csv(Callback):
    """Write metrics.csv in the run directory: a row for each committed round, a column for each metric.

    A metric that a round lacks is an empty cell. When a new metric comes, the file is written again with its column.
    """

    file: Path | None = field(default=None, init=False)
    rows: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)
    columns: list[str] = field(default_factory=list, init=False, repr=False)

    def start(self, run: Run) -> None:
        from fl.storage.run import read_metrics

        self.file, self.columns = run.directory / "metrics.csv", []
        self.rows = [dict(row) for row in read_metrics(run.directory)] if run.round else []  # those of a resumed run

    def round(self, row: Row) -> None:
        self.rows.append(dict(row))
        new = [name for name in row if name not in self.columns]
        if new or self.file is None or not self.file.exists():
            self._write()
        else:
            with self.file.open("a", newline="") as stream:
                csv.DictWriter(stream, self.columns, lineterminator="\n").writerow(row)

    def final(self, row: Row) -> None:
        self.round(row)

    def _write(self) -> None:
        import io

        assert self.file is not None, "a tracker writes once its run has started"
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_file(self.file, text.getvalue())
