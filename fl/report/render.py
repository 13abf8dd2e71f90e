"""Tables as Markdown, LaTeX (booktabs) and CSV, from one list of rows whose cells are text, numbers or measurements.

              Markdown, LaTeX                                CSV columns
Mean          0.500 ± 0.141                                  mean, sd
Reached       12.0 ± 1.4, 12.0 (1/3 reached), > 100          mean, sd, reached, beyond
Difference    +0.020 [-0.010, 0.050], n=5, p=0.14            mean, low, high, seeds, p
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]


class Mean(NamedTuple):
    """Mean and standard deviation over seeds (ddof 1; None for one seed)."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: np.ndarray) -> Mean:
        """Of values, (seeds,).

        >>> str(Mean.of(np.array([0.4, 0.6])))
        '0.500 ± 0.141'
        """
        return cls(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)

    def __str__(self) -> str:
        return _with_deviation(self.mean, self.sd, ".3f")


class Best(Mean):
    """The best mean of a column. Tables print it in bold."""


class Reached(NamedTuple):
    """Cost to reach a target.

    Args:
        mean: mean over the runs that reached it; None if no run did.
        sd: standard deviation over them; None for fewer than two.
        reached: number of runs that reached it.
        runs: number of runs.
        beyond: smallest cost of a run that did not reach it; None if all did.
    """

    mean: float | None
    sd: float | None
    reached: int
    runs: int
    beyond: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return f"> {format_number(self.beyond or 0.0)}"
        text = _with_deviation(self.mean, self.sd, ".1f" if self.mean >= 10 else ".3g")
        return text if self.reached == self.runs else f"{text} ({self.reached}/{self.runs} reached)"


class Difference(NamedTuple):
    """Mean difference over `seeds` pairs, with its 95 % interval and its significance; None for one pair.

    Args:
        mean: mean difference.
        low: lower end of the interval.
        high: upper end of the interval.
        seeds: number of pairs.
        p: p-value of the paired t-test, corrected by Holm's method for all differences of the column.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    p: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:.3f}, {self.high:.3f}], n={self.seeds}, p={self.p:.2g}"


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    header = list(rows[0])
    words = text_columns(rows)
    lines = [header, ["---" if name in words else "---:" for name in header]]
    lines += [[_bold(cell(row[name]), row[name]) for name in header] for row in rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _bold(text: str, value: Any) -> str:
    return f"**{text}**" if isinstance(value, Best) else text


def text_columns(rows: Sequence[Row]) -> set[str]:
    """Names of the columns that hold nothing but text."""
    return {name for name in rows[0] if all(isinstance(row[name], str) for row in rows)}


_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_LATEX |= {"±": r"$\pm$", ">=": r"$\geq$", "<=": r"$\leq$", ">": "$>$", "<": "$<$"}


def latex(rows: Sequence[Row]) -> str:
    r"""A LaTeX table for \usepackage{booktabs}."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(cells) + r" \\"

    header, words = list(rows[0]), text_columns(rows)

    def escaped(name: str, value: Any) -> str:
        text = _escaped(cell(value), number=name not in words)
        return rf"\textbf{{{text}}}" if isinstance(value, Best) else text

    body = [line([escaped(name, row[name]) for name in header]) for row in rows]
    columns = "".join("l" if name in words else "r" for name in header)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(map(_escaped, header)), r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str, number: bool = False) -> str:
    table = _LATEX | ({"-": "$-$"} if number else {})
    done, at = "", 0
    while at < len(text):
        pair = text[at : at + 2]
        piece = pair if pair in table else text[at]
        done, at = done + table.get(piece, piece), at + len(piece)
    return done


_PARTS = {
    Mean: ("mean", "sd"),
    Best: ("mean", "sd"),
    Reached: ("mean", "sd", "reached", "beyond"),
    Difference: ("mean", "low", "high", "seeds", "p"),
}


def as_csv(rows: Sequence[Row]) -> str:
    """A CSV table in full precision; each part of a measurement has its own column, and missing values are empty."""
    kinds = {name: next((type(row[name]) for row in rows if row[name] is not None), str) for name in rows[0]}
    wide = []
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            parts = _PARTS.get(kinds[name], ())
            cells |= {f"{name} {part}": None if value is None else getattr(value, part) for part in parts}
            cells |= {} if parts else {name: value}
        wide.append(cells)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(wide[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(wide)
    return text.getvalue()


FORMATS = {"md": markdown, "latex": latex, "csv": as_csv}


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for JSON: `Mean` as a list [mean, sd], other measurements as objects."""

    return [
        {name: value._asdict() if isinstance(value, (Reached, Difference)) else value for name, value in row.items()}
        for row in rows
    ]


def cell(value: Any) -> str:
    """A cell as text: three digits of a float, nothing for None."""
    if isinstance(value, float):
        return format_number(value)
    return "" if value is None else str(value)


def format_number(value: float) -> str:
    """Three significant digits, or all digits before the point of a large number.

    >>> format_number(0.12345), format_number(1234567.8)
    ('0.123', '1,234,568')
    """
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _with_deviation(mean: float, deviation: float | None, form: str) -> str:
    return f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:{form}}"
