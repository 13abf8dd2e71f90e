"""Measure a gradient step with each memory format of images (fl/execution/training/memory_format.py), in milliseconds.

    python -m experiments.benchmarks.memory_formats        prints the table of the README beside this file

One thread; the formats take turns.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from fl import registry
from fl.execution.training.memory_format import use_memory_format
from fl.execution.workers.process import configure_process
from fl.models.dropout import Dropout

FORMATS = ("contiguous", "channels_last", "compiled")
MODELS = {
    "cnn_small": ((3, 32, 32), 10),
    "cnn_pfl": ((3, 32, 32), 10),
    "cnn_tiny": ((1, 8, 8), 10),
    "cnn_fedavg": ((1, 28, 28), 10),
    "cnn_leaf": ((1, 28, 28), 62),
    "cnn_pfllib": ((1, 28, 28), 10),
}
BATCHES, TURNS = (10, 32), 40


def measure(name: str, batch: int) -> dict[str, float]:
    """Return memory format -> seconds of this thread per step, the median over the turns."""
    shape, outputs = MODELS[name]
    module = registry.lookup("model", name)().build(shape, outputs)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    x, y, weights = torch.randn(batch, *shape), torch.randint(0, outputs, (batch,)), list(module.parameters())
    times: dict[str, list[float]] = {format_: [] for format_ in FORMATS}
    for turn in range(TURNS + 2):
        for format_ in FORMATS:
            with use_memory_format(module, format_):
                start = time.thread_time()
                gradients = torch.autograd.grad(F.cross_entropy(module(x), y), weights)
                torch._foreach_add_([w.data for w in weights], gradients, alpha=-1e-6)
                if turn > 1:  # turns 0 and 1 warm up
                    times[format_].append(time.thread_time() - start)
    return {format_: statistics.median(seconds) for format_, seconds in times.items()}


def main() -> None:
    configure_process()
    torch.manual_seed(0)
    print("| model | batch | contiguous | channels_last | compiled | contiguous / compiled |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in MODELS:
        for batch in BATCHES:
            medians = measure(name, batch)
            cells = " | ".join(f"{1e3 * medians[format_]:.2f}" for format_ in FORMATS)
            print(f"| `{name}` | {batch} | {cells} | {medians['contiguous'] / medians['compiled']:.2f} |")


if __name__ == "__main__":
    main()
