"""Measure where the time of `lora` goes: CPU milliseconds per client of training, and of its products alone.

    python -m experiments.benchmarks.adapters

One thread trains the clients of `together`'s case `lora` fused and flat, four at a time, and in the loop. In turns it
computes, for as many clients and steps, only the products that torch has to compute in any plan, on arrays of the same
shapes. Figures are medians of `time.process_time` over the turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks import together
from fl.config.config import resolve
from fl.config.reading import read
from fl.execution.training.plan import Kind, Plan
from fl.simulation.build import set_up_run

TURNS, CHUNK = 9, 4
KINDS: tuple[Kind, ...] = ("flat", "fused")
STEPS = together.CLIENTS // CHUNK * 4  # four steps of each chunk: 32 samples in batches of 8
LAYERS, HEADS, WIDTH, FORWARD, RANK, BATCH, PLACES = 2, 4, 128, 512, 8, 8, 32
ROWS = CHUNK * BATCH * PLACES
SHAPES = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, FORWARD), (FORWARD, WIDTH))  # linear layers: (in, out)


def frozen() -> Callable[[], None]:
    """Outputs of all frozen layers, and gradients of the inputs of all but the first."""
    cases = [(torch.randn(ROWS, i), torch.randn(o, i), torch.randn(o), torch.randn(ROWS, o)) for i, o in SHAPES]

    def step() -> None:
        for k, (x, weight, bias, g) in enumerate(cases * LAYERS):
            functional.linear(x, weight, bias)
            if k:
                torch.mm(g, weight)

    return step


def factors() -> Callable[[], None]:
    """The six products of each layer with each client's factors, as in stacked_layers.py."""
    rows = BATCH * PLACES
    shapes = [((rows, i), (rows, o), (RANK, i), (o, RANK)) for i, o in SHAPES]
    cases = [[torch.randn(CHUNK, *shape) for shape in of_layer] for of_layer in shapes]

    def step() -> None:
        for x, g, first, second in cases * LAYERS:
            inner = torch.bmm(first, x.mT)
            g.baddbmm_(inner.mT, second.mT, alpha=1e-6)
            outer = torch.bmm(second.mT, g.mT)
            x.baddbmm_(outer.mT, first, alpha=1e-6)
            torch.bmm(outer, x)
            torch.bmm(inner, g)

    return step


def gelu() -> Callable[[], None]:
    """GELU and its gradient."""
    x = torch.randn(ROWS, FORWARD, requires_grad=True)
    return _with_gradient(functional.gelu, x)


def attention() -> Callable[[], None]:
    """Attention without its linear layers, and its gradient."""

    def attend(x: Tensor) -> Tensor:
        q, k, v = x.view(-1, PLACES, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(-1, WIDTH)

    return _with_gradient(attend, torch.randn(ROWS, 3 * WIDTH, requires_grad=True))


def _with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    g = torch.randn_like(function(x))

    def step() -> None:
        for _ in range(LAYERS):
            torch.autograd.grad(function(x), x, g)

    return step


def main() -> None:
    raw = {"seed": 0, "partition": "natural", "splits": {"val": 0.0}, "cohort": {"size": together.CLIENTS}}
    run_setup = set_up_run(resolve(read(raw, together.MODELS["lora"])))
    parts = {"frozen layers": frozen(), "factors": factors(), "attention": attention(), "GELU": gelu()}
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        worker = run_setup.job(Path(folder), Path(folder)).worker(0)

        def train(plan: Plan) -> None:
            dispatch = together.exchange(run_setup, plan)
            worker.run(dispatch, [(0, dispatch.tasks)], 0)

        for _ in range(1 + TURNS):
            plans = [Plan("loop", 1, "measured"), *(Plan(kind, CHUNK, "measured") for kind in KINDS)]
            for plan in plans:
                start = time.process_time()
                train(plan)
                times.setdefault(plan.kind, []).append(time.process_time() - start)
            for name, step in parts.items():
                start = time.process_time()
                for _ in range(STEPS):
                    step()
                times.setdefault(name, []).append(time.process_time() - start)
        worker.close()
    print("| | ms of CPU per client |\n|---|---:|")
    for name, turns in times.items():  # turn 0 warms up
        print(f"| {name} | {1e3 * statistics.median(turns[1:]) / together.CLIENTS:.1f} |")


if __name__ == "__main__":
    main()
