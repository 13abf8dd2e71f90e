"""Speed of methods whose clients keep a state of the model's size, beside the machine's copy rate.

    python -m experiments.benchmarks.states [--turns 7] [--tree OLD] [--million]

FedAvg, SCAFFOLD and FedDyn train femnist_mlp.yaml with 64 of 128 clients per round. They take turns, round by round,
each in a process of its own with one thread. Before the first turn every client has a state. A SCAFFOLD client reads
its state and writes the new one, so a round reads and writes the states of its cohort. The bound of a method is

    1 / (1 / FedAvg + bytes / copy rate)        clients/s; bytes: of a client's state, read plus written

The copy rate is measured in each turn: a file with the states of a cohort is copied over another one, one state at a
time, by plain `read` and `write`. Both files are in the page cache. The rate is bytes read plus written per second.

All seconds are CPU seconds of the process, with those of the thread that writes commits through to the disk. `--tree`
measures another checkout by the same turns, with its own code. `--million` measures SCAFFOLD with softmax regression
and 10,000 of 1,000,000 clients per round (experiments/benchmarks/scale.py) in place of femnist_mlp. There nearly every
state is a client's first, so each round takes 27 MB of new file pages. A virtual machine gives pages that it has never
used at 0.4 to 0.6 GB/s and others at 5 GB/s, so 1 GB is written and removed before the first turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
METHODS = ("fedavg", "scaffold", "feddyn")
CLIENTS, COHORT, WARM_UP = 128, 64, 10  # 0.1 % of the clients have no state after the warm-up
USED = 1 << 30  # bytes of file pages that are used before the first turn of --million


class Process:
    """A run in a process of its own, with the code of a checkout. It takes one round at a time."""

    def __init__(self, tree: Path, method: str, million: bool):
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-W", "ignore", str(HERE), "--serve", method, *(["--million"] if million else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, cwd=tree, stdin=pipe, stdout=pipe, text=True)

    def round(self) -> dict[str, float]:
        """Run and commit a round; return its figures, see `serve`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError(f"a run ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End the run."""
        self.process.communicate()


def serve(method: str, million: bool) -> None:
    """Run a round for each line of the input; print CPU seconds per client, and bytes of client states on disk."""
    import torch

    from experiments.benchmarks import methods, scale
    from fl.config.config import resolve
    from fl.config.reading import read

    torch.set_num_threads(1)
    if million:
        cohort = {"name": "uniform", "size": 10_000}
        settings = scale.config(1_000_000, 0, 10**6, (), cohort=cohort, strategy=method)
        config = resolve(read({**settings, "execution": {"executor": "serial", "workers": 1}}))
    else:
        methods.SIZES["femnist_mlp"] = {"data.clients": CLIENTS, "cohort.size": COHORT}
        config = methods.configuration("femnist_mlp", method)
    with tempfile.TemporaryDirectory() as folder:
        run = methods.Run(config, Path(folder) / "run")
        for _ in range(2 if million else WARM_UP):
            run.round()
        for _ in sys.stdin:
            seconds, states = run.round(), run.simulation.states
            index = states.index
            length = 0 if index is None else int(index[:, 2].max())
            disk = sum(path.stat().st_size for path in states.folder.glob("*.seg"))
            figures = {"seconds": seconds, "length": length, "disk": disk, "live": states.live}
            print(json.dumps(figures), flush=True)
        run.close()


def use_memory(path: Path) -> None:
    """Write a file of USED bytes and remove it, so that the pages of later files are not new to the machine."""
    with open(path, "wb", buffering=0) as file:
        for _ in range(USED >> 20):
            file.write(bytes(1 << 20))
    path.unlink()


def copy_rate(length: int, folder: Path) -> float:
    """Return bytes read plus written per CPU second by a copy of COHORT states of `length` bytes over another file."""
    names = [folder / name for name in ("source", "target")]
    for path in names:
        if not path.is_file():
            path.write_bytes(os.urandom(length) * COHORT)
    with open(names[0], "rb", buffering=0) as source, open(names[1], "r+b", buffering=0) as target:
        begin = time.process_time()
        while data := source.read(length):
            target.write(data)
        return 2 * length * COHORT / (time.process_time() - begin)


def measure(turns: int, trees: list[Path], million: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each turn by "tree method", with the copy rate."""
    names = ("scaffold",) if million else METHODS
    runs = {f"{place} {name}": Process(tree, name, million) for place, tree in enumerate(trees) for name in names}
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in runs}
    with tempfile.TemporaryDirectory() as folder:
        if million:
            use_memory(Path(folder) / "pages")
        for _ in range(turns):
            for key, run in runs.items():
                found[key].append(dict(run.round()))
            length = int(found["0 scaffold"][-1]["length"])
            for key in runs:
                found[key][-1]["copy"] = copy_rate(length, Path(folder))
    for run in runs.values():
        run.close()
    return found


def median(values: list[float]) -> float:
    """Return the median of turns."""
    return statistics.median(values)


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the lines to print."""
    lines = []
    fedavg = found.get("0 fedavg")
    for key, rows in found.items():
        place, name = key.split()
        who = name if place == "0" else f"{name}, the other tree"
        line = f"{who}: {1 / median([row['seconds'] for row in rows]):,.0f} clients/s"
        if rows[-1]["live"]:
            line += f"; disk {rows[-1]['disk'] / rows[-1]['live']:.2f} x the live states"
        if fedavg and name != "fedavg":
            nbytes = 2 * rows[0]["length"]
            bounds = [1 / (f["seconds"] + nbytes / row["copy"]) for f, row in zip(fedavg, rows)]
            share = median([1 / row["seconds"] / bound for row, bound in zip(rows, bounds)])
            line += f"; state {nbytes / 1e6:.2f} MB read + written, copy {median([r['copy'] for r in rows]) / 1e9:.1f}"
            line += f" GB/s, bound {median(bounds):,.0f} clients/s, share {share:.2f}"
        lines.append(line)
    for key, rows in found.items():
        if key.startswith("1 "):
            own = found[f"0 {key[2:]}"]
            ratios = [old["seconds"] / new["seconds"] for old, new in zip(rows, own)]
            lines.append(
                f"{key[2:]}: {median(ratios):.2f} x the other tree, {min(ratios):.2f} to {max(ratios):.2f}; all turns "
                f"together {sum(r['seconds'] for r in rows) / sum(r['seconds'] for r in own):.2f} x"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a line for each method and a line for each comparison."""
    parser = argparse.ArgumentParser(description="Measure methods with client states beside the copy rate.")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tree", type=Path, help="another checkout, measured by turns")
    parser.add_argument("--million", action="store_true", help="SCAFFOLD, 10,000 of 1,000,000 clients")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.million)
        return
    trees = [HERE.parents[2], *([arguments.tree.resolve()] if arguments.tree else [])]
    print(report(measure(arguments.turns, trees, arguments.million)))


if __name__ == "__main__":
    main()
