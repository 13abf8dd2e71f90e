"""Compare two records: list equal runs, and for the others the parts that differ and by how much."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.regression.record import Run, models_of, read

SHOWN = 4  # maximum number of metric names in a line of the table
WORDING = {"error text", "reason of the plan"}  # texts for people, which are not results


@dataclass(frozen=True)
class Difference:
    """The differences between two runs of one name.

    Args:
        name: name of the runs.
        parts: descriptions of the parts that differ.
        model: largest relative difference of the model's numbers, if known.
        metrics: largest relative difference of a metric, if known.
    """

    name: str
    parts: tuple[str, ...]
    model: float | None = None
    metrics: float | None = None


def compare(old: Path, new: Path, only: str = "*", ignore_wording: bool = False, list_equal: bool = False) -> int:
    """Print the comparison of two records; return 1 if a run differs or is missing in the new record, else 0."""
    before, after = (_matching(read(file), only) for file in (old, new))
    shared = [name for name in before if name in after]
    compared = [difference(name, before[name], after[name], old, new) for name in shared]
    if ignore_wording:
        compared = [each and _without_wording(each) for each in compared]
    differences = [each for each in compared if each]
    equal = [name for name, each in zip(shared, compared) if not each]
    gone, added = ([n for n in a if n not in b] for a, b in ((before, after), (after, before)))
    for line in _equal_lines(equal, before, list_equal):
        print(line)
    for line in _table(differences):
        print(line)
    for title, names in ((f"only in {old}", gone), (f"only in {new}", added)):
        if names:
            print(f"\n{title}:", *names, sep="\n  ")
    counts = f"{len(equal)} equal, {len(differences)} differ"
    print(f"\n{counts}, {len(gone)} only in the old record, {len(added)} only in the new")
    return 1 if differences or gone else 0


def difference(name: str, old: Run, new: Run, old_file: Path, new_file: Path) -> Difference | None:
    """Return the difference between two runs, or None if they are equal."""
    if old["status"] != new["status"]:
        texts = [f"{run['status']}: {run['error']}" if "error" in run else run["status"] for run in (old, new)]
        return Difference(name, (f"status ({texts[0]} -> {texts[1]})",))
    if "error" in old:
        return None if old["error"] == new["error"] else Difference(name, ("error text",))
    parts, model = [], None
    if old["digest"] != new["digest"]:
        parts.append("digest")
        model = _model_difference(*(models_of(file) / f"{name}.safetensors" for file in (old_file, new_file)))
    parts += [part for part in ("ledger", "clients", "reason") if old[part] != new[part]]
    lines, largest = _metric_differences(old["metrics"], new["metrics"])
    parts += lines
    parts += _plan_differences(old["plan"] or {}, new["plan"] or {})
    return Difference(name, tuple(parts), model, largest) if parts else None


def _matching(runs: dict[str, Run], only: str) -> dict[str, Run]:
    return {name: run for name, run in runs.items() if fnmatch.fnmatchcase(name, only)}


def _without_wording(found: Difference) -> Difference | None:
    parts = tuple(part for part in found.parts if part not in WORDING)
    return Difference(found.name, parts, found.model, found.metrics) if parts else None


# -- numbers ----------------------------------------------------------------------------------------------------------
def _model_difference(old: Path, new: Path) -> float:
    """Return max |a - b| / max |a| over all numbers of two models.

    It is infinite if the models' tensors differ in names or shapes, and NaN if a model is missing.
    """
    from safetensors.torch import load_file

    if not (old.is_file() and new.is_file()):
        return math.nan
    a, b = load_file(old), load_file(new)
    if {n: t.shape for n, t in a.items()} != {n: t.shape for n, t in b.items()}:
        return math.inf
    distance = max((float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel()), default=0.0)
    largest = max((float(t.double().abs().max()) for t in a.values() if t.numel()), default=0.0)
    return distance / largest if largest else distance


def _metric_differences(old: list[Run], new: list[Run]) -> tuple[list[str], float | None]:
    """Describe the differences of the metrics of all rounds, and return the largest relative difference of a number."""
    parts = [f"rounds ({len(old)} -> {len(new)})"] if len(old) != len(new) else []
    pairs = list(zip(old, new))
    missing = sorted({key for a, b in pairs for key in a.keys() ^ b.keys()})
    changed: dict[str, float] = {}
    for a, b in pairs:
        for key in a.keys() & b.keys():
            if a[key] != b[key]:
                changed[key] = max(_relative_difference(a[key], b[key]), changed.get(key, 0.0))
    if missing:
        parts.append(f"metrics in one record only: {_some(missing)}")
    if changed:
        parts.append(f"metrics: {_some(sorted(changed))}")
    return parts, max(changed.values(), default=None)


def _relative_difference(a: Any, b: Any) -> float:
    """Return |a - b| / max(|a|, |b|) of two unequal values of a metric; infinite if one is not a number."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) / max(abs(a), abs(b))
    return math.inf


def _plan_differences(old: Run, new: Run) -> Iterator[str]:
    """Describe the differences of two plans and of the reasons for them."""
    keys = [key for key in old.keys() | new.keys() if key != "why" and old.get(key) != new.get(key)]
    if keys:
        yield "plan (" + ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted(keys)) + ")"
    if old.get("why") != new.get("why"):
        yield "reason of the plan"


# -- text -------------------------------------------------------------------------------------------------------------
def _equal_lines(names: list[str], runs: dict[str, Run], list_all: bool) -> Iterator[str]:
    """Count the equal runs by status and by group; with `list_all`, list them instead of the groups."""
    yield f"equal in all bits: {len(names)}"
    statuses = Counter(runs[name]["status"] for name in names)
    yield "  " + ", ".join(f"{count} {status}" for status, count in statuses.items())
    groups = Counter(name.partition("/")[0] for name in names)
    counts = ", ".join(f"{name} {count}" for name, count in groups.items())
    yield from (f"  {name}" for name in names) if list_all else [f"  {counts}"]


def _table(differences: list[Difference]) -> Iterator[str]:
    """Yield the lines of a table with the runs that differ."""
    if not differences:
        return
    width = max(len(each.name) for each in differences)
    yield ""
    yield f"{'differs':{width}}  {'model':>8}  {'metrics':>8}  in"
    for each in differences:
        yield f"{each.name:{width}}  {_number(each.model)}  {_number(each.metrics)}  {', '.join(each.parts)}"


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.1e'):>8}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
