"""Random inputs (hypothesis): each is refused with one clear line, or it keeps the laws of its kind."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis.strategies import SearchStrategy

from experiments.faults.table import Outcome

Law = Callable[[Any], None]


def hold(name: str, inputs: SearchStrategy[Any], law: Law, examples: int, seed: int) -> Outcome:
    """Try a law on random inputs. An input that breaks it is shrunk, and printed with the error."""
    begin, tried = time.perf_counter(), 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(inputs)
    def attempt(value: Any) -> None:
        nonlocal tried
        tried += 1
        law(value)

    notes = f"hypothesis seed {seed}"
    try:
        attempt()
    except Exception as error:
        traceback.print_exc()
        notes += f"; {type(error).__name__}: {error}"[:300]
        return Outcome(name, tried, 0, False, time.perf_counter() - begin, notes.replace("\n", " "))
    return Outcome(name, tried, 0, True, time.perf_counter() - begin, notes)


def cases(examples: int) -> dict[str, Callable[[Path, int], Outcome]]:
    """Return the cases by name; `examples`: inputs in all."""
    from experiments.faults.fuzz import configurations, parts, readers, runs

    groups = (*configurations.LAWS, *parts.LAWS, *readers.LAWS, *runs.LAWS)
    whole = sum(share for _, share, _, _ in groups)

    def case(name: str, share: int, inputs: Callable[[Path], Any], law: Callable[[Path], Law]):
        count = -(-examples * share // whole)
        return lambda out, seed: hold(f"fuzz, {name}", inputs(out), law(out), count, seed)

    return {f"fuzz, {name}": case(name, share, inputs, law) for name, share, inputs, law in groups}
