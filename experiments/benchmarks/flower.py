"""Measure seconds per round of Flower apps on our engine and on Flower's own simulation (fl/flower/bench.py).

python -m experiments.benchmarks.flower [softmax softmax_cohort_only femnist_mlp] [--turns 2] [--ours 5] [--flower 2]
"""

from __future__ import annotations

import argparse

from fl.flower.bench import SIDES, WORKLOADS, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workloads", nargs="*", help=f"some of {list(WORKLOADS)}; default: all")
    parser.add_argument("--turns", type=int, default=2, help="number of turns of each side")
    parser.add_argument("--ours", type=int, default=5, help="our rounds per turn")
    parser.add_argument("--flower", type=int, default=2, help="Flower's rounds per turn")
    parser.add_argument("--workers", type=int, default=2, help="number of processes of each side")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a turn is stopped")
    arguments = parser.parse_args()
    unknown = set(arguments.workloads) - WORKLOADS.keys()
    if unknown:
        parser.error(f"{sorted(unknown)} not in {list(WORKLOADS)}")
    print("| workload | nodes | cohort | ours, s per round | Flower, s per round | ratio |\n|---|---|---|---|---|---|")
    for name in arguments.workloads or WORKLOADS:
        rounds = {side: getattr(arguments, side) for side in SIDES}
        seconds = compare(name, arguments.turns, rounds, arguments.workers, arguments.limit)
        workload, ours, theirs = WORKLOADS[name], seconds["ours"], seconds["flower"]
        if ours is None:
            parser.error(f"{name}: our side ended no second round within {arguments.limit:.0f} s")
        # Flower did not end its second round within the limit: a round takes at least half of the limit
        bound = "" if theirs else "> "
        theirs = theirs or arguments.limit / 2
        figures = f"{ours:.3f} | {bound}{theirs:.3f} | {bound}{theirs / ours:.1f}"
        print(f"| `{name}` | {workload.nodes:,} | {workload.cohort:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
