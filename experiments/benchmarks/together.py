"""Measure CPU milliseconds per client for each plan, by model and by number of clients trained together.

    python -m experiments.benchmarks.together                     all models
    python -m experiments.benchmarks.together lora cnn_small      some of them

One worker in this process trains the same 16 clients under each plan, with one thread; the plans take turns. Figures
are medians of `time.process_time` over the turns, because other programs on the machine hardly influence it.
`fl.execution.training.plan` chooses plans by this table (README.md beside this file).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fl.config.config import resolve
from fl.config.reading import read
from fl.execution.dispatch import ExchangeDispatch
from fl.execution.section import Execution
from fl.execution.training.plan import Kind, Plan, make_plan
from fl.method.messages import Broadcast
from fl.method.reduction import Product, WeightedMean
from fl.simulation.build import set_up_run
from fl.simulation.setup import RunSetup, sample_inputs
from fl.storage.records import NO_RECORD

CLIENTS, TURNS, CHUNKS = 16, 3, (2, 4, 8, 16)
IDS = {"name": "noise", "shape": [32], "vocabulary": 80, "classes": 10, "clients": CLIENTS, "samples": 32}
IMAGES = {"name": "noise", "shape": [3, 32, 32], "classes": 10, "clients": CLIENTS, "samples": 20}
VECTORS = {"name": "noise", "shape": [784], "classes": 62, "clients": CLIENTS, "samples": 100}
TRANSFORMER = {"name": "transformer", "width": 128, "forward": 512}
TRANSFORMER_64 = TRANSFORMER | {"width": 64, "forward": 256}
MLP = {"name": "mlp", "hidden": [200, 200]}
LORA = {"name": "lora", "rank": 8, "trains": ["head.*"]}
MODELS: dict[str, dict[str, Any]] = {
    "lora": {"data": IDS, "model": TRANSFORMER | {"adapter": LORA}, "strategy": "fedit", "client.batch": 8},
    "lora_64": {"data": IDS, "model": TRANSFORMER_64 | {"adapter": LORA}, "strategy": "fedit", "client.batch": 8},
    "lora_mlp": {
        "data": VECTORS,
        "model": MLP | {"adapter": {"name": "lora"}},
        "strategy": "fedit",
        "client.batch": 20,
    },
    "transformer": {"data": IDS, "model": TRANSFORMER, "client.batch": 8},
    "transformer_64": {"data": IDS, "model": TRANSFORMER_64, "client.batch": 8},
    "transformer_32": {"data": IDS, "model": TRANSFORMER | {"width": 32, "forward": 128}, "client.batch": 8},
    "cnn_small": {"data": IMAGES, "model": "cnn_small", "client.batch": 10},
    "cnn_tiny": {"data": IMAGES | {"shape": [1, 8, 8]}, "model": "cnn_tiny", "client.batch": 10},
    "resnet8": {"data": IMAGES, "model": "resnet8", "client.batch": 10},
    "mlp": {"data": VECTORS, "model": MLP, "client.batch": 20},
    "mlp_norm": {"data": VECTORS, "model": "experiments.benchmarks.together:layer_norm_mlp", "client.batch": 20},
}


def layer_norm_mlp(shape: tuple[int, ...], outputs: int) -> Any:
    """Build a perceptron with LayerNorm after each hidden layer."""
    from torch import nn

    first = (nn.Flatten(), nn.Linear(shape[0], 200), nn.LayerNorm(200), nn.ReLU())
    return nn.Sequential(*first, nn.Linear(200, 200), nn.LayerNorm(200), nn.ReLU(), nn.Linear(200, outputs))


def measure(model: str) -> dict[tuple[str, int], float]:
    """Return a dict: (plan, chunk) -> CPU milliseconds per client."""
    raw = {"seed": 0, "partition": "natural", "splits": {"val": 0.0}, "cohort": {"size": CLIENTS}, "strategy": "fedavg"}
    run_setup = set_up_run(resolve(read(raw, MODELS[model])))
    with tempfile.TemporaryDirectory() as folder:
        worker = run_setup.job(Path(folder), Path(folder)).worker(0)
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(1 + TURNS):
            for plan in plans(run_setup):
                dispatch = exchange(run_setup, plan)
                start = time.process_time()
                worker.run(dispatch, [(0, dispatch.tasks)], 0)
                times.setdefault((plan.kind, plan.chunk), []).append(1e3 * (time.process_time() - start) / CLIENTS)
        worker.close()
    return {plan: statistics.median(turns[1:]) for plan, turns in times.items()}  # turn 0 warms up


def plans(run_setup: RunSetup) -> Iterator[Plan]:
    """Yield the plans that are possible for a model."""
    for kind in get_args(Kind):
        try:
            for chunk in (1,) if kind == "loop" else CHUNKS:
                model = run_setup.module, run_setup.model, run_setup.config.task, sample_inputs(run_setup.dataset)
                yield make_plan(run_setup.config.client, *model, Execution(plan=kind, chunk=chunk))
        except ValueError:
            continue


def exchange(run_setup: RunSetup, plan: Plan) -> ExchangeDispatch:
    no_records = np.tile(np.array(NO_RECORD), (CLIENTS, 1))
    return ExchangeDispatch(
        kind="work",
        work="train",
        round=0,
        period=0,
        number=0,
        cohort=np.arange(CLIENTS),
        broadcast=Broadcast.of(run_setup.model),
        reduction=Product({"model": WeightedMean()}),
        plan=plan,
        states=no_records,
        carries=no_records,
        cost=np.ones(CLIENTS),
    )


def main(models: list[str]) -> None:
    columns = [("loop", 1), *((kind, chunk) for kind in get_args(Kind)[1:] for chunk in CHUNKS)]
    print("| model | loop | " + " | ".join(f"{kind} {chunk}" for kind, chunk in columns[1:]) + " |")
    for model in models or MODELS:
        times = measure(model)
        cells = " | ".join(f"{times[column]:.1f}" if column in times else "" for column in columns)
        print(f"| `{model}` | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
