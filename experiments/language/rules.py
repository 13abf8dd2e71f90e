"""The rules of the page, and a run of one of them in a process of its own."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft  # noqa: F401  imported once, before the processes of the runs start
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import fl

HERE = Path(__file__).parent
RANKS = {"ranks": [2, 4, 8]}
VERA = {"name": "vera", "rank": 64, "targets": ["all-linear"]}
SERVER = {"lr": 0.01}  # rate of the server's Adam, for FLASC and its baselines
RULES: dict[str, dict[str, Any]] = {  # name on the page -> changes of the configuration
    "FedIT": {"strategy": "fedit"},
    "FFA-LoRA": {"strategy": "ffa_lora"},
    "FFA-VeRA": {"strategy": "ffa_lora", "model.adapter": VERA, "client.lr": 0.1},
    "RoLoRA": {"strategy": "rolora"},
    "FedSA-LoRA": {"strategy": "fedsa_lora"},
    "FedDPA-LoRA": {"strategy": "feddpa_lora"},
    "LoRA-FAIR": {"strategy": "lora_fair"},
    "FedEx-LoRA": {"strategy": "fedex_lora"},
    "FLoRA, ranks 2 4 8": {"strategy": {"name": "flora", **RANKS}},
    "FlexLoRA, ranks 2 4 8": {"strategy": {"name": "flexlora", **RANKS}},
    "HetLoRA, ranks 2 4 8": {"strategy": {"name": "hetlora", **RANKS}},
    "dense LoRA, server's Adam": {"strategy": {"name": "flasc", "down": 1.0, "up": 1.0, **SERVER}},
    "FLASC .25 .25": {"strategy": {"name": "flasc", **SERVER}},
    "fixed mask .25": {"strategy": {"name": "flasc_fixed", **SERVER}},
}
SCORES = {"topics": "exact_match", "speech": "accuracy"}


class CPUTime(fl.Callback):
    """Write the CPU seconds of the process after each round."""

    def measure(self, run: Any, row: Mapping[str, Any]) -> dict[str, float]:
        return {"cpu": time.process_time()}


def one_run(folder: Path, task: str, rule: str, seed: int) -> None:
    """Run one rule with one seed, and write its figures to figures.json in its folder."""
    torch.set_num_threads(1)
    model, data, out = folder / "model", folder / "data", place(folder, task, rule, seed)
    changes = {
        "seed": seed,
        "data.path": str(data / f"{task}.jsonl"),
        "data.test": str(data / f"{task}_test.jsonl"),
        **dict.fromkeys(("data.tokenizer", "task.tokenizer", "model.path"), str(model)),
        **RULES[rule],
    }
    if task == "topics":
        changes["partition.seed"] = seed
    rows = fl.run(HERE / f"{task}.yaml", out=out, progress=False, callbacks=[CPUTime()], **changes).metrics
    last, score = rows[-1], SCORES[task]
    between = rows[1:-1]  # round 0 starts the run, and the last one is evaluated
    figures = {
        "own: perplexity": math.exp(last["clients/loss_weighted"]),
        "own: score": last[f"clients/{score}_weighted"],
        "server: perplexity": last["eval/perplexity"],
        "server: score": last[f"eval/{score}"],
        "MB up": sum(row["uplink_bytes"] for row in rows) / 1e6,
        "MB down": sum(row["downlink_bytes"] for row in rows) / 1e6,
        "clients/s": sum(row["cohort_size"] for row in between) / (between[-1]["cpu"] - rows[0]["cpu"]),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    (out / "figures.json").write_text(json.dumps(figures))


def place(folder: Path, task: str, rule: str, seed: int) -> Path:
    """Return the run directory of a rule and a seed."""
    name = "".join(c if c.isalnum() else "_" for c in rule.lower())
    return folder / "runs" / task / name / str(seed)
