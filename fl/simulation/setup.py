"""Everything that a run works on, set up from its configuration: data, partition, model, plan, simulated system."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl.config.config import Config
from fl.data.dataset import Dataset, tensors
from fl.data.stream import Period
from fl.data.views import View
from fl.execution.global_draws import may_draw
from fl.execution.job import Job
from fl.execution.training.device import Device
from fl.execution.training.native import cache
from fl.execution.training.plan import ASKED_FOR, Plan, Trial, make_plan
from fl.method.strategy import ServerContext
from fl.models.batch_norm import statistics_names
from fl.models.binding import Initial, bind, module_params
from fl.models.probe import ModuleFacts
from fl.system.flops import flops_per_sample
from fl.system.simulated_system import SimulatedSystem
from fl.tensors import random
from fl.tensors.params import Params


@dataclass(frozen=True, eq=False)
class RunSetup:
    """A configuration with its explicit plan, and the parts that it describes.

    Attributes:
        config: the configuration; `execution` holds the plan that was chosen.
        dataset: all data.
        periods: the learning problems of the stream; one without a stream.
        module: the model's structure.
        facts: what the module does beside computing outputs.
        initial: the module's first tensors.
        plan: how clients train.
        trial: tells whether a user's own client code can train clients together (fl/simulation/trial.py); else `None`.
        system: devices and presence of the clients that may train, `None` without a system model.
    """

    config: Config
    dataset: Dataset
    periods: tuple[Period, ...]
    module: torch.nn.Module
    facts: ModuleFacts
    initial: Initial
    plan: Plan
    system: SimulatedSystem | None
    trial: Trial | None = None

    def sizes(self, period: int) -> np.ndarray:
        """Return the number of training samples of each client in a period, (N,)."""
        return self._sizes[period]

    @cached_property
    def _sizes(self) -> list[np.ndarray]:
        return [period.partition.train_slices()[1] for period in self.periods]

    def evaluated(self, period: int, split: Literal["val", "test"]) -> np.ndarray:
        """Return the clients to evaluate on a split of their own data in a period.

        They are the clients that have rows there, or a fixed random sample of them, see `evaluation.clients`.
        """
        if (period, split) not in self._evaluated:
            counts = getattr(self.periods[period].partition, split)
            self._evaluated[period, split] = evaluated_clients(self.config, self.trainable, counts)
        return self._evaluated[period, split]

    @cached_property
    def _evaluated(self) -> dict[tuple[int, str], np.ndarray]:
        return {}

    @property
    def model(self) -> Params:
        """The first model: all tensors that may be trained."""
        return self.initial.trained

    @property
    def population(self) -> int:
        """Number of clients; the last ones may be held out from training."""
        return self.periods[0].partition.num_clients

    @property
    def trainable(self) -> int:
        """Number of clients that may train."""
        return self.population - self.config.splits.clients

    @cached_property
    def flops_per_sample(self) -> float:
        """Floating-point operations of training on one sample; NaN unless `system.compute` is "flops"."""
        system, period = self.config.system, self.periods[0]
        if system is None or system.compute != "flops":
            return math.nan
        client = int(np.flatnonzero(np.diff(period.partition.offsets) > 0)[0])
        batch = View(tensors(self.dataset.train), period.partition.view_rows(client, "train")[:32]).take()
        bind(self.module, self.initial.trained, self.initial, self.initial.trained)
        return flops_per_sample(self.module, batch["x"], lambda outputs: period.task.loss(outputs, batch).sum())

    @cached_property
    def ends(self) -> np.ndarray:
        """The round after the last of each period, (S,)."""
        return np.cumsum([period.rounds for period in self.periods])

    def period_at(self, round_: int) -> int:
        """Return the period of a round; the last period for rounds after all periods."""
        return min(int(np.searchsorted(self.ends, round_, side="right")), len(self.periods) - 1)

    @cached_property
    def server_data(self) -> dict[str, Tensor]:
        """The server's own training data, by name."""
        return tensors(self.dataset.server)

    @cached_property
    def test_data(self) -> dict[str, Tensor]:
        """The server's test set, by name."""
        return tensors(self.dataset.test)

    def server_context(self, round_: int, cohort: np.ndarray) -> ServerContext:
        """Return what the strategy may know in a round."""
        period = self.period_at(round_)
        return ServerContext(
            seed=self.config.seed,
            round=round_,
            rounds=self.config.rounds,
            population=self.trainable,
            cohort=cohort,
            task=self.periods[period].task,
            module=self.module,
            frozen=self.initial.frozen,
            period=period,
            period_begins=round_ == 0 or round_ in self.ends,
            period_ends=round_ + 1 in self.ends,
            server=self.server_data,
            test=self.test_data,
            tiers=getattr(self.config.server, "tiers", 1),
        )

    # -- plans ----------------------------------------------------------------------------------------------------
    def plan_for(self, module: torch.nn.Module) -> Plan:
        """Return the plan for training another module than the run's."""
        config = replace(self.config, execution=replace(self.config.execution, chunk=None))
        return choose_plan(config, self.dataset, self.periods, module, module_params(module), self.facts, self.trial)

    def with_plan(self, plan: Plan) -> RunSetup:
        """Return the same set-up with another plan. It is made once per plan, so that its cached values are kept."""
        if plan not in self._by_plan:
            self._by_plan[plan] = self._replanned(plan)
        return self._by_plan[plan]

    @cached_property
    def _by_plan(self) -> dict[Plan, RunSetup]:
        return {}

    def _replanned(self, plan: Plan) -> RunSetup:
        execution = replace(self.config.execution, plan=plan.kind, chunk=plan.chunk, memory_format=plan.memory_format)
        return replace(self, config=replace(self.config, execution=execution), plan=plan)

    def job(self, folder: Path, scratch: Path) -> Job:
        """Return what workers need; they write client states to `folder` and files of one round to `scratch`."""
        config = self.config
        return Job(
            algorithm=config.client,
            module=self.module,
            facts=self.facts,
            initial=self.initial,
            arrays=self.dataset.training_tensors(),
            server_arrays=self.test_data,
            periods=self.periods,
            seed=config.seed,
            rounds=config.rounds,
            up=config.up,
            down=config.down,
            transforms=config.transforms,
            augment=config.data.augment,
            statistics=tuple(statistics_names(self.module, "local")),
            device=device(config),
            micro_batch=config.execution.micro_batch,
            graphs=config.execution.graphs,
            compiled=self.plan.kind == "compiled",
            seeded=may_draw(
                (
                    config.strategy,
                    config.client,
                    config.up,
                    config.down,
                    config.transforms,
                    config.data.augment,
                    config.evaluation.adapt,
                    [period.task for period in self.periods],
                ),
                self.module,
                self.facts,
            ),
            on_error=config.execution.on_client_error,
            folder=folder,
            scratch=scratch,
            adapt=config.evaluation.adapt,
            shots=config.evaluation.shots,
        )

    @property
    def _loops_because(self) -> str:
        """Why the clients of a user's own algorithm train one at a time, in parentheses; else ""."""
        asked = self.plan.why == ASKED_FOR
        return f" ({self.plan.why})" if self.trial and self.plan.kind == "loop" and not asked else ""

    def headline(self, directory: Path, place: str) -> str:
        """Return one line that tells what runs.

        Args:
            directory: the run directory.
            place: the executor in words, see `Choice.words`; "" if clients are elsewhere.
        """
        parts = (self.config.strategy, self.config.client)
        strategy, client = (getattr(type(part), "registered_as", type(part).__name__) for part in parts)
        compiles = self.plan.kind == "compiled" and not cache.is_cached()
        return (
            f"{strategy} with client {client}, {self.population} clients, {self.model.numel} parameters, "
            f"training {self.plan.kind}{' (half a minute, the first time)' if compiles else ''}{self._loops_because}"
            f"{place and ' '}{place}, in {directory}"
            + "".join(f". Note: {note}" for note in (*self.facts.notes, *self.dataset.notes))
        )


def choose_plan(
    config: Config,
    dataset: Dataset,
    periods: tuple[Period, ...],
    module: torch.nn.Module,
    model: Params,
    facts: ModuleFacts,
    trial: Trial | None,
) -> Plan:
    """Return the plan for training `module`, whose trained tensors are `model`.

    The other arguments are those of `RunSetup`.

    Raises:
        ValueError: `config.execution` asks for a plan that is not possible.
    """
    cohort, augmented = cohort_size(config), bool(config.data.augment) or dataset.source is not None
    inputs = sample_inputs(dataset)
    task, execution = periods[0].task, config.execution
    return make_plan(config.client, module, model, task, inputs, execution, cohort, augmented, facts, trial)


def device(config: Config) -> Device:
    """Return the device that clients train on."""
    execution = config.execution
    return Device(execution.device, execution.precision, execution.deterministic)


def cohort_size(config: Config) -> int | None:
    """Return the number of clients in a round, `None` if it varies."""
    return getattr(config.cohort, "size", None)


def sample_inputs(dataset: Dataset) -> Tensor:
    """Return the first four inputs, as the model takes them."""
    return torch.tensor(dataset.train["x"][:4])


def evaluated_clients(config: Config, trainable: int, counts: np.ndarray) -> np.ndarray:
    """Return the clients to evaluate: those with rows, or a fixed random sample of them.

    Args:
        config: the configuration of the run.
        trainable: number of clients that train; the others are held out.
        counts: rows of each client in the split, (N,).
    """
    clients, wanted = np.flatnonzero(counts), config.evaluation.clients
    if wanted == "held_out":
        return clients[clients >= trainable]
    clients = clients[clients < trainable]
    if wanted == "all" or wanted >= len(clients):
        return clients
    return np.sort(clients[random.permutation(len(clients), config.seed, "evaluation")[:wanted]])
