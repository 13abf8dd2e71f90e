"""Measure the seconds that partitioners take.

    python -m experiments.benchmarks.partitions [--rows 2000000] [--clients 100000] [--repeats 3]

Each partitioner is called once to warm up and then --repeats times on random labels of 10 classes. The table shows the
fastest and the slowest call.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from fl.partitions.dirichlet import dirichlet
from fl.partitions.extended_dirichlet import extended_dirichlet
from fl.partitions.file import from_owners
from fl.partitions.iid import iid
from fl.partitions.inner_dirichlet import inner_dirichlet
from fl.partitions.natural import natural
from fl.partitions.pathological import pathological
from fl.partitions.quantity import quantity
from fl.partitions.shards import shards

from fl.data.partition import Partition
from fl.data.partition_stats import skew


def workloads(rows: int, clients: int, classes: int = 10) -> dict[str, Callable[[], object]]:
    draw = np.random.default_rng(0)
    labels, ids = draw.integers(0, classes, rows), draw.integers(0, clients, rows)
    sizes = np.diff(quantity(rows, clients, skew=0.5)[1])
    partition = Partition(*dirichlet(labels, clients, 0.5))
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
        "hold_out, val .1, test .2": lambda: partition.hold_out(0.1, 0.2, 0),
        "statistics of fl partition": lambda: skew(labels, partition),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="number of samples")
    parser.add_argument("--clients", type=int, default=100_000, help="number of clients")
    parser.add_argument("--repeats", type=int, default=3, help="number of measured calls")
    arguments = parser.parse_args()
    print(f"| {arguments.clients:,} clients, {arguments.rows:,} rows | fastest, s | slowest, s |\n|---|---|---|")
    for name, run in workloads(arguments.rows, arguments.clients).items():
        run()
        seconds = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        print(f"| {name} | {min(seconds):.2f} | {max(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
