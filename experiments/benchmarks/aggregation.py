"""`fl bench aggregation`: mean, median and trimmed mean of 10 and 100 updates of 1,000,000 float32, beside NumPy.

Ours are the reductions of the strategies as a round calls them. A mean is lifted and folded as for clients that train
together. For the median and the trimmed mean, "ours" reads vectors in memory, and "ours, through files" also writes
them to a scratch file first, as rounds do, so that memory does not grow with the cohort. Each result is compared with
NumPy's in float64 before anything is measured. Then all take turns; each figure is the median of the turns. With one
thread, times are CPU seconds of the process, which depend little on what else the machine does; else wall time.

NumPy has two ways for a weighted mean: `np.average`, and the matrix product `weights @ rows` of its BLAS library, whose
order of additions depends on library and processor. NumPy's trimmed mean sorts: `np.partition` takes longer. torch
sorts columns in 10 to 15 times NumPy's time, so it takes part in the mean only.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.method.fold import Fold
from fl.method.reduction import Collect, Meta, WeightedMean
from fl.storage.segments import Segments
from fl.tensors.params import Params
from strategies.median import median
from strategies.trimmed_mean import Trim

COHORTS, LENGTH, TURNS = (10, 100), 1_000_000, 7
BETA = 0.1  # of the trimmed mean
TOLERANCE = 1e-6  # largest difference from float64, of the standard deviation of the updates; the same for NumPy

# Mean of its benchmark through Python, 10 clients, about 1,000,000 parameters, one per client trimmed at each end
PUBLISHED = {"mean": 4.0, "median": 94.2, "trimmed mean": 101.0}
PUBLISHED_BY = (
    "velocity-fl, docs/benchmarks.md of github.com/ajbarea/velocity-fl, AMD Ryzen 5 3600X, snapshot of 2026-04-23"
)


@dataclass(frozen=True)
class InMemory:
    """A vector in memory where a reduction expects one on disk, as in asynchronous servers."""

    vector: Tensor

    def open(self) -> Tensor:
        return self.vector


@dataclass(frozen=True, eq=False)
class Updates:
    """The updates of a cohort: rows (n, P), and the numbers of samples of the clients (n,)."""

    rows: Tensor
    examples: Tensor
    scratch: Segments

    @classmethod
    def draw(cls, clients: int, length: int, folder: Path) -> Updates:
        generator = torch.Generator().manual_seed(clients)
        rows = torch.randn(clients, length, generator=generator)
        scratch = Segments(folder)
        scratch.write_to(0)
        return cls(rows, torch.randint(10, 100, (clients,), generator=generator), scratch)

    def folded(self) -> Tensor:
        reduction, clients = WeightedMean(), len(self.rows)
        fold = Fold(reduction, clients)
        fold.add_stacked(0, clients, fold.lifted(self.rows, Meta(torch.arange(clients), self.examples), clients))
        return fold.finish()

    def collected(self, reduction: Collect, spill: Callable[[Tensor], Any]) -> Tensor:
        fold = Fold(reduction, len(self.rows))
        for k, row in enumerate(self.rows):
            fold.add(0, k, reduction.lift(Params.of({"w": row}), Meta(k, int(self.examples[k]), spill=spill)))
        return fold.finish()["w"]

    def filed(self, reduction: Collect) -> Tensor:
        self.scratch.empty()
        return self.collected(reduction, self.scratch.append_vector)


Call = Callable[[], Any]
Clock = Callable[[], float]


def contestants(updates: Updates, rule: str) -> dict[str, Call]:
    """Contestant -> call that returns the reduced updates, (P,)."""
    rows, n = updates.rows.numpy(), len(updates.rows)
    if rule == "mean":
        weights = updates.examples.numpy().astype(np.float32)
        shares, torch_shares = weights / weights.sum(), (updates.examples / updates.examples.sum()).float()
        return {
            "ours": updates.folded,
            "numpy": lambda: np.average(rows, axis=0, weights=weights),
            "numpy, weights @ rows": lambda: shares @ rows,
            "torch, weights @ rows": lambda: torch_shares @ updates.rows,
        }
    cut = (n - 1) // 2 if rule == "median" else n // 10
    reduction, middle = Collect(median if rule == "median" else Trim(BETA)), slice(cut, n - cut)
    calls: dict[str, Call] = {
        "ours": lambda: updates.collected(reduction, InMemory),
        "ours, through files": lambda: updates.filed(reduction),
        "numpy": (lambda: np.median(rows, axis=0))
        if rule == "median"
        else lambda: np.sort(rows, axis=0)[middle].mean(0),
    }
    return calls | ({"numpy, np.sort": lambda: np.sort(rows, axis=0)[middle].mean(0)} if rule == "median" else {})


def exact(updates: Updates, rule: str) -> np.ndarray:
    """The result in float64, (P,), by NumPy."""
    rows, n = updates.rows.numpy().astype(np.float64), len(updates.rows)
    if rule == "mean":
        return np.average(rows, axis=0, weights=updates.examples.numpy())
    if rule == "median":
        return np.median(rows, axis=0)
    return np.sort(rows, axis=0)[n // 10 : n - n // 10].mean(0)


def measure(seconds: float, threads: int, say: Callable[[str], None], length: int = LENGTH) -> list[dict[str, Any]]:
    """Check and measure all; one dict per rule, cohort and contestant.

    Args:
        seconds: approximate time to measure each contestant.
        threads: of torch, which ours use, too.
        say: prints a line of progress.
        length: numbers per update.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="fl-aggregation-") as folder:
            found = []
            for clients in COHORTS:
                updates = Updates.draw(clients, length, Path(folder) / str(clients))
                for rule in PUBLISHED:
                    say(f"aggregation: {rule} of {clients} x {length:,}")
                    found += _measured(updates, rule, seconds, time.process_time if threads == 1 else time.perf_counter)
                updates.scratch.close()
            return found
    finally:
        torch.set_num_threads(before)


def _measured(updates: Updates, rule: str, seconds: float, clock: Clock) -> list[dict[str, Any]]:
    calls, expected = contestants(updates, rule), exact(updates, rule)
    errors = {name: float(np.abs(np.asarray(call()) - expected).max()) for name, call in calls.items()}
    if errors["ours"] > TOLERANCE or errors.get("ours, through files", 0.0) > TOLERANCE:
        raise AssertionError(f"{rule} of {len(updates.rows)}: ours differ from NumPy in float64: {errors}")
    spent = {name: _time(call, 1, clock) for name, call in calls.items()}
    repeats = {name: max(1, round(seconds / TURNS / max(spent[name], 1e-6))) for name in calls}
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS):
        for name in list(calls) if turn % 2 == 0 else reversed(calls):
            turns[name].append(_time(calls[name], repeats[name], clock))
    clients, length = updates.rows.shape
    common = {"rule": rule, "clients": clients, "parameters": length, "bytes": updates.rows.nbytes}
    return [common | {"contestant": name, "turns": turns[name], "error": errors[name]} for name in calls]


def _time(call: Call, repeats: int, clock: Clock) -> float:
    """Seconds per call."""
    began = clock()
    for _ in range(repeats):
        call()
    return (clock() - began) / repeats
