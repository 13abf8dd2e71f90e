"""Clients per second of fl, and of plain loops over peft's module: python -m experiments.language.speed MODEL.

Both train the same clients on the same rows, padded to the same length, with SGD on LoRA's factors, one thread a
process. A plain loop loads the server's factors, takes the steps, and computes the change; `--workers` loops run at
once, each with its own model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from experiments.language.corpus import topic_rows

ROWS, BATCH, LENGTH, RANK = 8, 4, 64, 8
TEMPLATE = "{input}\nTopic:"


def plain(model: str, clients: list[list[dict[str, str]]]) -> float:
    """Return the seconds that a loop over peft's module takes for clients, after a first one."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    module: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), settings)
    leaves = [p for p in module.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in leaves]
    data = [[_tokens(tokenizer, row) for row in rows] for rows in clients]
    begin = time.perf_counter()
    for number, rows in enumerate(data):
        if number == 1:
            begin = time.perf_counter()
        for leaf, first in zip(leaves, start):
            leaf.data.copy_(first)
        optimiser = torch.optim.SGD(leaves, 0.1)
        for a in range(0, len(rows), BATCH):
            ids, labels = (torch.stack(part) for part in zip(*rows[a : a + BATCH]))
            optimiser.zero_grad()
            module(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            optimiser.step()
        _ = [leaf.detach() - first for leaf, first in zip(leaves, start)]
    return time.perf_counter() - begin


def _tokens(tokenizer: Any, row: dict[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
    prompt = tokenizer(TEMPLATE.replace("{input}", row["input"]))["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    ids, labels = torch.zeros(LENGTH, dtype=torch.long), torch.full((LENGTH,), -100)
    tokens = (prompt + answer)[:LENGTH]
    ids[: len(tokens)] = torch.tensor(tokens)
    labels[len(prompt) : len(tokens)] = ids[len(prompt) : len(tokens)]
    return ids, labels


def simulated(model: str, clients: list[list[dict[str, str]]], workers: int) -> float:
    """Return the seconds of the second of two rounds with all clients."""
    import fl

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
        result = fl.run(config, out=Path(folder) / "run", progress=False)
        return float(min(row["wall_seconds"] for row in result.metrics[1:2]))


def main() -> None:
    """Read the command line, measure, and print both rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, _ = topic_rows()
    rows = [row for row in rows if len(row["input"]) < 150]
    clients = [rows[i * ROWS : (i + 1) * ROWS] for i in range(arguments.clients)]
    parts = [clients[i :: arguments.workers] for i in range(arguments.workers)]
    with get_context("spawn").Pool(arguments.workers) as pool:
        seconds = pool.starmap(plain, [(arguments.model, [part[0], *part]) for part in parts])
    loops = arguments.clients / max(seconds)
    ours = arguments.clients / simulated(arguments.model, clients, arguments.workers)
    print(f"plain loops {loops:.1f} clients/s, fl {ours:.1f} clients/s, {ours / loops:.2f} times as many")


if __name__ == "__main__":
    main()
