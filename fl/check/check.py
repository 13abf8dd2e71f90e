"""The laws that parts keep, checked on eight tiny clients in a temporary folder: `check("strategy:fedavg")` or of your own

    check("my_rule.py:SignMean") -> [Finding("repeats", ok=True, detail=""), Finding("pure", ok=False, detail="..."), ...]

A law is a function of the part on the bench: it raises if it is broken and may return a remark. `LAWS` says which laws hold
for which kind; a strategy is checked with its client, a client with the strategy that brings it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl import registry
from fl.communication.codec import Codec, Key, decode, encode
from fl.config.config import Config, read, resolve
from fl.data.augment import Augment
from fl.data.dataset import Dataset, as_dataset
from fl.data.partition import Partition
from fl.data.sets.noise import LogNormal, RandomData
from fl.errors import ConfigError, UnknownName
from fl.execution.training.loop import train
from fl.execution.worker import Columns, DispatchResult, ExchangeDispatch
from fl.execution.workers.executor import Serial
from fl.method.client import ClientAlgorithm, ClientContext, LocalTraining, Reply, View
from fl.method.sampler import Sampler
from fl.method.strategy import ServerContext, Strategy
from fl.models import nn
from fl.simulation.simulation import Simulation, resume
from fl.storage.segments import Segments
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import Params, difference
from fl.tensors.sparse import Sparse
from fl.tensors.trees import Tree, digest, flatten, raw_bytes, row, tree_map, unflatten

CLIENTS = 8
DATA = RandomData(shape=(6,), classes=4, clients=CLIENTS, samples=LogNormal(lognormal=0.7, mean=20, low=5, high=60))
FEDERATION = {
    "rounds": 3,
    "data": {"name": "noise"} | dataclasses.asdict(DATA),
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": {"name": "mlp", "hidden": [5]},
    "cohort": {"name": "uniform", "size": 5},
    "execution": {"executor": "serial"},
}
WITH_DROPOUT = {"model.name": "fl.check.check:DropoutModel", "execution.plan": "loop", "rounds": 1}
TRAINING = {"epochs": 2, "batch": 8, "lr": 0.1}  # for clients that have such fields
# what parts are built with where they have no default
EXAMPLES: dict[str, dict[str, Any]] = {
    "strategy": {},
    "client": {},
    "codec": {"ratio": 0.25, "value": 0.5},
    "partition": {
        "clients": CLIENTS,
        "alpha": 0.5,
        "sizes": (10,) * CLIENTS,
        "classes": 2,
        "num_classes_per_partition": 2,
        "lists": ((5, 0, 3), (4, 9)),
        "partitioner": "flwr_datasets.partitioner:IidPartitioner",
        "arguments": {"num_partitions": CLIENTS},
    },
    "shift": {"classes": 2},
    "sampler": {"size": 4, "rate": 0.5, "clients": (1, 4, 6)},
    "augment": {},
    "model": {},
    "task": {},
    "data": {
        "train": 300,
        "clients": 20,
        "max_samples": 20,
        "sets": (RandomData(shape=(1, 4, 4), clients=3), RandomData(shape=(3, 6, 6), clients=3)),
    },
}
BASES = {
    Strategy: "strategy",
    ClientAlgorithm: "client",
    Codec: "codec",
    Sampler: "sampler",
    Augment: "augment",
    Task: "task",
}
TIMES = {"wall_seconds", "busy_seconds", "server_seconds"}


@dataclass(frozen=True)
class Finding:
    """What came of one law."""

    law: str
    ok: bool
    detail: str = ""


class Broken(Exception):
    """A law does not hold; says what was found."""


def check(target: str, **arguments: Any) -> list[Finding]:
    """Every law of `target`: "kind:name", a registered name, path/file.py:Name or module:Name, built with `arguments`."""
    kind, name = find(target)
    part = registry.lookup(kind, name)
    arguments = {f: v for f, v in EXAMPLES[kind].items() if _needs(part, f)} | arguments
    missing = [module for module in getattr(part, "requires", ()) if importlib.util.find_spec(module) is None]
    missing += ["file of the user's"] * (kind == "data" and _needs(part, "path") and "path" not in arguments)
    if missing:
        return [Finding(law.__name__, True, f"not checked: there is no {missing[0]} here") for law in LAWS[kind]]
    with tempfile.TemporaryDirectory() as folder:
        if kind in ("strategy", "client"):
            bench: Any = Bench.of(kind, name, arguments, Path(folder))
        else:
            bench = part(**arguments)
        return [_check_stopping(law, bench) for law in LAWS[kind]]


def find(target: str) -> tuple[str, str]:
    """(kind, name) of a target."""
    kind, colon, name = target.partition(":")
    if colon and kind in LAWS:
        return kind, name
    if colon:
        part = registry.lookup("strategy", target)
        bases = part.__mro__ if isinstance(part, type) else ()
        found = [BASES[b] for b in bases if b in BASES] + ["partition"] * hasattr(part, "split")
        for method, kind in (("apply", "shift"), ("build", "model"), ("load", "data")):
            found += [kind] * hasattr(part, method)
        if found:
            return found[0], target
        raise UnknownName(
            f"{target!r} is none of {list(LAWS)}: derive it from {[b.__name__ for b in BASES]} or give it split(), apply(), build() or load()"
        )
    for kind in LAWS:
        if target in registry.names(kind):
            return kind, target
    known = {kind: registry.names(kind) for kind in LAWS}
    raise UnknownName(f"{target!r} is not one of {known}, nor kind:name, path/to/file.py:Name or module:Name")


def _needs(part: Any, name: str) -> bool:
    """Whether the part has a field of that name that it cannot do without."""
    fields = {f.name: f for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
    return name in fields and fields[name].default_factory is dataclasses.MISSING and fields[name].default in _UNSET


_UNSET = (dataclasses.MISSING, None)


def _check_stopping(law: Callable[[Any], str | None], bench: Any) -> Finding:
    try:
        return Finding(law.__name__, True, law(bench) or "")
    except Broken as broken:
        return Finding(law.__name__, False, str(broken))
    except Exception as error:  # whatever a part does wrong, the other laws are still of interest
        return Finding(law.__name__, False, f"{type(error).__name__}: {error}")


# -- the bench: runs of a strategy and a client -----------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """A run without its clock: what must be equal where runs are equal."""

    model: Params
    metrics: list[str]
    ledger: list[dict[str, Any]]
    states: dict[int, str]  # client -> fingerprint

    def same(self, other: Run, how: str) -> None:
        if digest(self.model) != digest(other.model):
            raise Broken(f"{how}: the models differ, {_apart(self.model, other.model)}")
        for a, b in zip(self.metrics, other.metrics, strict=True):
            _equal(a, b, f"{how}: metrics")
        key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
        _equal(sorted(map(key, self.ledger)), sorted(map(key, other.ledger)), f"{how}: ledgers")
        _equal(self.states, other.states, f"{how}: states of clients")


@dataclass
class Bench:
    """One strategy and client, as sections of a configuration, and a folder for their runs."""

    strategy: dict[str, Any]
    client: dict[str, Any]
    folder: Path
    runs: int = 0

    @classmethod
    def of(cls, kind: str, name: str, arguments: dict[str, Any], folder: Path) -> Bench:
        if kind == "strategy":
            client = registry.lookup("strategy", name).client
            return cls({"name": name, **arguments}, {"name": client, **_training(client)}, folder)
        bringing = [s for s in registry.names("strategy") if registry.lookup("strategy", s).client == name]
        strategy = bringing[0] if bringing else "fedavg"
        return cls({"name": strategy}, {"name": name, **_training(name), **arguments}, folder)

    def config(self, **overrides: Any) -> Config:
        parts = {"strategy": self.strategy, "client": self.client}
        needs = registry.lookup("strategy", self.strategy["name"]).example_config
        return resolve(read(copy.deepcopy(FEDERATION | parts), {**needs, **overrides}))

    def simulation(self, config: Config | None = None, **overrides: Any) -> Simulation:
        self.runs += 1
        return Simulation(config or self.config(**overrides), self.folder / str(self.runs))

    def run(self, config: Config | None = None, executor: Serial | None = None, **overrides: Any) -> Run:
        with self.simulation(config, **overrides) as simulation:
            simulation.exchanges.executor = simulation.executor = executor or simulation.executor
            return _finished(simulation)

    @cached_property
    def plain(self) -> Run:
        """The run that others are compared with."""
        return self.run()

    def fedavg_equivalent(self, **overrides: Any) -> Config | None:
        """The setting in which the strategy is FedAvg, if it has one."""
        rule = self.config().strategy
        if rule.fedavg_equivalent is None:
            return None
        fedavg_equivalent = Bench(
            self.strategy | dict(rule.fedavg_equivalent.strategy),
            self.client | dict(rule.fedavg_equivalent.client),
            self.folder,
        )
        return fedavg_equivalent.config(**overrides)


def _training(client: str) -> dict[str, Any]:
    part = registry.lookup("client", client)
    fields = {f.name for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
    return {k: v for k, v in TRAINING.items() if k in fields}


def _finished(simulation: Simulation) -> Run:
    result = simulation.run()
    metrics = [json.dumps({k: v for k, v in row.items() if k not in TIMES}) for row in result.metrics]
    return Run(result.model, metrics, result.ledger.to_pylist(), _states(simulation))


def _states(simulation: Simulation) -> dict[int, str]:
    """What each client that has a state left, as a fingerprint."""
    clients, segments = np.arange(simulation.run_setup.population), Segments(simulation.directory / "clients")
    found = {
        c: segments.read(where) for c, where in zip(clients, simulation.states.locations(clients)) if where[0] >= 0
    }
    segments.close()
    return {int(c): fingerprint(state) for c, state in found.items()}


def fingerprint(tree: Tree) -> str:
    skeleton, tensors = flatten(tree)
    sha = hashlib.sha256(skeleton.encode())
    for tensor in tensors:
        sha.update(raw_bytes(tensor.contiguous()))
    return sha.hexdigest()


def _equal(a: Any, b: Any, what: str) -> None:
    if a != b:
        raise Broken(f"{what} differ: {a} and {b}")


def _apart(a: Params, b: Params) -> float:
    """The largest difference, relative to the largest parameter of b."""
    if a.layout is not b.layout:
        raise Broken(f"the models differ: {difference(a, b)}")
    largest = max(float(x.abs().max()) for x in b.buffers)
    return max(float((x - y).abs().max()) for x, y in zip(a.buffers, b.buffers)) / max(largest, 1e-30)


def _close(a: Params, b: Params, tolerance: float, what: str) -> None:
    apart = _apart(a, b)
    if not apart <= tolerance:
        raise Broken(f"{what}: {apart:.1e} apart, more than {tolerance}")


def _with(part: Any, **methods: Callable) -> Any:
    """The same part with some methods in front of its own; `super` is `type(part)`."""
    other = object.__new__(type(type(part).__name__, (type(part),), methods))
    other.__dict__.update(part.__dict__)
    return other


@dataclass(frozen=True, kw_only=True)
class DropoutModel:
    """The bench's perceptron with Dropout behind the hidden layer; its tensors have the same names.

    Args:
        hidden: width of the hidden layer.
        p: probability that Dropout zeroes an entry.
    """

    hidden: tuple[int, ...] = (5,)
    p: float = 0.5

    def build(self, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
        features, (hidden,) = math.prod(shape), self.hidden
        middle = torch.nn.Sequential()  # its layers have no numbers, which patterns of the bench mean others by
        middle.add_module("relu", torch.nn.ReLU())
        middle.add_module("dropout", torch.nn.Dropout(self.p))
        first, last = torch.nn.Linear(features, hidden), torch.nn.Linear(hidden, outputs)
        return torch.nn.Sequential(torch.nn.Flatten(), first, middle, last)


# -- laws of strategies and clients -----------------------------------------------------------------------------------
def runs(bench: Bench) -> None:
    """Three rounds, and everything stays finite."""
    if not all(torch.isfinite(b).all() for b in bench.plain.model.buffers):
        raise Broken("the model is not finite after three rounds")
    for figures in map(json.loads, bench.plain.metrics):
        bad = [name for name, x in figures.items() if isinstance(x, float) and not math.isfinite(x)]
        if bad:
            raise Broken(f"round {figures['round']}: {bad} are not finite")


def state(bench: Bench) -> None:
    """The state is a tree of values: text and tensors, and back."""
    with bench.simulation() as simulation:
        skeleton, tensors = flatten(simulation.state)
        _equal(
            fingerprint(unflatten(skeleton, tensors)), fingerprint(simulation.state), "the state and what is read back"
        )


def repeats(bench: Bench) -> None:
    """The same configuration gives the same bits."""
    bench.run().same(bench.plain, "run twice")


def order(bench: Bench) -> None:
    """In which order a cohort is listed changes nothing."""
    one, other = (bench.run(cohort={"name": "fixed", "clients": list(c)}) for c in ((1, 4, 6), (6, 1, 4)))
    one.same(other, "clients 1, 4, 6 and 6, 1, 4")


def nobody(bench: Bench) -> None:
    """A round that nobody takes part in is a round."""
    run = bench.run(cohort={"name": "poisson", "rate": 1e-9}, rounds=1)
    if not all(torch.isfinite(b).all() for b in run.model.buffers):
        raise Broken("the model is not finite after a round without clients")


def evaluating(bench: Bench) -> None:
    """Evaluations leave no trace in what is trained."""
    seldom = bench.run(**{"evaluation.every": 3})
    if digest(seldom.model) != digest(bench.plain.model):
        raise Broken(
            f"evaluated after each round and once: the models differ, {_apart(seldom.model, bench.plain.model)}"
        )
    _equal(seldom.states, bench.plain.states, "evaluated after each round and once: states of clients")


def placement(bench: Bench) -> None:
    """Who computes what, and when, changes nothing: two workers take single tasks in no order."""
    bench.run(executor=_Scattered()).same(bench.plain, "tasks in order and scattered over two workers")


class _Scattered(Serial):
    def start(self, job, states):
        super().start(job, states)
        self._hire()

    def run(self, dispatch: ExchangeDispatch) -> DispatchResult:
        tasks = random.permutation(dispatch.tasks, "scattered", dispatch.number)
        return dispatch.gather([self._part(k, dispatch, [(t, t + 1) for t in tasks[1 - k :: 2]]) for k in range(2)])


def chunks(bench: Bench) -> None:
    """In the loop, how many clients make a task changes nothing."""
    one, two, eight = (bench.run(**{"execution.plan": "loop", "execution.chunk": n}) for n in (1, 2, 8))
    two.same(one, "tasks of two clients and of one")
    eight.same(one, "tasks of eight clients and of one")


def regrouping(bench: Bench) -> None:
    """The tree of sums is a choice: from left to right instead changes at most 1e-6."""
    settings = {"execution.plan": "loop", "rounds": 1}
    _close(bench.run(executor=_LeftToRight(), **settings).model, bench.run(**settings).model, 1e-6, "another tree")


class _LeftToRight(Serial):
    def run(self, dispatch: ExchangeDispatch) -> DispatchResult:
        if dispatch.kind != "work" or not len(dispatch.cohort):
            return super().run(dispatch)
        parts = [self._part(0, dispatch, [(t, t + 1)]) for t in range(dispatch.tasks)]
        acc, done = None, DispatchResult(None, Columns())
        for part in parts:
            (leaf,) = part.nodes.values()
            acc = leaf if acc is None else acc if leaf is None else dispatch.reduction.merge(acc, leaf)
            done.columns.extend(part.columns)
        return replace(done, value=None if acc is None else dispatch.reduction.finish(acc))


def fedavg_equivalent(bench: Bench) -> str | None:
    """In its neutral setting the method is FedAvg."""
    config = bench.fedavg_equivalent()
    if config is None:
        return "no setting of it is FedAvg"
    declared = config.strategy.fedavg_equivalent
    own = ("strategy", "client")
    needs = {key: value for key, value in config.strategy.example_config.items() if key.split(".")[0] not in own}
    fedavg = Bench({"name": "fedavg", **declared.fedavg}, {"name": "sgd", **TRAINING}, bench.folder / "fedavg").run(
        **needs
    )
    ours = bench.run(config)
    _close(ours.model, fedavg.model, 1e-6, "neutral setting and FedAvg")
    if declared.bits:
        _equal(digest(ours.model), digest(fedavg.model), "equal bits are declared, but the models of it and of FedAvg")
    return None


def neutral_with_dropout(bench: Bench) -> str | None:
    """On a model with Dropout, too, the method in its neutral setting is FedAvg: the masks are FedAvg's."""
    config = bench.config()
    if config.strategy.fedavg_equivalent is None:
        return "no setting of it is FedAvg"
    declared = config.strategy.fedavg_equivalent
    own = ("strategy", "client")
    needs = {key: value for key, value in config.strategy.example_config.items() if key.split(".")[0] not in own}
    fedavg = _fedavg_with_dropout(json.dumps([dict(declared.fedavg), {**needs, **WITH_DROPOUT}]))
    ours = bench.run(bench.fedavg_equivalent(**WITH_DROPOUT)).model
    _close(ours, fedavg, 1e-6, "neutral setting and FedAvg, with Dropout")
    if declared.bits:
        _equal(digest(ours), digest(fedavg), "equal bits are declared, but with Dropout the models of it and of FedAvg")
    return None


@functools.lru_cache(maxsize=8)
def _fedavg_with_dropout(settings: str) -> Params:
    """FedAvg's model; most methods are compared with the same one."""
    rule, overrides = json.loads(settings)
    with tempfile.TemporaryDirectory() as folder:
        return Bench({"name": "fedavg", **rule}, {"name": "sgd", **TRAINING}, Path(folder)).run(**overrides).model


def cohort_of_one(bench: Bench) -> str | None:
    """In the neutral setting a cohort of one is that client."""
    settings = {"cohort": {"name": "fixed", "clients": [3]}, "rounds": 1, "execution.plan": "loop"}
    config = bench.fedavg_equivalent(**settings)
    if config is None:
        return "no setting of it is FedAvg"
    if set(config.client.receives) != {"model"} or "model" not in config.client.sends:
        return "its messages are not a model down and its update up"
    with bench.simulation(config) as simulation:
        start, partition = simulation.run_setup.model.clone(), simulation.run_setup.stages[0].partition
        arrays = {name: torch.from_numpy(array) for name, array in simulation.run_setup.dataset.train.items()}
        views = {split: View(arrays, partition.view_rows(3, split)) for split in ("train", "val", "test")}
        ctx = ClientContext(
            client=3,
            seed=config.seed,
            round=0,
            rounds=1,
            participation=0,
            received={"model": start},
            config={},
            state=None,
            initial=simulation.run_setup.initial,
            module=copy.deepcopy(simulation.run_setup.module),
            task=config.task,
            training_loop=train,
            **views,
        )
        alone = start + config.client.work("train", ctx, None).update.groups["model"]
        _close(_finished(simulation).model, alone, 1e-6, "a cohort of one and that client")
    return None


def resumes(bench: Bench) -> None:
    """Stopped after a round and gone on with is not stopped, whether once or after every round."""
    with bench.simulation() as first:
        first.run(stop=lambda: True)
    resume(first.directory, stop=lambda: True)
    with Simulation(first.config, first.directory, resumed=True) as last:
        _finished(last).same(bench.plain, "resumed after each round and uninterrupted")


def client_states(bench: Bench) -> str | None:
    """A client's state is its own: others' rounds do not touch it, and company in a cohort leaves no trace in it."""
    settings: dict[str, Any] = {"cohort": {"name": "cyclic", "size": 3}, "execution.plan": "loop"}
    history: list[dict[int, str]] = [{}]
    with bench.simulation(**settings) as simulation:
        simulation.run(watch=lambda event, _: history.append(_states(simulation)) if event == "round" else None)
    for round_, (before, after) in enumerate(zip(history, history[1:])):
        cohort = {(3 * round_ + k) % CLIENTS for k in range(3)}
        for client, left in before.items():
            if client not in cohort and after.get(client) != left:
                raise Broken(f"round {round_}: the state of client {client} changed, the cohort was {sorted(cohort)}")
    if not history[1]:
        return "clients keep nothing"
    if any(row["exchange"] for row in bench.plain.ledger):
        return "compared between rounds only: within a round of several exchanges clients hear of each other"
    for client, left in history[1].items():
        alone = bench.run(cohort={"name": "fixed", "clients": [client]}, rounds=1, **{"execution.plan": "loop"})
        _equal(alone.states.get(client), left, f"states of client {client} after a round alone and in company")
    return None


def nobody_late(bench: Bench) -> str | None:
    """On devices all alike, with everybody under way and waited for, an asynchronous server is a synchronous one, equal bits;
    what it cannot do it refuses, and says so."""
    # whatever a client has to do, its trip takes two seconds; a declared size spares methods whose updates have one of their own
    alike = {"devices": {"name": "identical", "ms_per_sample": 0, "latency_ms": 1000}, "up_bytes": 0}
    together = {"mode": "buffered", "concurrency": CLIENTS, "buffer": CLIENTS}
    try:
        late = bench.run(system=alike, server=together)
    except ValueError as error:
        if "an asynchronous server takes strategies" not in str(error):
            raise
        return f"refused: {error}"
    whole = bench.run(system=alike, cohort={"name": "uniform", "size": CLIENTS})
    _equal(
        digest(late.model), digest(whole.model), "an asynchronous server with nobody late and a synchronous one: models"
    )
    _equal(
        late.states, whole.states, "an asynchronous server with nobody late and a synchronous one: states of clients"
    )
    return None


def loop_and_batched(bench: Bench) -> str:
    """Clients trained one by one and together agree to 1e-4."""
    loop, agreed = bench.run(rounds=1, **{"execution.plan": "loop"}), []
    for plan in ("compiled", "stacked", "flat", "vmap"):
        try:
            together = bench.run(rounds=1, **{"execution.plan": plan})
        except ConfigError as error:
            if "is not possible" not in str(error):
                raise
            continue
        _close(together.model, loop.model, 1e-4, f"{plan} and loop")
        _equal(sorted(together.states), sorted(loop.states), f"{plan} and loop: clients with a state")
        agreed.append(plan)
    return ", ".join(agreed) or "trains in the loop only"


def sends(bench: Bench) -> None:
    """The groups that clients send are those they declare."""
    sent, client = (
        {row["group"] for row in _of_clients(bench.plain.ledger) if row["direction"] == "up"},
        bench.config().client,
    )
    _equal(sent, set(client.sends) - (set(client.optional) - sent), "the groups sent and `sends`")


def pure(bench: Bench) -> None:
    """A strategy's round is a function: run twice on one state and the same answers it gives the same, and changes neither."""

    def round_(self: Strategy, state: Tree, ctx: ServerContext):
        before, answers = fingerprint(state), []
        first = yield from _recorded(type(self).__mro__[1].round(self, state, ctx), answers)
        if fingerprint(state) != before:
            raise Broken("a round changed the state it was given; make a new one (p + q, not p.add_(q))")
        again = _replayed(type(self).__mro__[1].round(self, state, ctx), answers)
        _equal(fingerprint(list(again)), fingerprint(list(first)), "two rounds on the same state and answers")
        return first

    config = bench.config()
    bench.run(replace(config, strategy=_with(config.strategy, round=round_)))


def _recorded(generator, answers: list):
    """Runs a round, keeping copies of what it is sent."""
    answer = None
    while True:
        try:
            request = generator.send(answer)
        except StopIteration as end:
            return end.value
        answer = yield request
        answers.append(_copied(answer))


def _replayed(generator, answers: list):
    supply = iter(answers)
    answer = None
    while True:
        try:
            generator.send(answer)
        except StopIteration as end:
            return end.value
        answer = next(supply)


def _copied(answer: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone(), answer)


def work_is_pure(bench: Bench) -> None:
    """A client's work is a function: done twice it gives the same, and changes nothing that it was given."""

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree):
        given = [dict(ctx.received), ctx.state, carry]
        before = fingerprint(given)
        first, again = (type(self).__mro__[1].work(self, name, ctx, carry) for _ in range(2))
        if fingerprint(given) != before:
            raise Broken("work changed what it received, its old state or its carry; make new ones")
        one, other = ([dict(r.update.groups), dict(r.update.metrics), r.state, r.carry] for r in (first, again))
        _equal(fingerprint(one), fingerprint(other), "two answers to the same message")
        return first

    config = bench.config(**{"execution.plan": "loop"})
    bench.run(replace(config, client=_with(config.client, work=work)))


def work_is_what_is_booked(bench: Bench) -> str | None:
    """A model with Dropout trains, and virtual time counts the gradients that are taken: all of them, and those of the
    first steps where a deadline cuts training short."""
    checked: set[tuple[str, int]] = set()

    def work(self: LocalTraining, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        own, n = type(self).__mro__[1], len(ctx.train) // 8 * 8  # batches of one size: each step takes as long
        even = replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[:n]))
        about = np.array([n]), ctx.round, ctx.rounds, name
        (steps,), (samples,) = self.workload(*about)
        (extra,) = self.extra_samples(*about)
        for limit in (None, max(1, int(steps) // 2)) if n and len(checked) < 4 else ():
            with _gradients_counted(ctx.module) as taken:
                own.work(self, name, replace(even, limit=limit), carry)
            booked = samples if limit is None or not steps else extra + (samples - extra) * limit // steps
            if "not countable" not in taken:
                what = f"{name} on {n} samples, {'all' if limit is None else limit} of {steps} steps: samples booked"
                _equal(int(booked), sum(taken), f"{what} and samples whose gradient was taken")
            checked.add((name, ctx.client))
        return own.work(self, name, ctx, carry)

    config = bench.config(**WITH_DROPOUT)
    if not isinstance(config.client, LocalTraining):
        bench.run(config)
        return "it takes no gradient steps"
    run = bench.run(replace(config, client=_with(config.client, work=work)))
    if not checked or not all(torch.isfinite(b).all() for b in run.model.buffers):
        raise Broken("no client trained, or the model is not finite")
    return None


@contextmanager
def _gradients_counted(module: torch.nn.Module) -> Iterator[list[Any]]:
    """The number of samples of each backward pass through the outputs of `module`."""
    taken: list[Any] = []

    def forward(_: torch.nn.Module, __: Any, outputs: torch.Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(outputs):
            taken.append("not countable")
        elif outputs.requires_grad:
            outputs.register_hook(lambda _: taken.append(len(outputs)))

    handle = module.register_forward_hook(forward)
    try:
        yield taken
    finally:
        handle.remove()


def ledger(bench: Bench) -> None:
    """Every byte counted: with the identity codec a row is the bytes of the tensors that a client received or sent."""
    expected: Counter = Counter()

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree):
        reply = type(self).__mro__[1].work(self, name, ctx, carry)
        for direction, groups in (("down", ctx.received), ("up", reply.update.groups)):
            expected.update((ctx.round, ctx.client, direction, group, _nbytes(tree)) for group, tree in groups.items())
        return reply

    config = bench.config(**{"execution.plan": "loop"})
    with bench.simulation(replace(config, client=_with(config.client, work=work))) as simulation:
        rows, kept = _of_clients(_finished(simulation).ledger), set(simulation.exchanges.seen)
    found = Counter((r["round"], r["client"], r["direction"], r["group"], r["encoded_bytes"]) for r in rows)
    if found - expected:
        raise Broken(f"rows of bytes that nobody sent: {sorted(found - expected)[:5]}")
    missing = [row for row in sorted(expected - found) if row[3] not in kept]  # a static group is sent once
    if missing:
        raise Broken(f"bytes that were sent and have no row: {missing[:5]}")


def _of_clients(ledger: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of messages of clients, without those between servers."""
    return [row for row in ledger if row["tier"] == "client"]


def _nbytes(tree: Tree) -> int:
    total = 0

    def leaf(x):
        nonlocal total
        total += x.nbytes

    if isinstance(tree, Sparse):  # positions by the closed form: the shorter of indices and bitmap
        n, k = tree.size, len(tree.positions)
        return tree.values.nbytes + math.ceil(min(k * math.ceil(math.log2(n)), n) / 8)
    tree_map(leaf, tree)
    return total


# -- laws of codecs ---------------------------------------------------------------------------------------------------
KEYS = 4096  # over which means of unbiased codecs are taken


def _vectors() -> list[torch.Tensor]:
    draw = random.torch_generator("check", "codec")
    drawn = [torch.randn(n, generator=draw) for n in (1, 7, 64, 1000)]
    uneven = torch.randn(300, generator=draw) ** 5
    return [torch.empty(0), *drawn, uneven, 1e-6 * drawn[2], torch.ones(12), torch.zeros(33), torch.tensor([-2.5])]


def _through(codec: Codec, values: torch.Tensor, key: Key = 7) -> torch.Tensor:
    return decode(codec, encode(codec, values, key), values.shape[-1], key)


def shape_and_dtype(codec: Codec) -> None:
    """As many numbers arrive as were sent, in float32 and finite; zeros arrive as zeros."""
    for values in _vectors():
        decoded = _through(codec, values)
        _equal((decoded.shape, decoded.dtype), (values.shape, torch.float32), f"{len(values)} numbers: shape and dtype")
        if not torch.isfinite(decoded).all() or (not values.any() and decoded.any()):
            raise Broken(f"{values[:5]}... arrives as {decoded[:5]}...")


def real_bytes(codec: Codec) -> None:
    """The bytes that are counted are those that there are, and those announced."""
    for values in _vectors():
        encoded = encode(codec, values, 7)
        _equal(len(bytes(encoded)), encoded.nbytes, f"{len(values)} numbers: bytes sent and counted")
        announced = codec.exact_size(len(values))
        if announced is not None:
            _equal(encoded.nbytes, announced, f"{len(values)} numbers: bytes and exact_size")


def batches(codec: Codec) -> None:
    """Many clients at once are encoded to the bits that each would have alone, and counted so."""
    for n in (0, 1, 50, 333):
        rows = torch.stack([torch.randn(n, generator=random.torch_generator("check", "batch", i)) for i in range(3)])
        keys = random.hash64("check", "keys", np.arange(3))
        encoded = encode(codec, rows, keys)
        together, counted = decode(codec, encoded, n, keys), np.broadcast_to(encoded.nbytes, 3)
        for i, values in enumerate(rows):
            alone = encode(codec, values.clone(), keys[i])
            _equal(bytes(alone), bytes(encoded.row(i)), f"bytes of row {i}")
            _equal(alone.nbytes, int(counted[i]), f"bytes counted of row {i}")
            if not torch.equal(decode(codec, alone, n, keys[i]), together[i]):
                raise Broken(f"row {i} arrives otherwise alone than in a batch")


def deterministic(codec: Codec) -> None:
    """The same numbers and key give the same bytes, and the numbers are left as they were."""
    for values in _vectors():
        before = values.clone()
        _equal(bytes(encode(codec, values, 7)), bytes(encode(codec, values, 7)), f"encodings of {len(values)} numbers")
        if not torch.equal(values, before):
            raise Broken("encode() changed the numbers it was given")


def mean_over_keys(codec: Codec) -> str | None:
    """Of an unbiased codec the mean over keys is what was sent: within six standard errors."""
    if not codec.unbiased:
        return "is not said to be unbiased"
    keys = random.hash64("check", "mean", np.arange(KEYS if codec.draws else 1))
    for n in (1, 7, 40):
        values = torch.randn(n, generator=random.torch_generator("check", "mean", n))
        arrived = _through(codec, values.repeat(len(keys), 1), keys).double()
        away = (arrived.mean(0) - values.double()).abs()
        error = arrived.std(0, correction=0) / len(keys) ** 0.5
        if (away > 6 * error + 1e-4 * float(values.abs().max())).any():
            raise Broken(f"{values[away.argmax()]:.4f} arrives as {arrived.mean(0)[away.argmax()]:.4f} in the mean")
    return None


def error_bound(codec: Codec) -> str | None:
    """No error is larger than the codec's own bound, whatever is drawn."""
    for values in _vectors():
        bound = codec.bound(values)
        if bound is None:
            return "states no bound"
        for key in range(5):
            error = float((_through(codec, values, key).double() - values.double()).norm())
            if error > bound * (1 + 1e-4) + 1e-6 * float(values.double().norm()):
                raise Broken(f"{len(values)} numbers of norm {values.norm():.3g}: error {error:.6g}, bound {bound:.6g}")
    return None


def not_finite(codec: Codec) -> None:
    """A NaN or an infinity is refused with a ValueError, or arrives as something that is not finite."""
    for bad in (math.nan, math.inf, -math.inf):
        for n in (1, 50):
            values = torch.linspace(-1, 1, n)
            values[n // 3] = bad
            try:
                arrived = _through(codec, values)
            except ValueError:
                continue
            if torch.isfinite(arrived).all():
                raise Broken(f"{bad} among {n} numbers arrives as {float(arrived[n // 3])}; refuse it")


# -- laws of partitions -----------------------------------------------------------------------------------------------
def disjoint(part: Any) -> None:
    """Every row is one client's at most, and there is such a row."""
    dataset = DATA.load()
    part.split(dataset).check(len(dataset))


def same_seed(part: Any) -> None:
    """The same arguments give the same partition, another seed another."""
    dataset = DATA.load()
    one, two = part.split(dataset), part.split(dataset)
    if not _same_partition(one, two):
        raise Broken("split twice, two partitions")
    if hasattr(part, "seed") and _same_partition(one, replace(part, seed=part.seed + 1).split(dataset)):
        raise Broken(f"seeds {part.seed} and {part.seed + 1} give the same partition")


def _same_partition(a: Partition, b: Partition) -> bool:
    return np.array_equal(a.indices, b.indices) and np.array_equal(a.offsets, b.offsets)


def min_size(part: Any) -> str | None:
    """Nobody has fewer rows than promised, and what cannot be is refused."""
    if not hasattr(part, "min_size"):
        return "promises no least size"
    dataset = DATA.load()
    sizes = np.diff(replace(part, min_size=6).split(dataset).offsets)
    if sizes.min() < 6:
        raise Broken(f"min_size=6 gives clients of {sizes.tolist()}")
    _refuses(part, {"min_size": len(dataset)})
    return None


def refusals(part: Any) -> None:
    """Numbers of clients and concentrations that make no sense are refused."""
    for name, values in {"clients": (0, -1, 10**6), "alpha": (0.0, -1.0, math.nan)}.items():
        if hasattr(part, name):
            for value in values:
                _refuses(part, {name: value})


def _refuses(part: Any, arguments: Mapping[str, Any]) -> None:
    try:
        replace(part, **arguments).split(DATA.load())
    except ValueError:
        return
    raise Broken(f"{dict(arguments)} is not refused; raise a ValueError that says what is allowed")


# -- laws of shifts ---------------------------------------------------------------------------------------------------
def _images() -> Dataset:
    """48 colour images with labels, another column and a test set."""
    draw = random.numpy_generator("check", "shift")

    def arrays(n: int) -> dict[str, np.ndarray]:
        x = draw.standard_normal((n, 3, 6, 6), np.float32)
        return {"x": x, "y": np.arange(n) % 4, "domain": draw.integers(0, 3, n)}

    return Dataset(arrays(48), arrays(12), np.arange(48) // 6)


def _holders(*missing: int) -> Partition:
    """CLIENTS with five rows each, in no order; eight rows are nobody's, and so are those of the clients `missing`, who have
    one of the eight instead."""
    rows = random.permutation(48, "check", "shift", "rows")
    lists = [rows[40 + c : 41 + c] if c in missing else rows[5 * c : 5 * c + 5] for c in range(CLIENTS)]
    return Partition(np.concatenate(lists), np.cumsum([0, *map(len, lists)]))


def same_shift(part: Any) -> None:
    """The same arguments give the same shift, another seed another."""
    dataset, partition = _images(), _holders()
    one = part.apply(dataset, partition).digest()
    _equal(one, part.apply(dataset, partition).digest(), "applied twice: the data")
    if hasattr(part, "seed") and one == replace(part, seed=part.seed + 1).apply(dataset, partition).digest():
        raise Broken(f"seeds {part.seed} and {part.seed + 1} give the same shift")


def input_kept(part: Any) -> None:
    """The data and the partition that it is given stay as they were."""
    dataset, partition = _images(), _holders()
    part.apply(dataset, partition)
    _equal(dataset.digest(), _images().digest(), "the data that apply() was given, before and after,")
    if not _same_partition(partition, _holders()):
        raise Broken("apply() changed the partition it was given")


def only_what_it_says(part: Any) -> None:
    """It changes the arrays that `changes` names ("x" without it), of rows that are someone's; shapes and types stay."""
    before, after, partition = _images(), part.apply(_images(), _holders()), _holders()
    changes = getattr(part, "changes", ("x",))
    kept = {n: a for n, a in before.train.items() if n not in changes}
    for name, array in {**before.train, **after.train}.items():
        if name not in before.train or name not in after.train or array.shape != before.train[name].shape:
            raise Broken(f"train: {name!r} is new, missing or of another shape")
    _equal(
        {n: a.dtype for n, a in before.train.items()}, {n: a.dtype for n, a in after.train.items()}, "types of arrays"
    )
    others = [n for n, a in kept.items() if not np.array_equal(a, after.train[n])]
    others += [] if replace(before, train=after.train).digest() == after.digest() else ["test, server or clients"]
    if others:
        raise Broken(f"{others} changed; only {list(changes)} may, by its ClassVar `changes`")
    if not any(not np.array_equal(before.train[n], after.train[n]) for n in changes):
        raise Broken(f"none of {list(changes)} changed")
    free = np.setdiff1d(np.arange(len(before)), partition.indices)
    if any(not np.array_equal(before.train[n][free], after.train[n][free]) for n in changes):
        raise Broken("rows that are nobody's changed")


def own_rows(part: Any) -> None:
    """What becomes of a client's row does not depend on which rows others have, nor on their order or its own."""
    dataset, partition = _images(), _holders()
    plain = part.apply(dataset, partition)
    lists = [partition.indices[a:b] for a, b in zip(partition.offsets, partition.offsets[1:])]
    turned = Partition(np.concatenate([rows[::-1] for rows in lists]), partition.offsets)
    _equal(part.apply(dataset, turned).digest(), plain.digest(), "a client's rows listed backwards: the data")
    for client in range(CLIENTS):
        alone = part.apply(dataset, _holders(*(c for c in range(CLIENTS) if c != client)))
        for name, array in plain.train.items():
            if not np.array_equal(array[lists[client]], alone.train[name][lists[client]]):
                raise Broken(f"{name!r} of client {client} depends on the rows that others have")


# -- laws of samplers -------------------------------------------------------------------------------------------------
SIZES = np.arange(1, 13)


def ascending(sampler: Sampler) -> None:
    """Cohorts are ascending, distinct ids of the population, int64."""
    for ids in _cohorts(sampler, range(10)):
        if ids.dtype != np.int64 or (np.diff(ids) <= 0).any() or (len(ids) and not 0 <= ids[0] <= ids[-1] < len(SIZES)):
            raise Broken(f"{ids!r} is not ascending, distinct int64 ids below {len(SIZES)}")


def addressed(sampler: Sampler) -> None:
    """A draw depends on state, round and seed alone; the state is a tree, and is left as it was."""
    start = sampler.init(len(SIZES))
    before, here = fingerprint(start), start
    for round_ in range(10):
        one, cohort = sampler.sample(here, round_, 0, SIZES)
        sampler.sample(sampler.init(len(SIZES)), round_ + 5, 1, SIZES)  # another draw in between
        two, again = sampler.sample(here, round_, 0, SIZES)
        _equal(cohort.tolist(), again.tolist(), f"cohorts of round {round_} drawn twice")
        _equal(fingerprint(one), fingerprint(two), f"states after round {round_} drawn twice")
        here = one
    _equal(fingerprint(start), before, "the state that sample() was given, before and after,")


def too_many(sampler: Sampler) -> str | None:
    """More clients than there are, or none, are refused."""
    if getattr(sampler, "size", None) is None:
        return "takes no size"
    for size in (0, len(SIZES) + 1):
        try:
            replace(sampler, size=size).init(len(SIZES))
        except ValueError:
            continue
        raise Broken(f"size={size} of a population of {len(SIZES)} is not refused")
    return None


def _cohorts(sampler: Sampler, rounds: range) -> list[np.ndarray]:
    state, cohorts = sampler.init(len(SIZES)), []
    for round_ in rounds:
        state, cohort = sampler.sample(state, round_, 0, SIZES)
        cohorts.append(cohort)
    return cohorts


# -- laws of augmentations --------------------------------------------------------------------------------------------
def _pictures() -> tuple[torch.Tensor, np.ndarray]:
    return torch.from_numpy(random.uniform("images", np.arange(16 * 3 * 8 * 9)).astype(np.float32)).view(
        16, 3, 8, 9
    ), random.hash64("words", np.arange(16))


def each_alone(augment: Augment) -> None:
    """A sample's change depends on its word alone, and keeps shape and type; the samples given are left as they were."""
    x, words = _pictures()
    before, together = x.clone(), augment.apply(x, words)
    if together.shape != x.shape or together.dtype != x.dtype:
        raise Broken(f"{x.dtype} {tuple(x.shape)} becomes {together.dtype} {tuple(together.shape)}")
    alone = torch.cat([augment.apply(x[i : i + 1], words[i : i + 1]) for i in range(len(x))])
    if not torch.equal(together, alone):
        raise Broken("samples change otherwise in company than alone")
    if not torch.equal(x, before):
        raise Broken("apply() changed the samples it was given")


def changes(augment: Augment) -> None:
    """Other words, other changes; the same words the same."""
    x, words = _pictures()
    first = augment.apply(x, words)
    if not torch.equal(first, augment.apply(x, words)):
        raise Broken("applied twice, two results")
    if all(torch.equal(first, augment.apply(x, random.hash64(words, k))) for k in range(8)):
        raise Broken("whatever the words are, the samples become the same")


# -- laws of models ---------------------------------------------------------------------------------------------------
OUTPUTS = 7
# what a model may be for: features, grey and colour images, ids
SAMPLES: dict[str, Callable[[int], torch.Tensor]] = {
    "60 features": lambda n: _reals(n, 60),
    "images 1 x 28 x 28": lambda n: _reals(n, 1, 28, 28),
    "images 3 x 32 x 32": lambda n: _reals(n, 3, 32, 32),
    "20 ids": lambda n: torch.from_numpy(
        (random.hash64("ids", np.arange(n * 20)) % np.uint64(50)).astype(np.int64)
    ).view(n, 20),
}


def _reals(*shape: int) -> torch.Tensor:
    return torch.from_numpy(random.uniform("inputs", np.arange(math.prod(shape))).astype(np.float32)).view(shape)


def _built(model: Any) -> Iterator[tuple[str, torch.nn.Module, torch.Tensor]]:
    """The model for each kind of samples that it takes."""
    refusals = {}
    for kind, samples in SAMPLES.items():
        x = samples(5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                module = nn.addressed(model.build(tuple(x.shape[1:]), OUTPUTS))
            except ValueError as error:
                refusals[kind] = str(error)
                continue
        if not x.is_floating_point() and isinstance(module, torch.nn.Sequential):
            continue  # layers over features, which ids are not
        yield kind, module.eval(), x
    if len(refusals) == len(SAMPLES):
        raise Broken(f"build() takes none of {list(SAMPLES)}: {refusals}")


def builds(model: Any) -> None:
    """For samples that it takes there are finite outputs for each, of as many numbers as asked for, and something to train."""
    for kind, module, x in _built(model):
        outputs = module(x)
        if len(outputs) != len(x) or (outputs.shape[-1] != OUTPUTS and getattr(model, "head", True)):
            raise Broken(f"{len(x)} of {kind} give outputs {tuple(outputs.shape)}, {OUTPUTS} were asked for")
        if not torch.isfinite(outputs).all():
            raise Broken(f"outputs for {kind} are not finite")
        if not any(p.requires_grad for p in module.parameters()):
            raise Broken("it has nothing to train")


def same_weights(model: Any) -> None:
    """The first weights are the seed's."""
    for (kind, one, _), (_, two, _) in zip(_built(model), _built(model)):
        for name, tensor in one.state_dict().items():
            if not torch.equal(tensor, two.state_dict()[name]):
                raise Broken(f"built twice for {kind} from one seed, {name} differs")


def outputs_alone(model: Any) -> None:
    """In evaluation a sample's output is its own, whoever is in its batch."""
    for kind, module, x in _built(model):
        if nn.looks_at_batch(module):
            continue
        with torch.inference_mode():
            together, alone = module(x), torch.cat([module(x[i : i + 1]) for i in range(len(x))])
        if float((together - alone).abs().max()) > 1e-4 * max(1.0, float(alone.abs().max())):
            raise Broken(f"outputs for {kind} change with what else is in the batch")


# -- laws of tasks ----------------------------------------------------------------------------------------------------
ROWS = 24


def _targets() -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Targets, and the shape of outputs in front of their last axis."""
    words = random.hash64("targets", np.arange(ROWS * 6)).reshape(ROWS, 6)
    yield (words[:, 0] % np.uint64(5)).astype(np.int64), ()
    yield random.uniform("targets", np.arange(ROWS * 3)).astype(np.float32).reshape(ROWS, 3), ()
    yield (words[:, :4] % np.uint64(2)).astype(np.int64), ()
    yield (words % np.uint64(5)).astype(np.int64), (6,)


def _asked(task: Task) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(outputs, batch) of the first kind of targets that the task takes."""
    for y, places in _targets():
        try:
            count = task.num_outputs({"y": y})
            outputs = 4 * _reals(ROWS, *places, count) - 2
            batch = {"x": _reals(ROWS, 3), "y": torch.from_numpy(y)}
            if task.loss(outputs, batch).shape == (ROWS,):
                return outputs, batch
        except (ValueError, RuntimeError, IndexError):
            continue
    raise Broken("it takes neither classes, nor numbers, nor labels, nor tokens")


def loss_by_sample(task: Task) -> None:
    """The loss is a finite number for each sample, its own alone, and has a gradient."""
    outputs, batch = _asked(task)
    losses = task.loss(outputs.requires_grad_(), batch)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    if not (torch.isfinite(losses).all() and torch.isfinite(gradient).all() and gradient.abs().sum() > 0):
        raise Broken("losses or their gradient are not finite, or there is none")
    alone = torch.cat([task.loss(outputs[i : i + 1], {n: a[i : i + 1] for n, a in batch.items()}) for i in range(ROWS)])
    if float((losses - alone).detach().abs().max()) > 1e-5:
        raise Broken("a sample's loss changes with what else is in the batch")


def pools(task: Task) -> None:
    """Metrics of parts, put together in any order, are those of the whole."""
    outputs, batch = _asked(task)
    nobody = torch.zeros(ROWS, dtype=torch.int64)
    for name, metric in task.metrics().items():
        whole = metric.finish(row(metric.measure(outputs, batch, nobody, 1), 0))
        for cuts in ((0, 7, 8, ROWS), (0, 1, 20, ROWS)):
            parts = [
                row(metric.measure(outputs[a:b], {n: x[a:b] for n, x in batch.items()}, nobody[a:b], 1), 0)
                for a, b in zip(cuts, cuts[1:])
            ]
            for order in (parts, parts[::-1]):
                pooled = order[0]
                for part in order[1:]:
                    pooled = metric.merge(pooled, part)
                if not math.isclose(metric.finish(pooled), whole, rel_tol=1e-9, abs_tol=1e-12):
                    raise Broken(f"{name} of three parts is {metric.finish(pooled)}, of the whole {whole}")


# -- laws of data -----------------------------------------------------------------------------------------------------
def loads_alike(data: Any) -> str | None:
    """Loaded twice, data are the same, and finite."""
    try:
        one, two = as_dataset(data.load()), as_dataset(data.load())
    except ValueError as error:
        if "is not in" in str(error):
            return f"not checked: {str(error).partition(';')[0]}"
        raise
    _equal(one.digest(), two.digest(), "digests of data loaded twice")
    if not np.isfinite(one.train["x"]).all():
        raise Broken("features are not finite")
    return None


# -- the table --------------------------------------------------------------------------------------------------------
_RUNS = [
    runs,
    state,
    repeats,
    order,
    nobody,
    evaluating,
    placement,
    chunks,
    regrouping,
    resumes,
    client_states,
    nobody_late,
    loop_and_batched,
]
LAWS: dict[str, list[Callable[[Any], str | None]]] = {
    "strategy": [*_RUNS, sends, pure, ledger, fedavg_equivalent, neutral_with_dropout, cohort_of_one],
    "client": [*_RUNS, sends, work_is_pure, work_is_what_is_booked, ledger],
    "codec": [shape_and_dtype, real_bytes, batches, deterministic, mean_over_keys, error_bound, not_finite],
    "partition": [disjoint, same_seed, min_size, refusals],
    "shift": [same_shift, input_kept, only_what_it_says, own_rows],
    "sampler": [ascending, addressed, too_many],
    "augment": [each_alone, changes],
    "model": [builds, same_weights, outputs_alone],
    "task": [loss_by_sample, pools],
    "data": [loads_alike],
}
