"""Flower apps on our engine and on Flower's own simulation: what a round takes, see fl/flower/bench.py.

python -m experiments.benchmarks.flower [softmax softmax_cohort_only femnist_mlp] [--turns 2] [--ours 5] [--flower 2] [--limit 900]
"""

from __future__ import annotations

import argparse

from fl.flower.bench import SIDES, WORKLOADS, compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", help=f"of {list(WORKLOADS)}; all if none is named")
    parser.add_argument("--turns", type=int, default=2, help="how often each side runs")
    parser.add_argument("--ours", type=int, default=5, help="rounds of ours in a turn")
    parser.add_argument("--flower", type=int, default=2, help="rounds of Flower's in a turn")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--limit", type=float, default=900, help="seconds for a turn, after which it is stopped")
    asked = parser.parse_args()
    unknown = set(asked.workloads) - WORKLOADS.keys()
    if unknown:
        parser.error(f"{sorted(unknown)} not in {list(WORKLOADS)}")
    print("| workload | nodes | cohort | ours, s a round | Flower, s a round | ratio |\n|---|---|---|---|---|---|")
    for name in asked.workloads or WORKLOADS:
        rounds = {side: getattr(asked, side) for side in SIDES}
        found = compare(name, asked.turns, rounds, asked.workers, asked.limit)
        of, ours, theirs = WORKLOADS[name], found["ours"], found["flower"]
        if ours is None:
            parser.error(f"{name}: not one round of ours in {asked.limit:.0f} s")
        least = (
            "" if theirs else "> "
        )  # no second round within the limit, which the first one shared: half of it at least
        theirs = theirs or asked.limit / 2
        figures = f"{ours:.3f} | {least}{theirs:.3f} | {least}{theirs / ours:.1f}"
        print(f"| `{name}` | {of.nodes:,} | {of.cohort:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
