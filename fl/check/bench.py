"""The small federation on which strategies and clients are checked: eight clients with few samples, three rounds."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fl import registry
from fl.check import reference
from fl.check.finding import Broken, relative_distance, require_equal
from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.data.sets.noise import LogNormal, RandomData
from fl.execution.workers.executor import Executor
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from fl.tensors.params import Params
from fl.tensors.serialise import digest, flatten, raw_bytes
from fl.tensors.trees import Tree

CLIENTS = 8
DATA = RandomData(shape=(6,), classes=4, clients=CLIENTS, samples=LogNormal(lognormal=0.7, mean=20, low=5, high=60))
FEDERATION: dict[str, Any] = {
    "rounds": 3,
    "data": {"name": "noise"} | dataclasses.asdict(DATA),
    "partition": reference.PARTITION,
    "splits": {"val": 0.2},
    "model": {"name": "mlp", "hidden": [5]},
    "cohort": {"name": "uniform", "size": 5},
    "execution": {"executor": "serial"},
}
TRAINING = {"epochs": 2, "batch": 8, "lr": 0.1}  # for clients that have such fields
TIMES = {"wall_seconds", "busy_seconds", "server_seconds"}

Part = TypeVar("Part")


@dataclass(frozen=True)
class Run:
    """The results of a run without its measured times: what must be equal where runs are equal.

    `metrics` has a JSON text for each round, `ledger` a dict for each row, `states` a fingerprint of each client's
    state.
    """

    model: Params
    metrics: list[str]
    ledger: list[dict[str, Any]]
    states: dict[int, str]

    def require_same(self, other: Run, how: str) -> None:
        """Raise `Broken` unless both runs have equal bits; `how` says in which way they were run."""
        require_equal_bits(self.model, other.model, how)
        for a, b in zip(self.metrics, other.metrics, strict=True):
            require_equal(a, b, f"{how}: metrics")
        mine, theirs = (sorted(json.dumps(row, sort_keys=True) for row in run.ledger) for run in (self, other))
        require_equal(mine, theirs, f"{how}: ledgers")
        require_equal(self.states, other.states, f"{how}: states of clients")


@dataclass
class Bench:
    """One strategy and client, as sections of a configuration, and a folder for their runs."""

    strategy: dict[str, Any]
    client: dict[str, Any]
    folder: Path
    count: int = 0
    finished: dict[str, Run] = field(default_factory=dict)  # by configuration, for `run_once`

    @classmethod
    def of(cls, kind: str, name: str, arguments: dict[str, Any], folder: Path) -> Bench:
        """Bench of a strategy with its own client, or of a client with a strategy that brings it.

        A client that no registered strategy brings is checked with the reference FedAvg.
        """
        if kind == "strategy":
            client = registry.lookup("strategy", name).client
            return cls({"name": name, **arguments}, {"name": client, **training(client)}, folder)
        bringing = (s for s in registry.names("strategy") if registry.lookup("strategy", s).client == name)
        strategy = next(bringing, reference.STRATEGY)
        return cls({"name": strategy}, {"name": name, **training(name), **arguments}, folder)

    def config(self, **overrides: Any) -> Config:
        """The federation with both parts, their `example_config` and overrides by dotted path.

        A part whose example names a model keeps it, because it cannot train another one.
        """
        parts = {"strategy": self.strategy, "client": self.client}
        parts_of_run = (
            registry.lookup("strategy", self.strategy["name"]),
            registry.lookup("client", self.client["name"]),
        )
        needs = {key: value for part in parts_of_run for key, value in getattr(part, "example_config", {}).items()}
        if "model" in needs:
            overrides.pop("model.name", None)
        return resolve(read(copy.deepcopy(FEDERATION | parts), copy.deepcopy({**needs, **overrides})))

    def simulation(
        self, config: Config | None = None, executor: Executor | None = None, **overrides: Any
    ) -> Simulation:
        """A new run in a folder of its own, not started yet."""
        self.count += 1
        return Simulation(config or self.config(**overrides), self.folder / str(self.count), executor=executor)

    def run(self, config: Config | None = None, executor: Executor | None = None, **overrides: Any) -> Run:
        """Run a configuration from start to end."""
        with self.simulation(config, executor, **overrides) as simulation:
            return finish(simulation)

    def run_once(self, **overrides: Any) -> Run:
        """`run`, or the earlier result if a law has asked for the same configuration before."""
        config = self.config(**overrides)
        key = json.dumps(config.to_dict(), sort_keys=True, default=repr)
        if key not in self.finished:
            self.finished[key] = self.run(config)
        return self.finished[key]

    @cached_property
    def plain(self) -> Run:
        """The uninterrupted run that others are compared with."""
        return self.run_once()

    @property
    def is_vertical(self) -> bool:
        """Whether clients hold columns. Then all of them take part in each round, and the server is synchronous."""
        return self.config().strategy.axis == "columns"

    def fedavg_equivalent(self, **overrides: Any) -> Config | None:
        """The setting in which the strategy equals FedAvg, or `None` if there is none."""
        equivalent = self.config().strategy.fedavg_equivalent
        if equivalent is None:
            return None
        strategy = self.strategy | dict(equivalent.strategy)
        return Bench(strategy, self.client | dict(equivalent.client), self.folder).config(**overrides)


def training(client: str) -> dict[str, Any]:
    """Those settings of `TRAINING` that a client algorithm has."""
    part = registry.lookup("client", client)
    fields = {f.name for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
    return {k: v for k, v in TRAINING.items() if k in fields}


def finish(simulation: Simulation) -> Run:
    """Run a simulation to its end and collect its results."""
    result = simulation.run()
    metrics = [json.dumps({k: v for k, v in row.items() if k not in TIMES}) for row in result.metrics]
    return Run(result.model, metrics, result.ledger.to_pylist(), client_states(simulation))


def client_states(simulation: Simulation) -> dict[int, str]:
    """Fingerprint of the state of each client that has one."""
    clients, segments = np.arange(simulation.run_setup.population), Segments(simulation.directory / "clients")
    places = zip(clients, simulation.states.locations(clients))
    states = {int(client): segments.read(place) for client, place in places if place[0] >= 0}
    segments.close()
    return {client: fingerprint(state) for client, state in states.items()}


def fingerprint(tree: Tree) -> str:
    """SHA-256 of a tree's structure and tensors."""
    skeleton, tensors = flatten(tree)
    sha = hashlib.sha256(skeleton.encode())
    for tensor in tensors:
        sha.update(raw_bytes(tensor.contiguous()))
    return sha.hexdigest()


def require_equal_bits(a: Params, b: Params, how: str) -> None:
    """Raise `Broken` unless two models have equal bits; `how` says how they were computed."""
    if digest(a) != digest(b):
        raise Broken(f"{how}: the models differ, {relative_distance(a, b)}")


def with_methods(part: Part, **methods: Callable[..., Any]) -> Part:
    """Copy of a part whose methods are replaced; a replacement reaches the part's own method by `own(self)`."""
    other: Part = object.__new__(type(type(part).__name__, (type(part),), methods))
    other.__dict__.update(part.__dict__)
    return other


def own(part: Part) -> type[Part]:
    """The class that `with_methods` derived from."""
    return type(part).__mro__[1]
