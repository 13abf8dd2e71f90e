"""Measure what secure aggregation costs: bytes, virtual seconds and CPU seconds of a round.

    python -m experiments.benchmarks.secure_aggregation                    cohorts of 10, 100 and 1,000
    python -m experiments.benchmarks.secure_aggregation --rounds 3 100     3 rounds, a cohort of 100

The workload is `femnist_mlp` (209,662 parameters) with one process. Cohorts of up to 100 use `secagg`, larger ones
`secagg_plus`. All devices have 20 Mbit/s down, 5 Mbit/s up, a latency of 50 ms and 1 ms per sample. Bytes are those of
one round, per client. CPU seconds are those of the cheapest round after the first one, which other programs on the
machine hardly influence.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fl

WORKLOAD = Path(__file__).with_name("femnist_mlp.yaml")
DEVICES = {"name": "identical", "ms_per_sample": 1.0, "down_mbps": 20.0, "up_mbps": 5.0, "latency_ms": 50.0}
GROUPS = ("model", "secure/counters", "secure/keys", "secure/shares", "secure/unmasking")


class Clock(fl.Callback):
    """Reads the process's CPU time at the start and after each round."""

    def __init__(self) -> None:
        self.seconds = [time.process_time()]

    def computed(self, row: Mapping[str, Any]) -> None:
        """Read the clock."""
        self.seconds.append(time.process_time())


def variants(cohort: int) -> dict[str, dict[str, Any]]:
    """Return the overrides of plain FedAvg, of secure aggregation without masks, and with them."""
    protocol = "secagg" if cohort <= 100 else "secagg_plus"
    return {
        "plain": {"secure_aggregation": None},
        f"{protocol}, masks: false": {"secure_aggregation": {"protocol": protocol, "masks": False}},
        protocol: {"secure_aggregation": {"protocol": protocol}},
    }


def measure(cohort: int, rounds: int) -> Iterator[list[str]]:
    """Yield the rows of the table for one size of cohorts."""
    common: dict[str, Any] = {"rounds": rounds, "cohort": {"size": cohort}, "execution": {"executor": "serial"}}
    common |= {"system": {"devices": DEVICES}, "evaluation": {"server": False, "every": rounds}}
    plain = 0.0
    for name, own in variants(cohort).items():
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock()
            result = fl.run(WORKLOAD, out=Path(folder) / "run", callbacks=[clock], **common, **own)
            table = result.ledger
        rows = table.to_pylist()
        last = [row for row in rows if row["round"] == rounds - 1]
        up, down = (
            {
                group: sum(r["encoded_bytes"] for r in last if (r["direction"], r["group"]) == (way, group))
                for group in GROUPS
            }
            for way in ("up", "down")
        )
        cpu = min(end - start for start, end in zip(clock.seconds[1:], clock.seconds[2:]))
        plain = plain or cpu
        cells = [f"{(up[group] + down[group]) / cohort:,.0f}" for group in GROUPS]
        seconds = result.metrics[-1]["simulated_seconds"]
        yield [f"{cohort:,}", name, *cells, f"{seconds:.2f}", f"{cpu:.2f}", f"{cpu / plain:.1f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohorts", nargs="*", type=int, default=[10, 100, 1000], help="sizes of cohorts")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each run, 2 or more")
    options = parser.parse_args()
    names = [group.removeprefix("secure/") for group in GROUPS]
    head = ["cohort", "variant", *(f"{name}, bytes" for name in names), "virtual s", "CPU s", "x plain"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for cohort in options.cohorts:
        for row in measure(cohort, options.rounds):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
