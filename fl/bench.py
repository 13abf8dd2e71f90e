"""`fl bench`: our rounds beside bare torch loops, on the same data, model, batches and cohorts.

    ours   | k rounds |           | k rounds |           | k rounds |           ...      Ray workers, ledger on, no evaluation
    bare   |          | same k    |          | same k    |          | same k    ...      one process per worker, at once

A bare loop is what one would write by hand: one module, foreach updates, nothing counted or kept; each takes its share of
every cohort and waits for nobody. Both sides run the same rounds by turns, so that a busy machine slows both; figures are
medians over the turns.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import fl
from fl import assembly, simulation
from fl.config import Config, read, resolve
from fl.simulation import Simulation

WORKLOADS = Path(fl.__file__).parent.parent / "experiments" / "benchmarks"
BARS = {"cnn_small": 0.95, "femnist_mlp": 0.95, "softmax": 10.0, "lora": 1.5}  # clients per second: ours / bare loops
WARM_UP = 2  # rounds of ours that are not counted
TURNS = 7
NEVER = 10**9

# what is not measured
OVERRIDES = {
    "rounds": NEVER,
    "evaluation": {"every": NEVER, "server": False},
    "checkpoint": {"every": NEVER, "best": False},
}


def main(workloads: list[str], seconds: float, out: Path | None, as_json: bool) -> int:
    """Measure workloads (names in experiments/benchmarks, or YAML files; none: all of `BARS`), each for about `seconds`
    after warm-up. Returns 1 if one stays below its bar."""
    results = [measure(path, seconds) for path in map(find, workloads or BARS)]
    text = json.dumps(results, indent=2) + "\n"
    if out:
        out.write_text(text)
    if as_json:
        print(text, end="")
    else:
        _print(results)
    return int(any(r["bar"] is not None and r["ratio"] < r["bar"] for r in results))


def find(workload: str) -> Path:
    """The YAML file of a workload."""
    for path in (WORKLOADS / f"{workload}.yaml", Path(workload)):
        if path.is_file():
            return path
    known = sorted(p.stem for p in WORKLOADS.glob("*.yaml"))
    raise ValueError(f"workload: {workload!r} is not one of {known} (nor a YAML file)")


def measure(path: Path, seconds: float) -> dict[str, Any]:
    """Clients per second of ours and of as many bare loops as we have workers, with all samples."""
    raw = read(path, OVERRIDES)
    config = resolve(raw)
    loops = [_Loop(raw, share, config.execution.workers) for share in range(config.execution.workers)]
    turns = _Turns(loops, seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            simulation.run(config, out=folder, watch=turns, stop=lambda: len(turns.bare) == TURNS)
            environment = json.loads((Path(folder) / "environment.json").read_text())
    finally:
        for loop in loops:
            loop.close()
    return {
        "workload": path.stem,
        **turns.facts,
        "ours_clients_per_second": statistics.median(turns.ours),
        "bare_clients_per_second": statistics.median(turns.bare),
        "ratio": statistics.median(ours / bare for ours, bare in zip(turns.ours, turns.bare)),
        "bar": BARS.get(path.stem),
        "rounds_per_turn": turns.length,
        "samples": {"ours": turns.ours, "bare": turns.bare},
        "machine": {key: environment[key] for key in ("processor", "cores", "platform", "python", "packages")},
    }


class _Turns:
    """Watches our run: the time from the end of one call to the next is ours, and within a call the bare loops have theirs."""

    def __init__(self, loops: list[_Loop], seconds: float):
        self.loops, self.seconds = loops, seconds
        self.facts: dict[str, Any] = {}
        self.ours: list[float] = []  # clients per second, turn by turn
        self.bare: list[float] = []
        self.length = 0  # rounds per turn; 0 while warming up
        self.rounds, self.clients, self.spent = [], 0, 0.0

    def __call__(self, event: str, value: Any) -> None:
        if event == "start":
            self._describe(value)
        elif event == "round":
            self._after_round(value, time.perf_counter() - self.resumed)
        self.resumed = time.perf_counter()

    def _describe(self, ours: Simulation) -> None:
        self.facts = {
            "workers": ours.config.execution.workers,
            "plan": ours.assembly.plan.kind,
            "chunk": ours.assembly.plan.chunk,
            "parameters": ours.assembly.model.numel,
        }

    def _after_round(self, row: dict[str, Any], seconds: float) -> None:
        if len(self.bare) == TURNS:  # the run asks whether to stop before it tells of a round, and so ends one later
            return
        if row["round"] < WARM_UP:
            bare = row["cohort_size"] / self._run_bare([row["round"]])
            self.length = max(1, round(self.seconds / TURNS / (seconds + bare))) if row["round"] == WARM_UP - 1 else 0
            return
        self.rounds.append(row["round"])
        self.clients += row["cohort_size"]
        self.spent += seconds
        if len(self.rounds) == self.length:
            self.ours.append(self.clients / self.spent)
            self.bare.append(self._run_bare(self.rounds))
            self.rounds, self.clients, self.spent = [], 0, 0.0

    def _run_bare(self, rounds: list[int]) -> float:
        """Clients per second of all loops together, each timed while the others run."""
        for loop in self.loops:
            loop.pipe.send(rounds)
        return sum(clients / seconds for clients, seconds in [loop.pipe.recv() for loop in self.loops])


class _Loop:
    """A bare loop in a process of its own, which takes every `shares`-th client of a cohort."""

    def __init__(self, raw: dict[str, Any], share: int, shares: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(raw, share, shares, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that the death of the loop ends our waiting

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(raw: dict[str, Any], share: int, shares: int, pipe: Connection) -> None:
    """Run the rounds asked for, answer (clients, seconds), until the pipe closes."""
    torch.set_num_threads(1)
    config = resolve(raw)
    dataset, (stage,) = assembly.load_data(config)
    partition = stage.partition
    module = assembly.build_model(config, dataset)
    sizes = partition.train_slices()[1]
    x, y = torch.from_numpy(dataset.train["x"]), torch.from_numpy(dataset.train["y"])
    while True:
        try:
            rounds = pipe.recv()
        except EOFError:
            return
        cohorts = [config.cohort.sample(None, r, config.seed, sizes)[1][share::shares] for r in rounds]
        rows = [[torch.from_numpy(partition.view_rows(int(c), "train")) for c in cohort] for cohort in cohorts]
        start = time.perf_counter()
        for clients in rows:
            bare_round(module, x, y, clients, config)
        pipe.send((sum(map(len, cohorts)), time.perf_counter() - start))


def bare_round(
    module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, clients: list[torch.Tensor], config: Config
) -> None:
    """One round of federated averaging over `clients`, the row numbers of each: the yardstick."""
    epochs, batch, lr = config.client.epochs, config.client.batch, config.client.lr
    leaves = [p for p in module.parameters() if p.requires_grad]
    weights = [p.detach() for p in leaves]  # the same memory
    received = [w.clone() for w in weights]
    total, examples = [torch.zeros_like(w) for w in weights], 0
    for rows in clients:
        torch._foreach_copy_(weights, received)
        for _ in range(epochs):
            order = rows[torch.randperm(len(rows))]
            for a in range(0, len(rows), batch):
                at = order[a : a + batch]
                loss = F.cross_entropy(module(x[at]), y[at])
                torch._foreach_add_(weights, torch.autograd.grad(loss, leaves), alpha=-lr)
        torch._foreach_add_(total, torch._foreach_sub(weights, received), alpha=len(rows))
        examples += len(rows)
    torch._foreach_copy_(weights, received)
    torch._foreach_add_(weights, total, alpha=1 / examples)


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    machine = results[0]["machine"]
    title = f"{machine['cores']} cores, {machine['processor']}, torch {machine['packages']['torch']}"
    table = Table("workload", "plan", title=title, caption="clients per second, medians")
    for column in ("ours", "bare loops", "ratio", "bar"):
        table.add_column(column, justify="right")
    for r in results:
        bar = "" if r["bar"] is None else f"{r['bar']:g}"
        colour = "green" if r["bar"] is None or r["ratio"] >= r["bar"] else "red"
        plan = f"{r['plan']} by {r['chunk']}, {r['workers']} workers"
        figures = f"{r['ours_clients_per_second']:,.0f}", f"{r['bare_clients_per_second']:,.0f}"
        table.add_row(r["workload"], plan, *figures, f"[{colour}]{r['ratio']:.2f}[/]", bar)
    Console().print(table)
