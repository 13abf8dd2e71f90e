"""Configurations of small runs, one for each way in which a run keeps something from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOISE = {"name": "noise", "shape": [6], "classes": 3, "clients": 8, "samples": 12}
BASE: dict[str, Any] = {
    "seed": 3,
    "rounds": 24,
    "data": NOISE,
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": {"name": "mlp", "hidden": [5], "dropout": 0.2},
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 4, "lr": 0.1},
    "evaluation": {"every": 3},
    "execution": {"executor": "serial", "chunk": 2},
}
SLOW_DEVICES = {"devices": {"pareto": {"ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5, "alpha": 1.1}}}
PRIVACY = {"clipping": {"name": "fixed", "bound": 0.5}, "noise_multiplier": 1.0, "delta": 1e-3}
BANDED = {"sampling": {"name": "min_separation", "separation": 4, "rate": 0.5}, "mechanism": "banded"}
ADAPTIVE = {"sampling": {"rate": 0.4}, "clipping": {"adaptive": {"sigma_b": 2.0}}}
PEFLL = {"name": "pefll", "descriptor": 3, "hidden": [8], "embedding": {"name": "mlp", "hidden": [7]}}
PEFLL_CLIENT = {"steps": 2, "batch": 8, "lr": 0.1, "clip": None, "optimiser": "sgd"}
SPLIT = {"name": "splitnn", "cut": 3, "batch": 8, "hidden": [5], "top": [6], "lr": 0.3}
COLUMNS = {"name": "vertical", "columns": [[0, 1], [2, 3, 4], [5]]}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "fedavg, baselines": {"baselines": ["local", "centralised"], "rounds": 10},
    "scaffold": {"strategy": "scaffold"},
    "trimmed mean": {"strategy": {"name": "trimmed_mean", "beta": 0.2}},
    "three exchanges": {
        "strategy": PEFLL,
        "client": PEFLL_CLIENT,
        "model": {"name": "mlp", "hidden": [5]},
        "splits": {"val": 0.0, "test": 0.3, "clients": 2},
        "evaluation": {"clients": "held_out", "server": False},
        "rounds": 8,
    },
    "buffered server": {
        "strategy": "scaffold",
        "server": {"name": "buffered", "concurrency": 6, "buffer": 3},
        "system": {**SLOW_DEVICES, "dropout": 0.1},
        "cohort": None,
    },
    "asynchronous server": {
        "server": {"name": "async", "concurrency": 5},
        "system": SLOW_DEVICES,
        "cohort": None,
        "checkpoint": {"every": 2},
    },
    "vertical epochs": {
        "strategy": SPLIT,
        "client": {"name": "splitnn", "hidden": [5]},
        "model": "softmax",
        "partition": COLUMNS,
        "data": {"name": "noise", "shape": [6], "classes": 2, "clients": 1, "samples": 40},
        "splits": {"val": 0.0, "test": 0.3},
        "cohort": {"fraction": 1.0},
        "rounds": 8,
    },
    "error feedback, delta": {
        "strategy": "scaffold",
        "codec": {
            "up": ["error_feedback", {"name": "top_k", "ratio": 0.5}],
            "down": ["delta", {"name": "top_k", "ratio": 0.5}],
        },
    },
    "carried noise": {"privacy": {**PRIVACY, **BANDED}, "cohort": None},
    "private scaffold": {"strategy": "scaffold", "privacy": {**PRIVACY, **ADAPTIVE}, "cohort": None},
    "states, best model": {
        "strategy": "ditto",
        "stop": {"patience": 50},
        "checkpoint": {"best": True},
        "evaluation": {"every": 1},
    },
}


def configuration(method: str, **more: Any) -> dict[str, Any]:
    """Return the configuration of a run of a method of `METHODS`, with some keys replaced."""
    found = {**BASE, **METHODS[method], **more}
    return {key: value for key, value in found.items() if value is not None}
