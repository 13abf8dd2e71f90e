"""Table of variants: metrics and costs, as means and standard deviations (of a sample, ddof 1) over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.report.costs import COSTS
from fl.report.render import Difference, Mean
from fl.report.variants import Target, Variant
from fl.storage.run import rounds_done

PREFERRED = ("eval/accuracy", "clients/accuracy_weighted", "val/accuracy", "eval/loss", "train/loss")


def default_metric(variants: Sequence[Variant]) -> str:
    """The first metric of `PREFERRED` that all runs have."""
    for metric in PREFERRED:
        if all(any(metric in row for row in rows) for variant in variants for rows in variant.runs):
            return metric
    raise ValueError(f"metric: the runs have none of {PREFERRED} in common; name one")


def find_target(text: str, variants: Sequence[Variant]) -> Target:
    """Read METRIC=VALUE.

    A metric without prefix is val/METRIC if all variants have it, else the only */METRIC that all have.
    """
    target = Target.parse(text)
    names = [{key for rows in variant.runs for row in rows for key in row} for variant in variants]
    if "/" in target.metric or any(target.metric in keys for keys in names):
        return target
    found = sorted(key for key in set.intersection(*names) if key.endswith(f"/{target.metric}"))
    found = [key for key in found if key.startswith("val/")] or found
    if len(found) != 1:
        known = found or sorted({key for keys in names for key in keys if "/" in key})
        problem = "may mean any of" if found else "is part of none of"
        raise ValueError(f"target: {target.metric!r} {problem} {known}; give the full name of one")
    return target._replace(metric=found[0])


def table(
    variants: Sequence[Variant],
    metrics: Sequence[str],
    targets: Sequence[Target] = (),
    versus: str | None = None,
    multicast: bool = False,
) -> list[dict[str, Any]]:
    """One row per variant: name, runs, rounds, metrics, costs to reach each target, total costs of a run.

    Args:
        variants: rows of the table.
        metrics: columns of mean and deviation over seeds; see fl/report/variants.py for @10, @last5 and @best. A
            variant without a metric that others have gets an empty cell.
        targets: for each, columns of the cost to reach it.
        versus: name of a variant; each metric gets a column of the difference to it.
        multicast: MB down count what all clients receive once.
    """
    other = next((variant for variant in variants if variant.name == versus), None)
    if versus is not None and other is None:
        raise ValueError(f"versus: {versus!r} is not one of {[variant.name for variant in variants]}")
    totals = ["up", "multicast" if multicast else "down"]
    totals += [cost for cost in ("hours", "joules") if any(variant.has_cost(cost) for variant in variants)]
    to_target = ["round", *totals, *(["work"] if any(variant.has_cost("work") for variant in variants) else [])]
    rows = []
    for variant in variants:
        row: dict[str, Any] = {"name": variant.name, "runs": len(variant.runs)}
        row["rounds"] = max(rounds_done(of_run[-1]) for of_run in variant.runs)
        for metric in metrics:
            missing = not variant.has(metric) and any(each.has(metric) for each in variants)
            row[metric] = None if missing else Mean.of(variant.values(metric))
            if other is not None:
                alone = variant is other or missing or not other.has(metric)
                row[f"{metric} - {versus}"] = None if alone else difference(variant, other, metric)
        for target in targets:
            for cost in to_target:
                reached = variant.cost_to_reach(target, cost) if variant.has_cost(cost) else None
                row[f"{COSTS[cost].label} to {target}"] = reached
        for cost in totals:
            row[COSTS[cost].label] = variant.total_cost(cost) if variant.has_cost(cost) else None
        rows.append(row)
    return rows


def difference(variant: Variant, other: Variant, metric: str) -> Difference:
    """Mean difference over the seeds that both variants have, with Student's 95 % interval.

    mean(d) +- t_{.975, n-1} sd(d) / sqrt(n),    d = variant - other for each of n seeds
    """
    left, right = (dict(zip(each.seeds, each.values(metric))) for each in (variant, other))
    for each, known in ((variant, left), (other, right)):
        if None in known or len(known) < len(each.runs):
            raise ValueError(
                f"versus: the runs of {each.name} have seeds {each.seeds}; pairs need one run for each seed"
            )
    seeds = [seed for seed in left if seed in right]
    if not seeds:
        raise ValueError(
            f"versus: {variant.name} and {other.name} have no seed in common: {variant.seeds}, {other.seeds}"
        )
    mean, sd = Mean.of(np.array([left[seed] - right[seed] for seed in seeds]))
    if sd is None:
        return Difference(mean, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(seeds) - 1)) * sd / len(seeds) ** 0.5
    return Difference(mean, mean - half, mean + half, len(seeds))
