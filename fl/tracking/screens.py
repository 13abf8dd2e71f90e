"""Where progress is shown: lines of text, a live table on a terminal, or a table in a notebook."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

if TYPE_CHECKING:  # rich takes a tenth of a second
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.table import Table

MAX_LINES = 10  # evaluated rounds in a table that changes
SECONDS = 0.25  # between two changes of a notebook's table


class Lines:
    """Prints a line for each evaluated round.

    Args:
        stream: where to print.

    Attributes:
        watched: whether a person looks at it: a notebook or a terminal.
    """

    watched: ClassVar[bool] = False

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.has_header = False

    def open(self) -> None:
        """Begin to show."""

    def close(self) -> None:
        """Show the last state, and end."""

    def status(self, text: str, new: bool = False) -> None:
        """Say what happens before the first round; `new`: of another run."""
        if new:
            self.has_header = False
            print(text, file=self.stream, flush=True)

    def line(self, header: Sequence[str], cells: Sequence[str], evaluated: bool) -> None:
        """Show a round.

        Args:
            header: names of the columns.
            cells: the round's line.
            evaluated: whether the round was evaluated.
        """
        if evaluated:
            rows = (cells,) if self.has_header else (header, cells)
            self.has_header = True
            for row in rows:
                widths = [max(len(name), 7) for name in header]
                text = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths))
                print(text, file=self.stream, flush=True)


class _Changing(Lines):
    """A table of the last evaluated rounds, and of the latest round."""

    watched: ClassVar[bool] = True

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.text = "reading data"
        self.header: Sequence[str] = ()
        self.kept: deque[Sequence[str]] = deque(maxlen=MAX_LINES)
        self.latest: Sequence[str] | None = None  # line of the latest round, if it was not evaluated

    @property
    def rows(self) -> list[Sequence[str]]:
        """All lines to show."""
        return [*self.kept, *([self.latest] if self.latest else ())]

    def status(self, text: str, new: bool = False) -> None:
        self.text = text
        if new:
            self.kept.clear()
            self.latest = None

    def line(self, header: Sequence[str], cells: Sequence[str], evaluated: bool) -> None:
        self.header, self.latest = header, None if evaluated else cells
        if evaluated:
            self.kept.append(cells)


class Terminal(_Changing):
    """A live table on a terminal, after a spinner."""

    live: Live
    spinner: Spinner | None = None

    def open(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.live = Live(get_renderable=self._picture, console=Console(file=self.stream), refresh_per_second=4)
        self.live.start()

    def close(self) -> None:
        self.live.stop()

    def _picture(self) -> Spinner | Table:
        from rich.spinner import Spinner
        from rich.table import Table

        if not self.rows:
            self.spinner = self.spinner or Spinner("dots")
            self.spinner.update(text=self.text)
            return self.spinner
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in self.header:
            table.add_column(name, justify="right", no_wrap=True)
        for line in self.rows:
            table.add_row(*line)
        return table


class Notebook(_Changing):
    """A table below the cell of a notebook."""

    handle: Any = None
    shown = 0.0  # time of the last change

    def open(self) -> None:
        from IPython.display import display

        self.handle = display(_Html(self), display_id=True)

    def close(self) -> None:
        self._show()

    def status(self, text: str, new: bool = False) -> None:
        super().status(text, new)
        self._show()

    def line(self, header: Sequence[str], cells: Sequence[str], evaluated: bool) -> None:
        super().line(header, cells, evaluated)
        if time.monotonic() - self.shown > SECONDS:
            self._show()

    def _show(self) -> None:
        self.shown = time.monotonic()
        if self.handle is not None:
            self.handle.update(_Html(self))


class _Html:
    """The present state of a table, for IPython."""

    def __init__(self, table: _Changing):
        self.text = f"<pre>{escape(table.text)}</pre>" + (html_table(table.header, table.rows) if table.rows else "")

    def _repr_html_(self) -> str:
        return self.text


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML, numbers at the right.

    >>> html_table(["a"], [["1 < 2"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1 &lt; 2</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and shell.has_trait("kernel")


def screen(stream: TextIO | None = None) -> Lines:
    """Return where progress is shown: in a notebook, on a terminal, or as lines on `stream` (default: stderr)."""
    if stream is None and in_notebook():
        return Notebook(sys.stderr)
    stream = stream or sys.stderr
    return Terminal(stream) if stream.isatty() else Lines(stream)
