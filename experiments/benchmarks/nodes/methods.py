"""The methods of the tables: what each of them keeps on clients, carries between exchanges or collects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TOYS = Path(__file__).parents[3] / "tests" / "toys.py"
COMMON: dict[str, Any] = {
    "rounds": 6,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 24, "alpha": 0.5, "min_size": 6},
    "splits": {"val": 0.1, "test": 0.1},
    "model": {"name": "mlp", "hidden": [32]},
    "cohort": {"size": 9},
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "evaluation": {"every": 3},
    "execution": {"executor": "serial", "chunk": 2},
}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"strategy": "fedavg"},
    "SCAFFOLD": {"strategy": "scaffold"},
    "Ditto": {"strategy": "ditto"},
    "median": {"strategy": "median"},
    "FOT": {
        "strategy": {"name": "fot", "eps": 0.94},
        "stream": {"name": "permuted", "tasks": 2, "rounds": 3},
        "partition": {"name": "iid", "clients": 12},
        "rounds": None,
    },
    "PeFLL": {
        "strategy": {"name": "pefll", "descriptor": 8},
        "client": {"steps": 4, "batch": 8, "lr": 0.02, "clip": None},
    },
    "asynchronous": {
        "strategy": "fedbuff",
        "server": {"name": "buffered", "concurrency": 8, "buffer": 4},
        "system": {"devices": {"pareto": {"ms_per_sample": 20, "up_mbps": 2, "down_mbps": 10, "latency_ms": 50}}},
        "codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.1}}]},
    },
    "error feedback": {"strategy": "fedavg", "codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.1}}]}},
    "carries": {"strategy": f"{TOYS}:ThreeExchanges"},
    "private": {
        "strategy": "scaffold",
        "cohort": None,
        "privacy": {
            "sampling": {"rate": 0.3},
            "clipping": {"adaptive": {"sigma_b": 2.0}},
            "noise_multiplier": 1.0,
            "delta": 1e-3,
        },
    },
    "attackers": {"strategy": "median", "adversary": {"name": "sign_flip", "share": 0.3}},
}


def configured(method: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration of a method; `more` replaces some sections."""
    config = COMMON | METHODS[method] | (more or {})
    return {key: value for key, value in config.items() if value is not None}
