"""Each strategy in many settings, with eight small clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.regression import fl_names
from experiments.regression.case import Case

FEDERATION: dict[str, Any] = {
    "seed": 0,
    "rounds": 3,
    "data": {
        "name": "noise",
        "shape": [6],
        "classes": 4,
        "clients": 8,
        "samples": {"lognormal": 0.7, "mean": 20, "low": 5, "high": 60},
    },
    "partition": "natural",
    "splits": {"val": 0.2, "test": 0.2},
    "model": {"name": "mlp", "hidden": [5]},
    "cohort": {"name": "uniform", "size": 5},
    "execution": {"executor": "serial", "workers": 1},
}
TRAINING = {"epochs": 2, "batch": 8, "lr": 0.1}  # each client algorithm gets those of these arguments that it has
BATCHED = ("compiled", "stacked", "flat", "vmap")
PLANS = ("auto", "loop", *BATCHED)

MOMENTUM = {"client.optimiser": {"name": "sgd", "momentum": 0.9}, "client.clip": 0.5}
DROPOUT = {"model": {"name": "experiments.regression.parts:dropping"}}
IMAGES = {"data.shape": [1, 8, 8], "model": {"name": "experiments.regression.parts:convolving"}}
DEVICES = {"name": "lognormal", "ms_per_sample": 10, "up_mbps": 0.1, "down_mbps": 0.5, "latency_ms": 20, "sigma": 1.0}
NORMALISED = {"model": {"name": "experiments.regression.parts:normalised"}}

# name of the setting -> overrides; if a strategy refuses a setting, the refusal is recorded
SETTINGS: dict[str, dict[str, Any]] = {
    **{plan: {"execution.plan": plan} for plan in PLANS},
    **{f"momentum_clip/{plan}": {**MOMENTUM, "execution.plan": plan} for plan in ("auto", "loop", "flat")},
    **{f"dropout/{plan}": {**DROPOUT, "execution.plan": plan} for plan in ("auto", "loop", "flat")},
    **{f"images/{plan}": {**IMAGES, "execution.plan": plan} for plan in ("auto", "loop", "flat")},
    **{f"batch_norm/{whose}": {**NORMALISED, "model.batch_norm": whose} for whose in ("averaged", "local", "batch")},
    "adam": {"client.optimiser": "adam", "client.lr": 0.01},
    "schedule": {"client.lr": {"start": 0.1, "schedule": "cosine"}},
    "steps": {"client.steps": 3, "client.epochs": None},
    "full_batch": {"client.batch": "full"},
    "codec": {"codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.3}}], "down": ["fp16"]}},
    "delta": {"codec": {"up": ["delta", {"quantise": {"bits": 8}}], "down": ["delta", "bf16"]}},
    "deadline": {
        "system": {
            "devices": DEVICES,
            "dropout": 0.1,
            "availability": {"name": "bernoulli", "p": 0.8},
            "up_bytes": 300,
        },
        "server": {"name": "sync", "deadline_seconds": 0.5, "partial": True},
    },
    "buffered": {
        "system": {"devices": DEVICES, "up_bytes": 300},
        "server": {"name": "buffered", "concurrency": 4, "buffer": 2},
    },
    "empty_rounds": {"cohort": {"name": "poisson", "rate": 0.15}},
    "trained": {"evaluation": {"stage": "trained"}},
    "two_workers": {"execution.workers": 2, "execution.chunk": 2},
}


def cases() -> Iterator[Case]:
    """Yield each strategy in each setting, and each strategy with a stop and a resume."""
    for strategy in fl_names.names("strategy"):
        for setting, overrides in SETTINGS.items():
            yield case(strategy, setting, overrides)
        yield case(strategy, "resumed", {}, how="resume")


def case(strategy: str, setting: str, overrides: dict[str, Any], **more: Any) -> Case:
    """Return the run of a strategy in a setting. Overrides that the strategy needs replace those of the setting."""
    fields = fl_names.client_fields(strategy)
    client = {key: value for key, value in TRAINING.items() if key in fields}
    config = {**FEDERATION, "strategy": {"name": strategy}, "client": client}
    return Case(f"{strategy}/{setting}", config, {**overrides, **fl_names.example_config(strategy)}, **more)
