"""How much quality a method keeps under drop-outs and stragglers: runs that differ only in `system` and `server`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl.report.render import Mean
from fl.report.variants import Variant
from fl.tasks.task import minimised

_FREE = ("seed", "system", "server", "execution", "checkpoint")  # sections that may differ within a method
LOST = ("clients_dropped", "clients_late", "clients_away")  # columns of clients whose update was not used


def robustness(variants: Sequence[Variant], metric: str) -> list[dict[str, Any]]:
    """One row per variant: the share of updates that were lost, the metric, and what is kept of it.

    kept = metric / metric without losses, for metrics where more is better, else its inverse; in %. The reference is
    the run with the same configuration that loses no updates, apart from `system`, `server` and seeds.

    Raises:
        ValueError: a method has no run without losses, or no two variants are of one method.
    """
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(_method(variant.configs[0]), []).append(variant)
    rows = []
    for same in groups.values():
        losses = [lost_share(variant) for variant in same]
        reference = same[int(np.argmin(losses))]
        if min(losses) > 0:
            raise ValueError(
                f"robust: {reference.name} loses updates in each run; add a run of the same configuration without "
                "`system.dropout` and without a deadline"
            )
        full = reference.values(metric).mean()
        for variant, lost in zip(same, losses):
            values = variant.values(metric)
            kept = full / values.mean() if minimised(metric) else values.mean() / full
            rows.append(
                {"name": variant.name, "runs": len(variant.runs), "updates lost %": 100 * lost, metric: Mean.of(values)}
                | {"kept %": 100 * float(kept)}
            )
    if len(groups) == len(variants):
        raise ValueError(
            f"robust: no two of {[variant.name for variant in variants]} are one method with and without losses; add "
            "runs whose configurations differ only in `system` and `server`"
        )
    return rows


def lost_share(variant: Variant) -> float:
    """Return the share of the cohorts' updates that were not used, over all rounds of a variant's runs, in [0, 1]."""
    rows = [row for run in variant.runs for row in run if "cohort_size" in row]
    asked = sum(row["cohort_size"] for row in rows)
    lost = sum(sum(row.get(name) or 0 for name in LOST) if "clients_in" in row else row["dropped"] for row in rows)
    return lost / asked if asked else 0.0


def _method(config: Mapping[str, Any]) -> str:
    """A configuration without what may differ within a method, as text."""
    return json.dumps({key: value for key, value in config.items() if key not in _FREE}, sort_keys=True, default=str)
