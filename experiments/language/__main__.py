"""All LoRA rules on one page: python -m experiments.language OUT [--seeds 3] [--rules fedit flora ...] [--task topics].

    OUT/model    the small model, pretrained first if it is missing (experiments/language/pretrain.py)
    OUT/data     the instructions (corpus.py)
    OUT/runs     a run for each rule and seed; runs that are there are not repeated
    OUT/page.md  score, MB up and down, clients per second, peak memory: mean and standard deviation over seeds

Each run is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.language import corpus, pretrain

HERE = Path(__file__).parent
MIXED = {"ranks": [2, 4, 8]}
RULES: dict[str, dict[str, Any]] = {  # name on the page -> changes of the configuration
    "FedIT": {"strategy": "fedit"},
    "FFA-LoRA": {"strategy": "ffa_lora"},
    "FFA-VeRA": {"strategy": "ffa_lora", "model.adapter": {"name": "vera", "rank": 64, "targets": ["all-linear"]}},
    "FedSA-LoRA": {"strategy": "fedsa_lora"},
    "RoLoRA": {"strategy": "rolora"},
    "FLoRA": {"strategy": "flora"},
    "FLoRA, ranks 2 4 8": {"strategy": {"name": "flora", **MIXED}},
    "FlexLoRA": {"strategy": "flexlora"},
    "FlexLoRA, ranks 2 4 8": {"strategy": {"name": "flexlora", **MIXED}},
    "FedEx-LoRA": {"strategy": "fedex_lora"},
    "HetLoRA, ranks 2 4 8": {"strategy": {"name": "hetlora", **MIXED}},
    "LoRA-FAIR": {"strategy": "lora_fair"},
    "FedDPA": {"strategy": "feddpa_lora"},
    "FLASC .25 .25": {"strategy": {"name": "flasc", "lr": 0.002}},
    "sparse adapter .25": {"strategy": {"name": "flasc_fixed", "lr": 0.002}},
}
COLUMNS = ("score", "perplexity", "MB up", "MB down", "clients/s", "peak MB")


def one_run(folder: Path, task: str, rule: str, seed: int, out: Path) -> None:
    """Run one rule with one seed, and write its figures to OUT/figures.json."""
    import fl

    model, data = folder / "model", folder / "data"
    changes = {
        "seed": seed,
        "data.path": str(data / f"{task}.jsonl"),
        "data.test": str(data / f"{task}_test.jsonl"),
        **dict.fromkeys(("data.tokenizer", "task.tokenizer", "model.path"), str(model)),
        **RULES[rule],
    }
    if task == "topics":
        changes["partition.seed"] = seed
    rows = fl.run(HERE / f"{task}.yaml", out=out, progress=False, **changes).metrics
    last, clients = rows[-1], sum(row["cohort_size"] for row in rows)
    figures = {
        "score": last["eval/exact_match" if task == "topics" else "eval/accuracy"],
        "perplexity": last["eval/perplexity"],
        "MB up": sum(row["uplink_bytes"] for row in rows) / 1e6,
        "MB down": sum(row["downlink_bytes"] for row in rows) / 1e6,
        "clients/s": clients / sum(row["busy_seconds"] for row in rows),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    (out / "figures.json").write_text(json.dumps(figures))


def page(folder: Path, task: str, seeds: int) -> str:
    """Return the table of the runs that have ended."""
    lines = [f"| rule | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for rule in RULES:
        files = [place(folder, task, rule, seed) / "figures.json" for seed in range(seeds)]
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        if found:
            cells = [_cell([figures[name] for figures in found]) for name in COLUMNS]
            lines.append(f"| {rule} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}"


def place(folder: Path, task: str, rule: str, seed: int) -> Path:
    """Return the run directory of a rule and a seed."""
    name = "".join(c if c.isalnum() else "_" for c in rule.lower())
    return folder / "runs" / task / name / str(seed)


def main() -> None:
    """Read the command line, make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--task", choices=("topics", "speech"), default="topics")
    parser.add_argument("--steps", type=int, default=500, help="steps of the pretraining")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # the seed of a single run, in its own process
    arguments = parser.parse_args()
    folder: Path = arguments.out
    if arguments.one is not None:
        (rule,) = arguments.rules
        one_run(folder, arguments.task, rule, arguments.one, place(folder, arguments.task, rule, arguments.one))
        return
    if not (folder / "model" / "config.json").is_file():
        pretrain.pretrain(folder / "model", arguments.steps)
    if not (folder / "data" / "speech_test.jsonl").is_file():
        corpus.write(folder / "data")
    for seed in range(arguments.seeds):
        for rule in arguments.rules:
            if (place(folder, arguments.task, rule, seed) / "figures.json").is_file():
                continue
            own = [str(folder), "--task", arguments.task, "--rules", rule, "--one", str(seed)]
            command = [sys.executable, "-m", "experiments.language", *own]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            (folder / "page.md").write_text(page(folder, arguments.task, arguments.seeds))
            print(f"{rule}, seed {seed}: done", flush=True)
    print(page(folder, arguments.task, arguments.seeds))


if __name__ == "__main__":
    main()
