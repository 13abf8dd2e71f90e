"""Time rounds of plain FedAvg beside private ones, in one process, taking turns.

    python -m experiments.benchmarks.privacy [COHORT ...]      default: 100 1000

The MLP of femnist_mlp.yaml (209,662 parameters), rounds without evaluation. A round of a private run draws clients with
probability cohort / 3,400, so the times are given per client. They are CPU milliseconds of the process, which do not
depend on what else the machine does. Runs take turns; the table has the median round.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation

CONFIG = Path(__file__).with_name("femnist_mlp.yaml")
CLIENTS = 3_400  # of the configuration
ROUNDS = {100: 6, 1000: 3}  # by cohort; the first is not counted
VARIANTS: dict[str, dict[str, Any]] = {
    "plain FedAvg": {},
    "clipping only": {"noise_multiplier": 0.0},
    "Gaussian": {"noise_multiplier": 1.0},
    "Gaussian, adaptive": {"noise_multiplier": 1.0, "clipping": {"name": "adaptive", "sigma_b": 5.0}},
    "Gaussian, per layer": {"noise_multiplier": 1.0, "clipping": {"name": "per_layer", "bound": 0.5}},
    "Laplace": {"noise_multiplier": 1.0, "mechanism": "laplace"},
    "Gaussian, secret seeds": {"noise_multiplier": 1.0, "seeds": "cryptographic"},
    "Gaussian, local": {"noise_multiplier": 1.0, "where": "local"},
}


def configured(name: str, cohort: int) -> dict[str, Any]:
    """Return the overrides of a variant."""
    common: dict[str, Any] = {"rounds": 100, "execution.executor": "serial", "evaluation.every": 100}
    if not VARIANTS[name]:
        return {**common, "cohort": {"name": "uniform", "size": cohort}}
    clipping = {"name": "fixed", "bound": 0.5}
    privacy = {"clipping": clipping, "delta": 1e-5, **VARIANTS[name]}
    sampling = {"name": "poisson", "rate": cohort / CLIENTS}
    return {**common, "cohort": None, "privacy": {**privacy, "sampling": sampling}}


def seconds(cohort: int) -> dict[str, list[float]]:
    """Return the CPU milliseconds per client of each round, by variant."""
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for name in VARIANTS:
            config = resolve(read(str(CONFIG), configured(name, cohort)))
            runs[name] = Simulation(config, Path(folder) / name.replace(" ", "_"))
            runs[name].start_workers()
            runs[name].before_rounds()
        for round_ in range(ROUNDS.get(cohort, 4)):
            for name, run in runs.items():
                start = time.process_time()
                row = run.one_round()
                if round_:
                    found[name].append(1e3 * (time.process_time() - start) / row["cohort_size"])
        for run in runs.values():
            run.__exit__(None, None, None)
    return found


def table(cohort: int) -> str:
    """Return the table of one size of cohorts."""
    found = seconds(cohort)
    plain = statistics.median(found["plain FedAvg"])
    lines = [f"| cohort {cohort:,} | CPU ms per client | on top of plain |", "|---|---:|---:|"]
    for name, times in found.items():
        middle = statistics.median(times)
        lines.append(f"| {name} | {middle:.2f} | {100 * (middle / plain - 1):+.0f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["100", "1000"]:
        print(table(int(argument)), flush=True)
