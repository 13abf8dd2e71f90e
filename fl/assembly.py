"""The things that a run works on, put together from its configuration: data, partition, model, plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fl import random
from fl.config import Config, ConfigError, located
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.execution.plan import Plan, make_plan
from fl.execution.worker import Job
from fl.nn import addressed
from fl.params import Params, module_params


@dataclass(frozen=True, eq=False)
class Assembly:
    """A configuration with its explicit plan, and what it describes."""

    config: Config
    dataset: Dataset
    partition: Partition
    module: torch.nn.Module
    model: Params
    plan: Plan

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N,): training samples of each client."""
        return self.partition.train_slices()[1]

    @property
    def population(self) -> int:
        return self.partition.num_clients

    def plan_for(self, module: torch.nn.Module) -> Plan:
        """The plan for training another module than the run's."""
        execution = self.config.execution
        wanted = (execution.plan, None, execution.channels_last)
        return make_plan(self.config.client, module, module_params(module), self.config.task, *wanted)

    def job(self, folder: Any, scratch: Any) -> Job:
        """What workers need of it."""
        config = self.config
        return Job(
            algorithm=config.client,
            task=config.task,
            module=self.module,
            arrays={name: torch.from_numpy(array) for name, array in self.dataset.train.items()},
            server_arrays={name: torch.from_numpy(array) for name, array in (self.dataset.test or {}).items()},
            partition=self.partition,
            seed=config.seed,
            rounds=config.rounds,
            up=config.up,
            down=config.down,
            transforms=config.transforms,
            on_error=config.execution.on_client_error,
            folder=folder,
            scratch=scratch,
        )


def assemble(config: Config) -> Assembly:
    """Load, partition, build and plan; whatever does not fit is a `ConfigError`."""
    dataset, partition = load_data(config)
    _guard("cohort", lambda: config.cohort.check(partition.num_clients))
    module, model = build_model(config, dataset)
    execution = config.execution
    wanted = (execution.plan, execution.chunk, execution.channels_last)
    plan = _guard("execution", lambda: make_plan(config.client, module, model, config.task, *wanted))
    execution = replace(execution, plan=plan.kind, chunk=plan.chunk, channels_last=plan.channels_last)
    return Assembly(replace(config, execution=execution), dataset, partition, module, model, plan)


def load_data(config: Config) -> tuple[Dataset, Partition]:
    dataset = _guard("data", lambda: config.data.load() if hasattr(config.data, "load") else config.data)
    partition = _guard("partition", lambda: config.partition.split(dataset))
    empty = partition.empty_clients
    if len(empty):
        raise ConfigError(
            "partition",
            f"{len(empty)} of {partition.num_clients} clients have no data (the first: {[int(c) for c in empty[:5]]}). "
            "Set partition.min_size, fewer clients, or a larger alpha",
        )
    seed = getattr(config.partition, "seed", 0)
    return dataset, partition.hold_out(config.splits.val, config.splits.test, seed)


def build_model(config: Config, dataset: Dataset) -> tuple[torch.nn.Module, Params]:
    """The module and its first weights, drawn from the seed alone."""
    outputs = max(config.task.num_outputs(part) for part in (dataset.train, dataset.test) if part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.hash64(config.seed, "model")) >> 1)
        module = addressed(_guard("model", lambda: config.model.build(dataset.train["x"].shape[1:], outputs)))
    floats = [name for name, b in module.named_buffers() if b.is_floating_point()]
    if floats:
        raise ConfigError(
            "model",
            f"has buffers that training changes ({floats[0]}, ...): running statistics would leak between clients. "
            "Use GroupNorm or LayerNorm, or BatchNorm with track_running_stats=False",
        )
    return module, module_params(module)


def _guard(path: str, make: Callable[[], Any]) -> Any:
    """A part's complaint as a ConfigError with its place."""
    try:
        return make()
    except ConfigError:
        raise
    except ValueError as error:
        raise located(path, error) from error
