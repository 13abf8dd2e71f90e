"""Time of an exchange per mini-batch in vertical federated learning.

    python -m experiments.benchmarks.vertical [--executor serial|ray] [--parties 4] [--rounds 5]

A round is an epoch of split learning: per batch one exchange forward (cut layers up) and one backward (gradients
down). Printed is the time per exchange, with the active party's step, and without it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fl
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.messages import Broadcast, Update
from fl.method.reduction import Stack
from fl.method.requests import Exchange
from fl.method.strategy import RoundGenerator, ServerContext, Strategy
from fl.tensors.params import Params
from fl.tensors.trees import Tree

ROWS, COLUMNS, CLASSES, BATCH, CUT = 5_000, 75, 10, 128, 32  # a party has 75 columns: 2,400 parameters


def own_slope(client: int, shared: Mapping[str, Tree], state: Tree = None) -> Tensor:
    """Return the gradient with respect to a party's cut layer."""
    return shared["slopes"][client]


class Split(Strategy):
    """Linear split learning, with one exchange forward and one backward per batch."""

    axis: ClassVar[Literal["rows", "columns"]] = "columns"

    def init(self, model: Params, ctx: ServerContext) -> Params:
        width = (ctx.population + 1) * CUT
        return Params.of({"bottom": torch.zeros(COLUMNS, CUT), "top": torch.full((width, CLASSES), 0.01)})

    def round(self, state: Params, ctx: ServerContext) -> RoundGenerator:
        count, active = len(ctx.server["y"]), 0.0
        for start in range(0, count, BATCH):
            config = {"start": start, "last": start + BATCH >= count}
            cut = yield Exchange(Broadcast(config=config), {"cut": Stack()}, work="forward", pin=True)
            before = time.process_time()
            state, slopes = self._learned(state, ctx.server, slice(start, start + BATCH), cut.value["cut"])
            active += time.process_time() - before
            down = Broadcast({"slopes": slopes}, {"slope": own_slope}, hidden=("slopes",), config=config)
            yield Exchange(down, {}, work="backward", pin=True)
        return state, {"active_seconds": active}

    @staticmethod
    def _learned(state: Params, server: Mapping[str, Tensor], rows: slice, cuts: Any) -> tuple[Params, Tensor]:
        leaves = [t.clone().requires_grad_() for t in (*state.values(), *(update for update, _ in cuts))]
        bottom, top, *passive = leaves
        loss = cross_entropy(torch.cat([server["x"][rows] @ bottom, *passive], 1) @ top, server["y"][rows])
        of_bottom, of_top, *slopes = torch.autograd.grad(loss, leaves)
        return state - 0.1 * Params.of({"bottom": of_bottom, "top": of_top}), torch.stack(slopes)


class Bottom(ClientAlgorithm):
    """A linear bottom model of a passive party."""

    sends: ClassVar[tuple[str, ...]] = ("cut",)
    receives: ClassVar[tuple[str, ...]] = ("slope",)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        weight = ctx.state if carry is None else carry
        if weight is None:
            weight = torch.full((COLUMNS, CUT), 0.01)
        x = ctx.train.take(slice(ctx.config["start"], ctx.config["start"] + BATCH))["x"]
        if name == "forward":
            return Reply(Update({"cut": x @ weight}, len(x)))
        weight = weight - 0.1 * x.T @ ctx.received["slope"]
        return Reply(Update({}, len(x)), state=weight if ctx.config["last"] else None, carry=weight)


@dataclass
class Clock(fl.Callback):
    """Adds up the seconds of all rounds after round 0, which loads code; `active`: of the active party's steps."""

    cpu: float = 0.0
    wall: float = 0.0
    active: float = 0.0

    def computed(self, row: Mapping[str, Any]) -> None:
        if row["round"] == 0:
            self.begin = time.process_time(), time.perf_counter()
        else:
            self.cpu, self.wall = time.process_time() - self.begin[0], time.perf_counter() - self.begin[1]
            self.active += row["active_seconds"]


def main() -> None:
    """Run the benchmark and print its times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", choices=("serial", "ray"), default="serial")
    parser.add_argument("--parties", type=int, default=4, help="with the active party")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator, clock = np.random.default_rng(0), Clock()
    x = generator.normal(size=(ROWS, COLUMNS * options.parties)).astype(np.float32)
    config = {
        "rounds": options.rounds + 1,
        "data": (x, generator.integers(0, CLASSES, ROWS)),
        "partition": {"name": "vertical", "parties": options.parties},
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"fraction": 1.0},
        "strategy": Split,
        "client": Bottom,
        "execution": {"executor": options.executor},
        "checkpoint": {"every": options.rounds + 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        fl.run(config, out=Path(folder) / "run", callbacks=[clock])
    exchanges = options.rounds * 2 * -(-ROWS // BATCH)
    cpu, wall, active = (1000 * seconds / exchanges for seconds in (clock.cpu, clock.wall, clock.active))
    print(
        f"{options.executor}, {options.parties - 1} passive parties, {exchanges} exchanges: {cpu:.2f} ms of CPU time "
        f"and {wall:.2f} ms of wall time per exchange; without the active party's step {cpu - active:.2f} ms"
    )


if __name__ == "__main__":
    main()
