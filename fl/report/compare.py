"""Table of variants: metrics and costs, as means and standard deviations (of a sample, ddof 1) over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl.report.budget import Budget
from fl.report.costs import COSTS
from fl.report.render import Best, Difference, Mean
from fl.report.variants import Target, Variant
from fl.storage.run import rounds_done
from fl.tasks.task import minimised

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
    budgets: Sequence[Budget] = (),
) -> list[dict[str, Any]]:
    """One row per variant: name, runs, rounds, metrics, costs to reach each target, total costs of a run.

    The best value of each metric is marked; baselines of a run do not compete.

    Args:
        variants: rows of the table.
        metrics: columns of mean and deviation over seeds; see fl/report/variants.py for @10, @last5 and @best. A
            variant without a metric that others have gets an empty cell.
        targets: for each, columns of the cost to reach it.
        versus: name of a variant; each metric gets a column of the difference to it.
        multicast: MB down count what all clients receive once.
        budgets: for each, a column of the first metric's last value within the budget.
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
        for budget in budgets:
            row[f"{metrics[0]} with {budget}"] = _within(variant, budget, metrics[0])
        for target in targets:
            for cost in to_target:
                reached = variant.cost_to_reach(target, cost) if variant.has_cost(cost) else None
                row[f"{COSTS[cost].label} to {target}"] = reached
        for cost in totals:
            row[COSTS[cost].label] = variant.total_cost(cost) if variant.has_cost(cost) else None
        rows.append(row)
    for metric in metrics:
        _mark_best(rows, variants, metric)
        _correct(rows, f"{metric} - {versus}")
    for budget in budgets:
        _mark_best(rows, variants, f"{metrics[0]} with {budget}")
    return rows


def _within(variant: Variant, budget: Budget, metric: str) -> Mean | None:
    """Return the mean over runs within a budget; None if a run has measured nothing within it."""
    for cost in budget.most:
        variant.require_cost(cost)
    found = [budget.value(rows, metric.partition("@")[0]) for rows in variant.runs]
    return None if None in found else Mean.of(np.array(found, float))


def _mark_best(rows: list[dict[str, Any]], variants: Sequence[Variant], column: str) -> None:
    """Mark the best of several means in a column."""
    sign = -1 if minimised(column.partition(" ")[0].partition("@")[0]) else 1
    mine = [i for i, variant in enumerate(variants) if not variant.baseline and isinstance(rows[i][column], Mean)]
    values = {sign * rows[i][column].mean for i in mine}
    if len(values) > 1:
        top = max(values)
        for i in mine:
            if sign * rows[i][column].mean == top:
                rows[i][column] = Best(*rows[i][column])


def _correct(rows: list[dict[str, Any]], column: str) -> None:
    """Correct the p-values of a column of differences by Holm's method."""
    mine = [row for row in rows if isinstance(row.get(column), Difference) and row[column].p is not None]
    for row, p in zip(mine, holm([row[column].p for row in mine])):
        row[column] = row[column]._replace(p=p)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values of n tests, corrected so that at most a share p of such tables has any false positive.

    In ascending order p'_i = max_{j <= i} min(1, (n - j) p_j), j from 0 (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order, largest, corrected = np.argsort(values, kind="stable"), 0.0, [0.0] * len(values)
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def difference(variant: Variant, other: Variant, metric: str) -> Difference:
    """Mean difference over the seeds that both variants have, with Student's 95 % interval and p-value.

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

    error = sd / len(seeds) ** 0.5
    half = float(t.ppf(0.975, len(seeds) - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, len(seeds) - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, len(seeds), p)
