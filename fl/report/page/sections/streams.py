"""Streams of tasks: the accuracy on every task after every task, and forgetting."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from fl.report.charts import Heatmap
from fl.report.page.draw import draw_matrix
from fl.report.page.runs import Runs, if_written
from fl.report.page.section import Block, Section, Table
from fl.report.render import Mean
from fl.report.stream import accuracy_matrix
from fl.tasks.statistics import forgetting


def stream(runs: Runs) -> Section | None:
    """The accuracy matrix of each variant, mean over its runs, and ACC, forgetting and backward transfer."""
    if "stream/acc" not in runs.metrics:
        return None
    blocks: list[Block] = []
    rows: list[dict[str, Any]] = []
    for variant in runs.variants:
        matrices = []
        for directory in variant.directories:
            found = if_written(partial(accuracy_matrix, directory))
            matrices += [found] if found is not None else []
        if not matrices:
            continue
        done = min(map(len, matrices))
        with warnings.catch_warnings():  # tasks that come later have no value in any run
            warnings.simplefilter("ignore", RuntimeWarning)
            mean = np.nanmean([values[:done] for values in matrices], 0)
        several = f" Mean over {len(matrices)} runs." if len(matrices) > 1 else ""
        blocks.append(
            Heatmap(
                title=f"Accuracy matrix: {variant.name}",
                note=f"Accuracy on task s (column) after task t (row).{several}",
                values=mean,
                x_label="accuracy on task",
                y_label="after task",
                low=0,
                high=1,
                draw=partial(draw_matrix, variant.name, mean),
            )
        )
        each = [forgetting([row[: t + 1].tolist() for t, row in enumerate(values)]) for values in matrices]
        means = {name: Mean.of(np.array([one[name] for one in each])) for name in each[0]}
        rows.append({"name": variant.name, "runs": len(each)} | means)
    note = (
        "acc: mean accuracy over the tasks so far; fgt: forgetting; bwt: backward transfer. Mean ± deviation over runs."
    )
    return Section("Stream of tasks", [*blocks, Table(rows, note=note)]) if blocks else None
