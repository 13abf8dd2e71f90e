"""The things that a run works on, put together from its configuration: data, partition, model, plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fl.config.config import Config, located
from fl.data.dataset import Dataset, tensors
from fl.data.partition import Partition
from fl.data.stream import Period, split_rows
from fl.errors import ConfigError
from fl.execution.training.device import Device
from fl.execution.training.loop import overrides
from fl.execution.training.plan import Plan, make_plan
from fl.execution.worker import Job
from fl.method.client import LocalTraining, View
from fl.models.binding import Initial, bind, module_params
from fl.models.nn import addressed, statistics
from fl.system.flops import flops_per_sample
from fl.system.simulated_system import SimulatedSystem
from fl.tensors import random
from fl.tensors.params import Params


@dataclass(frozen=True, eq=False)
class RunSetup:
    """A configuration with its explicit plan, and what it describes."""

    config: Config
    dataset: Dataset
    periods: tuple[Period, ...]  # of the task stream; one, if there is none
    module: torch.nn.Module
    initial: Initial  # its tensors
    plan: Plan
    world: SimulatedSystem | None  # devices and presence of those who may train, if there is a system model

    def sizes(self, period: int) -> np.ndarray:
        """(N,): training samples of each client in a period."""
        return self._sizes[period]

    @cached_property
    def _sizes(self) -> list[np.ndarray]:
        return [period.partition.train_slices()[1] for period in self.periods]

    @property
    def model(self) -> Params:
        """The first model: what may be trained."""
        return self.initial.trained

    @property
    def population(self) -> int:
        """Clients, those that are held out from training included: they are the last."""
        return self.periods[0].partition.num_clients

    @property
    def trainable(self) -> int:
        return self.population - self.config.splits.clients

    @cached_property
    def flops_per_sample(self) -> float:
        """To train on one sample; NaN where nobody asks."""
        system, period = self.config.system, self.periods[0]
        if system is None or system.compute != "flops":
            return math.nan
        rows = np.flatnonzero(np.diff(period.partition.offsets) > 0)[:1]
        batch = View(
            tensors(self.dataset.train),
            period.partition.view_rows(int(rows[0]), "train")[:32],
        ).take(slice(None))
        bind(self.module, self.initial.trained, self.initial)
        return flops_per_sample(self.module, batch["x"], lambda outputs: period.task.loss(outputs, batch).sum())

    @cached_property
    def ends(self) -> np.ndarray:
        """(S,): the rounds that periods end before."""
        return np.cumsum([period.rounds for period in self.periods])

    def period_at(self, round_: int) -> int:
        """The period of a round; of what comes after all rounds, the last."""
        return min(int(np.searchsorted(self.ends, round_, side="right")), len(self.periods) - 1)

    def plan_for(self, module: torch.nn.Module) -> Plan:
        """The plan for training another module than the run's."""
        config, execution = self.config, replace(self.config.execution, chunk=None)
        given = self.periods[0].task, inputs(self.dataset), execution, cohort_size(config), bool(config.data.augment)
        return make_plan(config.client, module, module_params(module), *given)

    def job(self, folder: Any, scratch: Any) -> Job:
        """What workers need of it."""
        config = self.config
        return Job(
            algorithm=config.client,
            module=self.module,
            initial=self.initial,
            arrays=tensors(self.dataset.train),
            server_arrays=tensors(self.dataset.test),
            periods=self.periods,
            seed=config.seed,
            rounds=config.rounds,
            up=config.up,
            down=config.down,
            transforms=config.transforms,
            augment=config.data.augment,
            statistics=tuple(statistics(self.module, "local")),
            device=device(config),
            micro_batch=config.execution.micro_batch,
            graphs=config.execution.graphs,
            compiled=self.plan.kind == "compiled",
            on_error=config.execution.on_client_error,
            folder=folder,
            scratch=scratch,
            adapt=config.evaluation.adapt,
            shots=config.evaluation.shots,
        )


def set_up_run(config: Config) -> RunSetup:
    """Load, partition, build and plan; whatever does not fit is a `ConfigError`."""
    _guard("execution", device(config).check)
    dataset, periods = load_data(config)
    population = periods[0].partition.num_clients
    if config.splits.clients >= population:
        raise ConfigError("splits.clients", f"{config.splits.clients} held out of {population} leave nobody to train")
    _guard("cohort", lambda: config.cohort.check(population - config.splits.clients))
    module = build_model(config, dataset)
    initial = Initial.of(module)
    execution, task, augmented = config.execution, periods[0].task, bool(config.data.augment)
    given = inputs(dataset), execution, cohort_size(config), augmented
    plan = _guard("execution", lambda: make_plan(config.client, module, initial.trained, task, *given))
    execution = replace(execution, plan=plan.kind, chunk=plan.chunk, layout=plan.layout)
    system, trainable = config.system, population - config.splits.clients
    world = None if system is None else _guard("system", lambda: system.draw(config.seed, trainable))
    return RunSetup(replace(config, execution=execution), dataset, periods, module, initial, plan, world)


def device(config: Config) -> Device:
    """Where clients train."""
    execution = config.execution
    return Device(execution.device, execution.precision, execution.deterministic)


def load_data(config: Config) -> tuple[Dataset, tuple[Period, ...]]:
    """The data and, for each period of the run, who holds which rows of them."""
    dataset = _guard("data", config.data.load)

    def split(part: Dataset) -> Partition:
        if part.held is None or getattr(config.partition, "keeps_held", False):
            return _guard("partition", lambda: config.partition.split(part))
        return split_rows(replace(part, held=None), np.flatnonzero(~part.held), split)

    if config.stream is None:
        periods = [Period(config.rounds, split(dataset), config.task)]
    else:
        dataset, periods = _guard("stream", lambda: config.stream.periods(dataset, split, config.task))
    if config.shift is not None:
        dataset = _guard("shift", lambda: config.shift.apply(dataset, periods[0].partition))
    holders = sum(np.diff(period.partition.offsets) for period in periods)
    empty = np.flatnonzero(holders == 0)
    if len(empty):
        raise ConfigError(
            "partition",
            f"{len(empty)} of {len(holders)} clients have no data (the first: {[int(c) for c in empty[:5]]}). "
            "Set partition.min_size, fewer clients, or a larger alpha",
        )
    held = [_guard("splits", lambda period=period: _split(period.partition, dataset, config)) for period in periods]
    return dataset, tuple(replace(period, partition=partition) for period, partition in zip(periods, held))


def _split(partition: Partition, dataset: Dataset, config: Config) -> Partition:
    """With each client's rows in train, val and test."""
    splits = config.splits
    partition = partition.hold_out(splits.val, splits.test, getattr(config.partition, "seed", 0))
    if splits.per_class is not None:
        partition = partition.capped(dataset.labels, splits.per_class)
    return partition.pooled() if splits.pooled else partition


def cohort_size(config: Config) -> int | None:
    """How many clients take part in a round, where that is the same in all."""
    return getattr(config.cohort, "size", None)


def inputs(dataset: Dataset) -> torch.Tensor:
    """A few samples, as the model takes them."""
    return torch.tensor(dataset.train["x"][:4])


def build_model(config: Config, dataset: Dataset) -> torch.nn.Module:
    """The module with its first weights, drawn from the seed alone or as a file has them."""
    parts = [part for part in (dataset.train, dataset.test) if part]
    outputs = _guard("task", lambda: max(config.task.num_outputs(part) for part in parts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.hash64(config.seed, "model")) >> 1)
        module = addressed(_guard("model", lambda: config.model.build(dataset.train["x"].shape[1:], outputs)))
    _check_statistics(config, dataset, module)
    return module


def _check_statistics(config: Config, dataset: Dataset, module: torch.nn.Module) -> None:
    """What training changes besides parameters has to be somebody's."""
    known = {*module.state_dict()} - {*statistics(module, "local"), *statistics(module, "averaged")}
    floats = [name for name, b in module.named_buffers() if b.is_floating_point() and name in known]
    if floats and isinstance(config.client, LocalTraining):
        raise ConfigError(
            "model",
            f"has buffers that training changes ({floats[0]}, ...): running statistics would leak between clients. "
            "Use GroupNorm or LayerNorm, or say whose they are: model.batch_norm: batch, local or averaged",
        )
    if statistics(module, "local") and config.evaluation.server and dataset.test is not None:
        raise ConfigError(
            "evaluation.server",
            "with model.batch_norm: local the server has no running statistics to predict with; set it to false, "
            "or take batch_norm: averaged or batch",
        )
    if statistics(module, "averaged"):
        strategy, client = config.strategy, config.client
        if not strategy.averages():
            raise ConfigError(
                "model.batch_norm",
                f"'averaged' goes with strategies whose model is an average (fedavg with lr <= 1, fedprox, fedper, fedbn, ...); "
                f"{type(strategy).__name__} may step to negative variances. Use batch or local",
            )
        if not isinstance(client, LocalTraining) or overrides(client, "work"):
            raise ConfigError(
                "model.batch_norm",
                f"'averaged' goes with gradient steps alone; {type(client).__name__} has work of its own",
            )


def _guard(path: str, make: Callable[[], Any]) -> Any:
    """A part's complaint as a ConfigError with its place."""
    try:
        return make()
    except ConfigError:
        raise
    except ValueError as error:
        raise located(path, error) from error
