"""Small methods, one for each extension point of the engine.

A configuration names them as {name: tests/toys.py:ThreeExchanges}. The client of a strategy is found in the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from fl.data.dataset import Dataset
from fl.data.sets.noise import RandomData
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Broadcast, Static, Update
from fl.method.phase import Phase
from fl.method.reduction import ClassMean, Collect, Stack, Sum, WeightedMean
from fl.method.requests import Exchange, ServerWork
from fl.method.strategy import Strategy
from fl.tensors.params import Params, zeros_like
from fl.tensors.sparse import Sparse, Table

if TYPE_CHECKING:
    import pytest


# -- three exchanges in a round, connected by a carry -----------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ThreeExchanges(Strategy):
    """sum: S = sum_i s_i of the clients' pixels;   square: Q = sum_i s_i^2 from the carries;   train: FedAvg."""

    client: ClassVar[str] = "toys.py:ThreeWorks"

    def round(self, state, ctx):
        sums = yield Exchange({"round": torch.tensor([ctx.round])}, {"sum": Sum()}, work="sum")
        squares = yield Exchange({"total": sums.value["sum"]}, {"square": Sum()}, work="square")
        trained = yield Exchange(state, {"model": WeightedMean(), "carried": Sum()})
        metrics = {"sum": sums.value["sum"], "square": squares.value["square"], "carried": trained.value["carried"]}
        return state + trained.value["model"], metrics


@dataclass(frozen=True, kw_only=True)
class ThreeWorks(LocalTraining):
    """Carries its sum s_i to the second exchange and its share s_i / S to the third, which sends the share.

    The state is the number of visits and the latest share.
    """

    sends: ClassVar[tuple[str, ...]] = ("model", "sum", "square", "carried")

    def work(self, name, ctx, carry):
        n = len(ctx.train)
        if name == "sum":
            if carry is not None:
                raise AssertionError("a carry of an earlier round")
            own = ctx.train.take()["x"].double().sum()
            return Reply(Update({"sum": own}, n), carry={"client": ctx.client, "sum": own})
        if carry["client"] != ctx.client:
            raise AssertionError(f"client {ctx.client} has the carry of {carry['client']}")
        if name == "square":
            share = carry["sum"] / ctx.received["total"]
            return Reply(Update({"square": carry["sum"] ** 2}, n), carry={"client": ctx.client, "share": share})
        reply = super().work(name, ctx, carry)
        visits = 0 if ctx.state is None else ctx.state["visits"]
        groups = {**reply.update.groups, "carried": carry["share"]}
        return Reply(Update(groups, n, reply.update.metrics), {"visits": visits + 1, "share": carry["share"]})


# -- phases -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class HeadThenBody(LocalTraining):
    """Trains the head with the body frozen, then the body with the head frozen."""

    head: tuple[str, ...] = ("3.*",)
    body: tuple[str, ...] = ("1.*",)

    def phases(self, round_, rounds):
        settings = (self.optimiser, self.lr, self.batch, self.epochs or 1, self.steps)
        return Phase(*settings, self.head, name="head"), Phase(*settings, self.body, name="body")


# -- training on the server -------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ServerTrained(Strategy):
    """FedAvg, then `steps` gradient steps of 1/2 |w|^2 on the server:   w <- (1 - lr)^steps (w + mean)."""

    steps: int = 3
    lr: float = 0.5

    def round(self, state, ctx):
        outcome = yield Exchange(state)
        model = yield ServerWork(descend, (state + outcome.value, self.steps, self.lr))
        return model, {}


def descend(model: Params, steps: int, lr: float) -> Params:
    for _ in range(steps):
        leaves = {name: model[name].clone().requires_grad_() for name in model}
        sum(0.5 * leaf.square().sum() for leaf in leaves.values()).backward()
        model = model - lr * Params.of({name: leaf.grad for name, leaf in leaves.items()})
    return model


# -- keyed tables -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prototypes:
    model: Params
    means: Table | None


@dataclass(frozen=True, kw_only=True)
class ClassMeans(Strategy):
    """Computes the mean input of each class; trains nothing."""

    client: ClassVar[str] = "toys.py:OwnClassMeans"

    def init(self, model, ctx):
        return Prototypes(model, None)

    def reduction(self, state, ctx):
        return {"means": ClassMean()}

    def step(self, state, reduced, ctx):
        return Prototypes(state.model, reduced["means"]), {}


@dataclass(frozen=True, kw_only=True)
class OwnClassMeans(ClientAlgorithm):
    """Sends the mean inputs of the client's classes."""

    sends: ClassVar[tuple[str, ...]] = ("means",)

    def work(self, name, ctx, carry):
        batch = ctx.train.take()
        keys, owners, counts = torch.unique(batch["y"], return_inverse=True, return_counts=True)
        sums = torch.zeros(len(keys), *batch["x"].shape[1:]).index_add_(0, owners, batch["x"])
        return Reply(Update({"means": Table(keys, sums / counts[:, None], counts)}, len(ctx.train)))


# -- all broadcasts ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mixed(Strategy):
    """Sends all kinds of groups, but not the model; clients reply with a sparse vector.

    A client receives some elements of the model (`part`), a private tensor (`own`), a tensor that it keeps (`base`, new
    in round 2) and a number (`offset`).
    """

    client: ClassVar[str] = "toys.py:Answers"

    def broadcast(self, state, ctx):
        version = ctx.round // 2
        return Broadcast(
            shared={"model": state, "scale": torch.tensor([10.0, 20.0])},
            rows={"own": scaled},
            select={"part": ("model", third)},
            static={"base": Static(version, torch.full((5,), float(version)))},
            config=lambda client: {"offset": client % 3},
            hidden=("model",),
        )

    def reduction(self, state, ctx):
        return {"part": Stack(), "seen": Stack()}

    def step(self, state, reduced, ctx):
        for sparse, _ in reduced["part"]:
            state = state + Params.expand(state.layout, sparse.dense())
        return state, {f"seen/{meta.client}": seen.tolist() for seen, meta in reduced["seen"]}


def scaled(client, shared, state):
    return client * shared["scale"]


def third(client, state):
    return torch.arange(client % 3, 21, 3)


@dataclass(frozen=True)
class Answers(ClientAlgorithm):
    """Returns the received elements as its update, and reports the other groups in `seen`."""

    sends: ClassVar[tuple[str, ...]] = ("part", "seen")
    receives: ClassVar[tuple[str, ...]] = ("part", "own", "base")

    def work(self, name, ctx, carry):
        if set(ctx.received) != {"scale", "own", "part", "base"}:
            raise AssertionError(f"received {sorted(ctx.received)}")
        positions = torch.arange(ctx.config["offset"], 21, 3)
        seen = torch.cat([ctx.received["own"], ctx.received["base"][:1]])
        return Reply(Update({"part": Sparse(positions, ctx.received["part"], 21), "seen": seen}, 1))


# -- a static group with patches --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Book:
    model: Params
    pages: Static


@dataclass(frozen=True, kw_only=True)
class Pages(Strategy):
    """Clients keep a book: page t holds three times 0.1 (t + 1) and appears in round t. A patch is one page.

    The newest `keep` patches are kept. With `wrong`, patches differ from what the value got.
    """

    client: ClassVar[str] = "toys.py:Reader"
    keep: int = 3
    wrong: bool = False

    def init(self, model, ctx):
        return Book(model, Static(0, page(0), {-1: page(0)}))

    def broadcast(self, state, ctx):
        return Broadcast(static={"pages": state.pages})

    def reduction(self, state, ctx):
        return {"seen": Stack()}

    def step(self, state, reduced, ctx):
        old, new = state.pages, page(ctx.round + 1)
        patches = {**old.patches, old.version: new + self.wrong}
        patches = {version: patches[version] for version in sorted(patches)[-self.keep :]}
        pages = Static(ctx.round + 1, torch.cat([old.value, new]), patches)
        return Book(state.model, pages), {f"seen/{meta.client}": seen.tolist() for seen, meta in reduced["seen"]}


def page(number):
    return torch.full((1, 3), 0.1 * (number + 1))


@dataclass(frozen=True)
class Reader(ClientAlgorithm):
    """Reports the first number of each page."""

    sends: ClassVar[tuple[str, ...]] = ("seen",)
    receives: ClassVar[tuple[str, ...]] = ("pages",)

    def patched(self, group, value, patch):
        return patch if value is None else torch.cat([value, patch])

    def work(self, name, ctx, carry):
        return Reply(Update({"seen": ctx.received["pages"][:, 0]}, 1))


# -- known replies ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Constant(ClientAlgorithm):
    """Sends value * (client + 1) in all coordinates, and its square in the group "extra".

    Clients in `fails` fail in round `when`.
    """

    sends: ClassVar[tuple[str, ...]] = ("model", "extra")
    value: float = 1.0
    fails: tuple[int, ...] = ()
    when: int = 1
    how: Literal["raise", "nan"] = "raise"

    def work(self, name, ctx, carry):
        value = self.value * (ctx.client + 1)
        if ctx.client in self.fails and ctx.round == self.when:
            if self.how == "raise":
                raise RuntimeError("out of battery")
            value = float("nan")
        ones = zeros_like(ctx.received["model"]) + 1.0
        visits = 0 if ctx.state is None else ctx.state["visits"]
        groups = {"model": value * ones, "extra": value**2 * ones}
        return Reply(Update(groups, len(ctx.train), {"loss": value}), {"visits": visits + 1, "round": ctx.round})


@dataclass(frozen=True, kw_only=True)
class FailsToPredict(LocalTraining):
    """Trains, but clients in `fails` cannot predict; -1 stands for the server."""

    fails: tuple[int, ...] = ()

    def predictor(self, ctx):
        if ctx.client in self.fails:
            raise RuntimeError("out of memory")
        return super().predictor(ctx)


def median(rows, weights):
    return rows.median(0).values


@dataclass(frozen=True)
class MeanAndMedian(Strategy):
    """Moves the model by the mean of "model" plus the median of "extra"."""

    def reduction(self, state, ctx):
        return {"model": WeightedMean(), "extra": Collect(median, block=4)}

    def step(self, state, reduced, ctx):
        return state + reduced["model"] + reduced["extra"], {}


@dataclass(frozen=True)
class Halves(Strategy):
    """Two exchanges with the halves of a cohort;   model <- model + mean(first half) - mean(second half)."""

    def round(self, state, ctx):
        middle = len(ctx.cohort) // 2
        first = yield Exchange(state, cohort=ctx.cohort[:middle])
        second = yield Exchange(state, cohort=[int(c) for c in ctx.cohort[:middle:-1]] + [int(ctx.cohort[middle])])
        metrics = {"first": int(first.clients.sum()), "second": int(second.clients.sum())}
        return state + first.value - second.value, metrics


@dataclass(frozen=True)
class Moments:
    model: Params
    start: float | None  # number from the set-up


@dataclass(frozen=True)
class Staged(Strategy):
    """setup: stores the uniform mean over all clients;   rounds: FedAvg;   final: adds the stored number."""

    def init(self, model, ctx):
        return Moments(model, None)

    def setup(self, state, ctx):
        outcome = yield Exchange(state.model, WeightedMean("uniform"), cohort=range(ctx.population))
        return Moments(state.model, float(outcome.value.compact()[0])), {}

    def broadcast(self, state, ctx):
        return Broadcast(shared={"model": state.model}, config={"start": 1.0 * state.start})

    def step(self, state, mean, ctx):
        return Moments(state.model + mean, state.start), {"start": state.start}

    def final(self, state, ctx):
        outcome = yield Exchange(state.model, WeightedMean("uniform"), cohort=[0])
        return Moments(state.model + state.start + outcome.value, state.start), {}


# -- a module other than the run's ------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Narrow(Strategy):
    """Clients train the first `width` hidden units of an MLP with one hidden layer; the others do not change."""

    width: int = 2
    per_client: bool = False

    def round(self, state, ctx):
        module = nn.Sequential(
            nn.Flatten(),
            nn.Linear(state["1.weight"].shape[1], self.width),
            nn.ReLU(),
            nn.Linear(self.width, state["3.weight"].shape[0]),
        )
        config: Any = (lambda client: {"client": client}) if self.per_client else {}
        broadcast = Broadcast(shared={"model": Params.of(self.cut(state))}, config=config)
        outcome = yield Exchange(broadcast, skeleton=module)
        model = state.clone()
        for name, block in self.cut(model).items():
            block += outcome.value[name]
        return model, {}

    def cut(self, model: Params) -> dict[str, torch.Tensor]:
        """Return views of the tensors of the narrow model."""
        k = self.width
        return {
            "1.weight": model["1.weight"][:k],
            "1.bias": model["1.bias"][:k],
            "3.weight": model["3.weight"][:, :k],
            "3.bias": model["3.bias"],
        }


@dataclass(frozen=True, kw_only=True)
class ReadsConfig(LocalTraining):
    """Trains only on clients with an even id."""

    def gradient(self, grad, params, at):
        return grad * float(at.config["client"] % 2 == 0)


# -- data -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """Noise for six clients with four samples each; those of `clients` are so large that the second step overflows."""

    clients: tuple[int, ...] = (3,)

    def load(self) -> Dataset:
        clean = RandomData(shape=(6,), classes=3, clients=6, samples=4).load()
        x = clean.train["x"].copy()
        x[np.isin(clean.clients, self.clients)] = 1e30
        return Dataset({"x": x, "y": clean.train["y"]}, clients=clean.clients)


# -- clients that fail ------------------------------------------------------------------------------------------------
def fail_in_round(patch: pytest.MonkeyPatch, algorithm: type[ClientAlgorithm], round_: int, work: set[str]) -> None:
    """Have all clients of an algorithm, which has no `work` of its own, fail at some work in one round."""

    def failing(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Any) -> Reply:
        if ctx.round == round_ and name in work:
            raise RuntimeError("no battery")
        return super(algorithm, self).work(name, ctx, carry)

    patch.setattr(algorithm, "work", failing)
