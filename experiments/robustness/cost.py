"""The time that the first look at a model takes."""

from __future__ import annotations

import statistics
import time
from typing import Any

from experiments.robustness.case import CONFIG
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation import build
from fl.simulation.first_look import first_look

REPEATS = 20
IMAGES = {"data": {"name": "noise", "shape": [3, 32, 32], "classes": 10, "clients": 6, "samples": 50}}
MODELS: dict[str, dict[str, Any]] = {
    "softmax": {"data": {"name": "noise", "shape": [784], "classes": 10, "clients": 6, "samples": 50}},
    "cnn_small": IMAGES,
    "resnet18": IMAGES,
}


def milliseconds(model: str) -> float:
    """Return the median time of a first look at a model of ours, in milliseconds."""
    config = resolve(read(CONFIG, {"model": model, **MODELS[model]}))
    dataset, periods = build.load_data(config)
    outputs = config.task.num_outputs(dataset.train)
    module, times = build.build_model(config, dataset, outputs), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        first_look(config, dataset, periods, module, outputs)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def sentence() -> str:
    """Return the costs of all `MODELS` in words."""
    costs = ", ".join(f"{milliseconds(model):.1f} ms for {model}" for model in MODELS)
    return f"The first look takes {costs} (median of {REPEATS}, one CPU thread)."
