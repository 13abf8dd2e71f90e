"""Memory of driver and two workers: python -m experiments.language.memory [--width 1024].

A causal model with random weights is trained with LoRA by two workers, once with 8 clients a round and once with 64. At
the end of each round the proportional set sizes (PSS) of the driver and of its workers are added up: a page that
several processes map counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

import fl
from experiments.language.corpus import speech_rows
from experiments.language.pretrain import make_model, make_tokenizer

COHORTS = (8, 64)


class Memory(fl.Callback):
    """Write the sum of proportional set sizes, in MB, and the number of workers after each round."""

    def measure(self, run: Any, row: Mapping[str, Any]) -> dict[str, float]:
        children = psutil.Process().children(recursive=True)
        workers = [child.pid for child in children if child.name().startswith("ray::Actor")]
        return {"pss": sum(map(proportional_size, [os.getpid(), *workers])), "workers": len(workers)}


def proportional_size(pid: int) -> float:
    """Return the proportional set size of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1e3


def measured(model: str, cohort: int, folder: Path) -> dict[str, float]:
    """Return the last row of a run of two rounds with `cohort` clients in each."""
    rows, _ = speech_rows()
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row | {"client": str(i)}) + "\n" for i, row in enumerate(rows[:64])))
    config = {
        "rounds": 2,
        "data": {
            "name": "instructions",
            "path": str(path),
            "tokenizer": model,
            "clients": "client",
            "template": "{input}",
        },
        "partition": "natural",
        "splits": {"val": 0.0},
        "task": "instruct",
        "model": {"name": "causal", "path": model, "adapter": {"name": "lora", "targets": ["all-linear"]}},
        "cohort": {"size": cohort},
        "strategy": "fedit",
        "client": {"steps": 1, "batch": 1},
        "evaluation": {"every": 2, "server": False, "clients": 0},
        "execution": {"executor": "ray", "workers": 2},
    }
    return dict(fl.run(config, out=folder / str(cohort), progress=False, callbacks=[Memory()]).metrics[-1])


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="width of the model")
    arguments = parser.parse_args()
    rows, _ = speech_rows()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = make_model(arguments.width)
        model.save_pretrained(folder / "model")
        make_tokenizer([f"{row['input']} {row['output']}" for row in rows]).save_pretrained(folder / "model")
        base = sum(p.numel() for p in model.parameters()) * 4 / 1e6
        del model
        print("| base, MB | clients a round | workers | driver and workers, MB |\n|---:|---:|---:|---:|")
        for cohort in COHORTS:
            with get_context("spawn").Pool(1) as pool:  # a driver of its own
                row = pool.apply(measured, (str(folder / "model"), cohort, folder))
            print(f"| {base:.0f} | {cohort} | {row['workers']:.0f} | {row['pss']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
