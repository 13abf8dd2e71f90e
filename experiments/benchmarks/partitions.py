"""How long partitioners take: `python -m experiments.benchmarks.partitions [--rows 2000000] [--clients 100000]`

Each is called once to warm up and then `--repeats` times on random labels of 10 classes; the table shows the fastest and the slowest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from fl.data.partition import Partition
from fl.data.partition_stats import skew
from partitions.dirichlet import dirichlet
from partitions.extended_dirichlet import extended_dirichlet
from partitions.file import from_owners
from partitions.iid import iid
from partitions.inner_dirichlet import inner_dirichlet
from partitions.natural import natural
from partitions.pathological import pathological
from partitions.quantity import quantity
from partitions.shards import shards


def workloads(rows: int, clients: int, classes: int = 10) -> dict[str, Callable[[], object]]:
    draw = np.random.default_rng(0)
    labels, ids = draw.integers(0, classes, rows), draw.integers(0, clients, rows)
    sizes = np.diff(quantity(rows, clients, skew=0.5)[1])
    made = Partition(*dirichlet(labels, clients, 0.5))
    return {
        "iid": lambda: iid(rows, clients),
        "natural": lambda: natural(ids),
        "file (client of each row)": lambda: from_owners(ids),
        "dirichlet, alpha .5, min_size 5": lambda: dirichlet(labels, clients, 0.5, 5),
        "dirichlet, alpha .5, balanced": lambda: dirichlet(labels, clients, 0.5, balanced=True),
        "inner_dirichlet, log-normal sizes": lambda: inner_dirichlet(labels, sizes, 0.5),
        "extended_dirichlet, 2 classes": lambda: extended_dirichlet(labels, clients, 2, 0.5),
        "pathological, 2 classes": lambda: pathological(labels, clients, 2),
        "shards": lambda: shards(labels, clients),
        "quantity, log-normal": lambda: quantity(rows, clients, "lognormal"),
        "quantity, power law": lambda: quantity(rows, clients, "power_law"),
        "hold_out, val .1, test .2": lambda: made.hold_out(0.1, 0.2, 0),
        "statistics of fl partition": lambda: skew(labels, made),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {"rows": 2_000_000, "clients": 100_000, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    print(f"| {chosen.clients:,} clients, {chosen.rows:,} rows | fastest, s | slowest, s |\n|---|---|---|")
    for name, run in workloads(chosen.rows, chosen.clients).items():
        run()
        taken = []
        for _ in range(chosen.repeats):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        print(f"| {name} | {min(taken):.2f} | {max(taken):.2f} |", flush=True)


if __name__ == "__main__":
    main()
