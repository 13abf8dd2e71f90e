"""Methods beside each other: a learning rate for each by val/accuracy of the first seed, then several seeds with it.

    python experiments/fedsa_lora/compare.py OUT [strategy ...] [key=value ...]

A seed is that of the run, the partition and the shift. OUT gets a run directory each (METHOD-LR-SEED; one that is there is read
again) and table.md.
"""

import sys
from pathlib import Path

import numpy as np

import fl
from fl.cli import parse_overrides
from fl.storage.run import read_metrics

STRATEGIES = (
    "fedsa_lora fedit ffa_lora rolora flora flexlora fedex_lora hetlora lora_fair feddpa_lora local".split()  # fmt: skip
)
RATES, SEEDS = (0.03, 0.1, 0.3, 1.0, 3.0), range(5)
HERE = Path(__file__).parent


def measured(out: Path, name: str, rate: float, seed: int, overrides: dict) -> list[dict]:
    folder = out / f"{name}-{rate}-{seed}"
    if (folder / "model.safetensors").exists():
        return read_metrics(folder)
    settings = {"strategy": name, "client.lr": rate, "seed": seed, "partition.seed": seed, "shift.seed": seed}
    return fl.run(HERE / "digits.yaml", out=folder, **settings, **overrides).metrics


def row(out: Path, name: str, overrides: dict) -> str:
    tried = {rate: measured(out, name, rate, SEEDS[0], overrides)[-1]["val/accuracy"] for rate in RATES}
    rate = max(tried, key=tried.get)
    runs = [measured(out, name, rate, seed, overrides) for seed in SEEDS]
    own = np.array([run[-1]["clients/accuracy_weighted"] for run in runs])
    worst = np.mean([run[-1]["clients/accuracy_worst10"] for run in runs])
    up, down = (np.mean([r[f"{way}link_bytes"] / r["cohort_size"] for r in runs[0]]) for way in ("up", "down"))
    return f"| {name} | {rate} | {own.mean():.3f} ± {own.std(ddof=1):.3f} | {worst:.3f} | {up:,.0f} | {down:,.0f} |"


if __name__ == "__main__":
    out, *rest = sys.argv[1:]
    overrides = parse_overrides([text for text in rest if "=" in text])
    names = [name for name in rest if "=" not in name] or STRATEGIES
    lines = ["| strategy | lr | accuracy, mean ± std | worst tenth | bytes up | down |", "|---|---|---|---|---|---|"]
    for name in names:
        lines.append(row(Path(out), name, overrides))
        print(lines[-1], flush=True)
    Path(out, "table.md").write_text("\n".join(lines) + "\n")
