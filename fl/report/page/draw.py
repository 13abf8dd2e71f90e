"""Charts that other commands draw too: with --png, --pdf and --svg the page's figures are theirs.

matplotlib is imported when the first figure is drawn. Every function takes the file and the cost on the x axis last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl.report.variants import Variant


def draw_curves(variants: Sequence[Variant], metric: str, file: Path, cost: str) -> None:
    """Draw a metric against a cost, as `fl compare --plot` does, for the variants that counted the cost."""
    from fl.report.plots.curves import plot_curves

    plot_curves([each for each in variants if each.has_cost(cost) and each.has(metric)], metric, cost, file)


def draw_client_metric(variants: Sequence[Variant], metric: str, file: Path, cost: str) -> None:
    """Draw a metric of each client, as `fl compare --plot-clients` does."""
    from fl.report.plots.curves import plot_client_metric

    plot_client_metric(variants, metric, file)


def draw_simulated_time(variants: Sequence[Variant], file: Path, cost: str) -> None:
    """Draw where simulated time goes, as `fl compare --plot-time` does."""
    from fl.report.plots.bars import plot_simulated_time

    plot_simulated_time(variants, file)


def draw_matrix(name: str, values: np.ndarray, file: Path, cost: str) -> None:
    """Draw an accuracy matrix, as `fl matrix --plot` does."""
    from fl.report.plots.heatmap import plot_accuracy_matrices

    plot_accuracy_matrices([(name, values)], file)
