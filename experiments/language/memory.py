"""Memory of driver and two workers: python -m experiments.language.memory [--width 1536] [--strategy fedit].

A causal model with random weights is trained with LoRA by two workers, once with 8 clients a round and once with 64. At
the end of each round the proportional set sizes (PSS) of the driver and of its workers are added up: a page that
several processes map counts once. Beside it stands the bar:

    1.1 base + 2 chunk + 3 x 400 MB,    chunk = CHUNK (activations + 2 trained tensors)

base is the size of the file of weights. A chunk's activations are the tensors that one client's batch keeps for the
backward pass, counted by a hook of autograd; its trained tensors count twice, as parameters and as gradients. SGD has
no state.
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
import torch

import fl
from experiments.language.corpus import speech_rows
from experiments.language.pretrain import make_model, make_tokenizer
from fl.models.adapters.lora import LoRA
from fl.models.architectures.causal import Causal
from fl.tasks.instruct import Instruct

COHORTS, CHUNK = (8, 64), 4
TARGETS = ("all-linear",)


class Memory(fl.Callback):
    """Write the sum of proportional set sizes, in MB, and the number of workers after each round."""

    def measure(self, run: Any, row: Mapping[str, Any]) -> dict[str, float]:
        workers = [worker.pid for worker in workers_of_this_process()]
        return {"pss": sum(map(proportional_size, [os.getpid(), *workers])), "workers": len(workers)}


def workers_of_this_process() -> list[psutil.Process]:
    """Return the Ray workers that this process has started."""
    return [child for child in psutil.Process().children(recursive=True) if child.name().startswith("ray::Actor")]


def proportional_size(pid: int) -> float:
    """Return the proportional set size of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1e3


def chunk_size(model: str, texts: list[str]) -> float:
    """Return activations and trained tensors of a chunk, in MB: CHUNK clients, each with the longest of the texts."""
    from transformers import AutoTokenizer

    ids = max(AutoTokenizer.from_pretrained(model)(texts)["input_ids"], key=len)
    x = torch.tensor([ids], dtype=torch.int32)
    module = LoRA(targets=TARGETS).wrap(Causal(path=model).build((len(ids),), max(ids) + 1))
    known, kept = {p.data_ptr() for p in module.parameters()}, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = Instruct().objective(module, {"x": x, "y": x.long()})
    assert loss.requires_grad  # the saved tensors live as long as the loss
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) * 4
    return CHUNK * (sum(kept.values()) + 2 * trained) / 1e6


def measured(model: str, cohort: int, folder: Path, strategy: str) -> dict[str, float]:
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
        "model": {"name": "causal", "path": model, "adapter": {"name": "lora", "targets": list(TARGETS)}},
        "cohort": {"size": cohort},
        "strategy": strategy,
        "client": {"steps": 1, "batch": 1},
        "evaluation": {"every": 2, "server": False, "clients": 0},
        "execution": {"executor": "ray", "workers": 2, "plan": "flat", "chunk": CHUNK},
    }
    return dict(fl.run(config, out=folder / str(cohort), progress=False, callbacks=[Memory()]).metrics[-1])


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1536, help="width of the model")
    parser.add_argument("--strategy", default="fedit", help="a rule of LoRA")
    arguments = parser.parse_args()
    rows, _ = speech_rows()
    texts = [f"{row['input']} {row['output']}" for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = folder / "model"
        make_model(arguments.width).save_pretrained(path)
        make_tokenizer(texts).save_pretrained(path)
        base = (path / "model.safetensors").stat().st_size / 1e6
        with get_context("spawn").Pool(1) as pool:
            chunk = pool.apply(chunk_size, (str(path), texts[:64]))
        bar = 1.1 * base + 2 * chunk + 3 * 400
        print("| base, MB | chunk, MB | clients a round | workers | driver and workers, MB | bar, MB |")
        print("|---:|---:|---:|---:|---:|---:|")
        for cohort in COHORTS:
            with get_context("spawn").Pool(1) as pool:  # a driver of its own
                row = pool.apply(measured, (str(path), cohort, folder, arguments.strategy))
            figures = f"{base:.0f} | {chunk:.0f} | {cohort} | {row['workers']:.0f} | {row['pss']:,.0f} | {bar:,.0f}"
            print(f"| {figures} |", flush=True)


if __name__ == "__main__":
    main()
