"""Clients per second of fl, and of plain loops over peft's module: python -m experiments.language.speed MODEL.

Both train the same clients on the same rows with SGD on LoRA's factors, one thread a process; a batch is padded to its
longest row. A plain loop loads the server's factors, takes the steps, and computes the change; `--workers` loops run at
once, each with its own model and its share of the clients. Both are measured by turns, `--turns` times. The seconds are
those of the CPU, so other programs on the machine count little: of all loops, and of the driver with all workers. Each
turn prints its rates. The last line has the median and the range of the ratios of all turns; with several workers also
those of wall times, which need a machine without other programs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

import fl
from experiments.language.corpus import topic_rows
from experiments.language.memory import workers_of_this_process

ROWS, BATCH, LENGTH, RANK = 8, 4, 64, 8
TEMPLATE = "{input}\nTopic:"


class CPUTime(fl.Callback):
    """Write the CPU seconds of the driver and of its Ray workers after each round."""

    def measure(self, run: Any, row: Mapping[str, Any]) -> dict[str, float]:
        times = [process.cpu_times() for process in (psutil.Process(), *workers_of_this_process())]
        return {"cpu": sum(time.user + time.system for time in times)}


def plain(model: str, clients: list[list[dict[str, str]]]) -> tuple[float, float]:
    """Return the wall and the CPU seconds that a loop over peft's module takes for clients, after a first one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    module: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), settings)
    leaves = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in leaves]
    data = [[_tokens(tokenizer, row) for row in rows] for rows in clients]
    begin = _now()
    for number, rows in enumerate(data):
        if number == 1:
            begin = _now()
        for leaf, first in zip(leaves, start):
            leaf.data.copy_(first)
        optimiser = torch.optim.SGD(leaves, 0.1)
        for a in range(0, len(rows), BATCH):
            batch = rows[a : a + BATCH]
            longest = max(length for _, _, length in batch)
            ids, labels = (torch.stack([row[i][:longest] for row in batch]) for i in range(2))
            optimiser.zero_grad()
            module(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            optimiser.step()
        _ = [leaf.detach() - first for leaf, first in zip(leaves, start)]
    wall, cpu = _now()
    return wall - begin[0], cpu - begin[1]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _tokens(tokenizer: Any, row: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return ids (LENGTH,), labels (LENGTH,), and the number of tokens."""
    prompt = tokenizer(TEMPLATE.replace("{input}", row["input"]))["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    ids, labels = torch.zeros(LENGTH, dtype=torch.long), torch.full((LENGTH,), -100)
    tokens = (prompt + answer)[:LENGTH]
    ids[: len(tokens)] = torch.tensor(tokens)
    labels[len(prompt) : len(tokens)] = ids[len(prompt) : len(tokens)]
    return ids, labels, len(tokens)


def simulated(model: str, clients: list[list[dict[str, str]]], workers: int) -> tuple[float, float]:
    """Return the wall seconds of the second of three rounds with all clients, and the CPU seconds of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [{**row, "client": f"c{i}"} for i, own in enumerate(clients) for row in own]
        path = Path(folder) / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "rounds": 3,
            "data": {
                "name": "instructions",
                "path": str(path),
                "tokenizer": model,
                "length": LENGTH,
                "clients": "client",
                "template": TEMPLATE,
            },
            "partition": "natural",
            "splits": {"val": 0.0},
            "task": "instruct",
            "model": {
                "name": "causal",
                "path": model,
                "adapter": {"name": "lora", "rank": RANK, "alpha": 2 * RANK, "targets": ["all-linear"]},
            },
            "cohort": {"size": len(clients)},
            "strategy": "fedit",
            "client": {"batch": BATCH, "epochs": 1},
            "evaluation": {"every": 3},
            "execution": {"executor": "serial" if workers == 1 else "ray", "workers": workers},
        }
        first, second, _ = fl.run(config, out=Path(folder) / "run", progress=False, callbacks=[CPUTime()]).metrics
        return second["wall_seconds"], second["cpu"] - first["cpu"]


def main() -> None:
    """Read the command line, measure, and print both rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3, help="measurements of both, one after the other")
    arguments = parser.parse_args()
    if min(arguments.workers, arguments.clients, arguments.turns) < 1:
        parser.error("--workers, --clients and --turns are at least 1")
    workers = arguments.workers
    torch.set_num_threads(1)
    clients = short_rows(arguments.model, arguments.clients)
    parts = [clients[i::workers] for i in range(workers)]
    cpu_ratios, wall_ratios = list[float](), list[float]()
    for turn in range(arguments.turns):
        with get_context("spawn").Pool(workers) as pool:
            found = pool.starmap(plain, [(arguments.model, [part[0], *part]) for part in parts])
        loops = max(wall for wall, _ in found), sum(cpu for _, cpu in found)
        ours = simulated(arguments.model, clients, workers)
        rates = arguments.clients / loops[1], arguments.clients / ours[1]
        cpu_ratios.append(rates[1] / rates[0])
        wall_ratios.append(loops[0] / ours[0])
        line = f"plain loops {rates[0]:.1f} clients per CPU second, fl {rates[1]:.1f}, ratio {cpu_ratios[-1]:.2f}"
        print(f"turn {turn}: {line}" + (f", of wall times {wall_ratios[-1]:.2f}" if workers > 1 else ""), flush=True)
    walls = f"; of wall times {spread(wall_ratios)}" if workers > 1 else ""
    print(f"median (range) of the ratios in {arguments.turns} turns: {spread(cpu_ratios)}{walls}")


def spread(ratios: Sequence[float]) -> str:
    """Return the median, the smallest and the largest of ratios.

    >>> spread([1.6, 1.4, 1.5])
    '1.50 (1.40 to 1.60)'
    """
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def short_rows(model: str, clients: int) -> list[list[dict[str, str]]]:
    """Return ROWS news items of at most LENGTH tokens for each client."""
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(model), list[dict[str, str]]()
    for row in topic_rows()[0]:
        if (
            len(row["input"]) < 4 * LENGTH
            and len(tokenizer(f"{row['input']}\nTopic:{row['output']}")["input_ids"]) < LENGTH
        ):
            found.append(row)
        if len(found) == clients * ROWS:
            break
    return [found[i * ROWS : (i + 1) * ROWS] for i in range(clients)]


if __name__ == "__main__":
    main()
