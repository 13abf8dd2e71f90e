"""The page as one HTML file, and its figures as files.

The page has no links: style, script and plotly are in the file, and its security policy forbids every request. Names
from run directories are text, never markup: jinja2 escapes them, and the data for the script are JSON whose <, > and &
are escaped.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import fl
from fl.report.charts import Chart, Heatmap, Lines, Pictures
from fl.report.costs import COSTS
from fl.report.page.runs import AXES, Runs
from fl.report.page.section import Block, Folded, Section, Table
from fl.report.page.traces import Pool, figure
from fl.report.render import cell, text_columns

SUFFIXES = ("png", "pdf", "svg")


def write_page(runs: Runs, sections: Sequence[Section], file: Path, title: str) -> None:
    """Write the page.

    Args:
        runs: the runs that the sections show.
        sections: the sections in order.
        file: the HTML file; folders are made as needed.
        title: heading of the page.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    here = files("fl.report.page")
    charts: dict[str, Any] = {}
    pool = Pool()
    shown = [_section(section, runs, charts, pool) for section in sections]
    axes = [(cost, COSTS[cost].label) for cost in AXES if _is_used(sections, cost)]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(
        (here / "page.html").read_text()
    )
    page = template.render(
        title=title,
        sections=shown,
        axes=axes,
        has_runs=any(line.low is not None for chart in _charts(sections, Lines) for line in chart.lines),
        version=fl.__version__,
        # the template does not escape these texts; of a run they hold the data only, which _json escapes
        style=(here / "page.css").read_text(),
        script=(here / "page.js").read_text(),
        plotly=get_plotlyjs(),
        data=_json({"charts": charts, "axes": dict(axes), "pool": pool.arrays, "variants": len(runs.names)}),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _charts(sections: Sequence[Section], kind: type[Any] = Chart) -> Iterator[Any]:
    for section in sections:
        yield from (block for block in section.blocks if isinstance(block, kind))


def _is_used(sections: Sequence[Section], cost: str) -> bool:
    """Whether a line has x of this cost."""
    lines = (line for chart in _charts(sections, Lines) for line in chart.lines)
    return any(not isinstance(line.x, np.ndarray) and cost in line.x for line in lines)


def slug(text: str) -> str:
    """A name for files and links.

    >>> slug("Who holds what"), slug("eval/accuracy")
    ('who-holds-what', 'eval-accuracy')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "chart"


def _section(section: Section, runs: Runs, charts: dict[str, Any], pool: Pool) -> dict[str, Any]:
    """What the template needs of a section. Charts are added to `charts` by their id."""
    blocks = [_block(block, runs, charts, pool) for block in section.blocks]
    groups: list[list[dict[str, Any]]] = []  # charts that follow each other share a grid
    for block in blocks:
        if groups and block["kind"] in ("chart", "pictures") and groups[-1][0]["kind"] in ("chart", "pictures"):
            groups[-1].append(block)
        else:
            groups.append([block])
    return {"id": slug(section.title), "title": section.title, "groups": groups}


def _block(block: Block, runs: Runs, charts: dict[str, Any], pool: Pool) -> dict[str, Any]:
    if isinstance(block, str):
        return {"kind": "text", "text": block}
    if isinstance(block, Folded):
        return {"kind": "folded", "title": block.title, "text": block.text}
    if isinstance(block, Table):
        return {"kind": "table", "title": block.title, "note": block.note, **_cells(block)}
    if isinstance(block, Pictures):
        pictures = [(_data_uri(image), name) for image, name in zip(block.images, block.names)]
        return {"kind": "pictures", "title": block.title, "note": block.note, "pictures": pictures}
    id_ = f"chart-{len(charts)}"
    charts[id_] = figure(block, runs.names, pool)
    square = isinstance(block, Heatmap) and block.values.shape[0] > 12
    return {"kind": "chart", "title": block.title, "note": block.note, "id": id_, "tall": square}


def _cells(table: Table) -> dict[str, Any]:
    header = list(table.rows[0]) if table.rows else []
    words = text_columns(table.rows) if table.rows else set()
    rows = [[(cell(row[name]), name not in words) for name in header] for row in table.rows]
    return {"header": [(name, name not in words) for name in header], "rows": rows}


def _data_uri(image: np.ndarray) -> str:
    """An image (height, width) or (height, width, 3), uint8, as a PNG in a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write_figures(sections: Sequence[Section], folder: Path, suffix: str, cost: str = "round") -> list[Path]:
    """Write each chart of the page into a file SECTION-CHART.SUFFIX of a folder; return the files.

    Args:
        sections: the sections.
        folder: the folder; it is made as needed.
        suffix: one of `SUFFIXES`.
        cost: x axis of charts with x by cost.
    """
    from fl.report.plots.charts import plot_chart

    written: list[Path] = []
    for section in sections:
        for chart in _charts([section]):
            name = base = f"{slug(section.title)}-{slug(chart.title)}"
            while folder / f"{name}.{suffix}" in written:  # titles that differ in other characters only
                name = f"{base}-{len(written)}"
            plot_chart(chart, folder / f"{name}.{suffix}", cost)
            written.append(folder / f"{name}.{suffix}")
    return written
