"""A vertical method whose parties tell what they were given; the test of isolation names its classes."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Broadcast, Update
from fl.method.reduction import Stack, Sum
from fl.method.requests import Exchange
from fl.method.strategy import Strategy

FIRST = 1000.0  # column j of the data holds FIRST + j in all rows
LABEL = 777_000  # label k is LABEL + k


class Ask(Strategy):
    """Collects what each party saw."""

    client: ClassVar[str] = "Look"
    axis: ClassVar[Literal["rows", "columns"]] = "columns"

    def round(self, state, ctx):
        down = Broadcast(config={"nothing": 0})
        answers = yield Exchange(down, {"seen": Stack()}, work="look", pin=True)
        seen = {}
        for update, meta in answers.value["seen"]:
            columns, labels, files, names = update.tolist()
            seen |= {f"columns{meta.client}": columns, f"labels{meta.client}": labels, f"files{meta.client}": files}
            seen |= {f"names{meta.client}": names}
        return state, seen


class Look(ClientAlgorithm):
    """Looks through all tensors and arrays of its process, and at the files that it has mapped.

    Sends (bits of the columns that were found, number of labels, number of parties' files, number of arrays by name).
    """

    sends: ClassVar[tuple[str, ...]] = ("seen",)
    receives: ClassVar[tuple[str, ...]] = ()

    def work(self, name, ctx, carry):
        ctx.train.take()
        tracked = gc.get_objects()
        reached = (o for one in tracked for o in (one, *gc.get_referents(one)))
        held = {id(o): o for o in reached if type(o) in (torch.Tensor, np.ndarray)}
        columns, labels = 0, 0
        for array in held.values():
            if isinstance(array, torch.Tensor):  # NumPy has no bfloat16
                array = array.detach().float() if array.dtype == torch.bfloat16 else array.detach()
            values = np.asarray(array)
            if values.dtype == np.float32:
                found = values[(values >= FIRST) & (values < FIRST + 50)]
                columns |= sum(1 << int(v - FIRST) for v in np.unique(found))
            if values.dtype.kind in "if":
                labels += int(np.count_nonzero((values >= LABEL) & (values < LABEL + 10)))
        maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "fl-rows-" in line}
        seen = torch.tensor([columns, labels, len(maps), len(ctx.train.arrays)])
        return Reply(Update({"seen": seen}, len(ctx.train)))


@dataclass(frozen=True, kw_only=True)
class Sometimes(Strategy):
    """Two counted exchanges a round, and free ones in the evaluation."""

    free: int = 0

    client: ClassVar[str] = "Counts"

    def round(self, state, ctx):
        down = Broadcast({"model": state}, config={"free": False})
        yield Exchange(down, {"visits": Sum()}, work="count")
        second = yield Exchange(down, {"visits": Sum()}, work="count")
        return state, {"visits": second.value["visits"].sum()}

    def evaluation(self, state, ctx):
        for _ in range(self.free):
            down = Broadcast({"model": state}, config={"free": True})
            answer = yield Exchange(down, {"visits": Sum()}, work="ask", free=True)
            assert answer.clients.tolist() == [0, 1, 2]
        return {}


class Counts(ClientAlgorithm):
    """Counts its visits in the carry and in the state. In free exchanges it tries to change both."""

    sends: ClassVar[tuple[str, ...]] = ("visits",)

    def work(self, name, ctx, carry):
        if ctx.config["free"]:
            return Reply(Update({"visits": torch.full((4,), 100.0)}, 7, {"loss": 9.0}), torch.ones(4), torch.ones(4))
        before = carry if carry is not None else ctx.state
        now = torch.zeros(4) if before is None else before
        now = now + torch.tensor([1.0, 0.0, 0.0, 0.0])
        return Reply(Update({"visits": now}, len(ctx.train), {"loss": 1.0}), state=now, carry=now)
