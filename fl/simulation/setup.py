"""Everything that a run works on, set up from its configuration: data, partition, model, plan, simulated system."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl.communication.codecs.identity import Identity
from fl.config.config import Config
from fl.data.dataset import Dataset, tensors
from fl.data.labels import tensors_for_workers
from fl.data.parties import ServerRows, party_arrays, server_rows
from fl.data.partition import Partition, ViewName
from fl.data.stream import Period
from fl.data.views import Batch, View
from fl.execution.global_draws import may_draw
from fl.execution.job import Job
from fl.execution.training.compiled import machine_code
from fl.execution.training.device import Device
from fl.execution.training.plan import Plan, Trial, make_plan
from fl.method.strategy import ServerContext
from fl.models.binding import Initial, bind, module_params, require_gradients
from fl.models.client_models import ClientModel, ClientModels
from fl.models.dropout import DropoutDraws
from fl.models.probe import ModuleFacts
from fl.models.structure import structure
from fl.privacy.local_noise import LocalNoise
from fl.privacy.plan import PrivacyPlan
from fl.simulation.view_checks import views_obstacle
from fl.system.flops import flops_per_sample
from fl.system.simulated_system import SimulatedSystem
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import NOTHING, Params


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
        outputs: number of outputs that the model is built for.
        plan: how clients train.
        trial: tells whether a user's own client code can train clients together (fl/simulation/trial.py); else `None`.
        system: devices and presence of the clients that may train, `None` without a system model.
        privacy: noise and accountant of a private run; None without `privacy:`.
        by_client: the clients' models, if they have different architectures. `module`, `facts` and `initial` are then
            those of the first architecture.
    """

    config: Config
    dataset: Dataset
    periods: tuple[Period, ...]
    module: torch.nn.Module
    facts: ModuleFacts
    initial: Initial
    outputs: int
    plan: Plan
    system: SimulatedSystem | None
    trial: Trial | None = None
    privacy: PrivacyPlan | None = None
    by_client: ClientModels | None = None

    def sizes(self, period: int) -> np.ndarray:
        """Return the number of training samples of each client in a period, (N,)."""
        return self._sizes[period]

    def trainable_sizes(self, round_: int) -> np.ndarray:
        """Return the number of training samples in a round of each client that may train, (n,)."""
        return self.sizes(self.period_at(round_))[: self.trainable]

    @cached_property
    def _sizes(self) -> list[np.ndarray]:
        return [period.partition.train_slices()[1] for period in self.periods]

    def evaluated(self, period: int, split: ViewName) -> np.ndarray:
        """Return the clients to evaluate on a split of their own data in a period.

        They are the clients that have rows there, or a fixed random sample of them, see `evaluation.clients`.
        """
        if self.dataset.parties:
            return np.empty(0, np.int64)  # no party predicts alone: the strategy evaluates
        if (period, split) not in self._evaluated:
            counts = split_counts(self.periods[period].partition, split)
            self._evaluated[period, split] = evaluated_clients(self.config, self.trainable, counts)
        return self._evaluated[period, split]

    @cached_property
    def _evaluated(self) -> dict[tuple[int, ViewName], np.ndarray]:
        return {}

    @property
    def model(self) -> Params:
        """The first model: all tensors that may be trained. It is empty if each client has its own."""
        return self.initial.trained if self.by_client is None else NOTHING

    @property
    def models(self) -> tuple[ClientModel, ...]:
        """The architectures of the run."""
        one = ClientModel("", self.module, self.facts, self.initial)
        return (one,) if self.by_client is None else self.by_client.models

    @property
    def population(self) -> int:
        """Number of clients; the last ones may be held out from training."""
        return self.periods[0].partition.num_clients

    @property
    def trainable(self) -> int:
        """Number of clients that may train."""
        return self.population - self.config.splits.clients

    def flops_per_sample(self, clients: np.ndarray) -> float | np.ndarray:
        """Return the floating-point operations of training on one sample; NaN unless `system.compute` is "flops".

        Clients (n,) with different architectures have a number each, (n,).
        """
        if self.config.system is None or self.config.system.compute != "flops":
            return math.nan
        return self._flops[0] if self.by_client is None else self._flops[self.by_client.assigned[clients]]

    @cached_property
    def _flops(self) -> np.ndarray:
        """Measured on the first client's data, one number for each architecture."""
        period = self.periods[0]
        client = int(np.argmax(period.partition.train_slices()[1] > 0))
        rows = period.partition.view_rows(client, "train")[:32]
        batch = View(tensors(self.dataset.train), rows if len(rows) else period.partition.indices[:32]).take()
        return np.array([training_flops(model, batch, period.task) for model in self.models])

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The round after the last of each period, (S,)."""
        return tuple(itertools.accumulate(period.rounds for period in self.periods))

    def period_at(self, round_: int) -> int:
        """Return the period of a round; the last period for rounds after all periods."""
        return min(bisect.bisect_right(self.ends, round_), len(self.periods) - 1)

    @cached_property
    def server_rows(self) -> ServerRows:
        """The server's own rows, and its test set; those of the active party if the partition is vertical."""
        return server_rows(self.dataset, self.periods[0].partition)

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
            frozen=self.initial.frozen if self.by_client is None else NOTHING,
            period=period,
            period_begins=round_ == 0 or round_ in self.ends,
            period_ends=round_ + 1 in self.ends,
            server=self.server_rows.train,
            test=self.server_rows.test,
            val=self.server_rows.val,
            tiers=getattr(self.config.server, "tiers", 1),
            sample_shape=self.dataset.train["x"].shape[1:],
            outputs=self.outputs,
            periods=len(self.periods),
        )

    @property
    def local_noise(self) -> tuple[LocalNoise, ...]:
        """What clients do to their updates last, for local privacy."""
        plan = self.privacy
        return () if plan is None or plan.section.where == "central" else (LocalNoise(plan),)

    # -- plans ----------------------------------------------------------------------------------------------------
    def plan_for(self, module: torch.nn.Module) -> Plan:
        """Return the plan for training another module than the run's."""
        config = replace(self.config, execution=replace(self.config.execution, chunk=None))
        other = ClientModel("", module, self.facts, Initial(module_params(module), NOTHING))
        return choose_plan(config, self.dataset, self.periods, (other,), self.trial)

    def choose_plan(self, config: Config, trial: Trial | None) -> Plan:
        """Return the plan for training the run's models; the arguments are those of the function `choose_plan`."""
        return choose_plan(config, self.dataset, self.periods, self.models, trial)

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
        drawing = (
            config.strategy,
            config.client,
            config.up,
            config.down,
            config.transforms,
            config.data.augment,
            config.data.strong,
            config.evaluation.adapt,
            [period.task for period in self.periods],
        )
        return Job(
            algorithm=config.client,
            module=self.module,
            facts=self.facts,
            initial=self.initial,
            arrays=self._arrays_for_workers,
            true_labels=torch.tensor(self.dataset.train["y"]) if "unlabelled" in config.evaluation.splits else None,
            server_arrays={} if self.dataset.parties else self.server_rows.test,  # no labels for passive parties
            parties=party_arrays(self.dataset),
            periods=self.periods,
            seed=config.seed,
            rounds=config.rounds,
            up=config.up if config.secure_aggregation is None else Identity(),  # its reduction has the codec
            down=config.down,
            transforms=(*config.transforms, *self.local_noise),
            augment=config.data.augment,
            strong=config.data.strong,
            statistics=tuple(dict.fromkeys(name for model in self.models for name in model.statistics)),
            device=device(config),
            micro_batch=config.execution.micro_batch,
            graphs=config.execution.graphs,
            machine_code=machine_code(self.plan.kind, self.plan.memory_format, config.client),
            seeded=any(may_draw(drawing, model.module, model.facts) for model in self.models),
            on_error=config.execution.on_client_error,
            folder=folder,
            scratch=scratch,
            adapt=config.evaluation.adapt,
            shots=config.evaluation.shots,
            by_client=self.by_client,
        )

    @property
    def _arrays_for_workers(self) -> Mapping[str, Tensor]:
        """The clients' data as workers get them; nothing for parties, whose columns lie in files."""
        if self.dataset.parties:
            return {}
        return tensors_for_workers(self.dataset, [period.partition for period in self.periods])


def training_flops(model: ClientModel, batch: Batch, task: Task) -> float:
    """Return the floating-point operations of a forward and backward pass per sample of a batch."""
    module, first = model.module, model.initial
    bind(module, first.trained, first, first.trained)
    masks = DropoutDraws(structure(module).dropout, ("flops",), repeats=True)
    masks.begin_batch(0)
    with masks.gradient():
        return flops_per_sample(module, batch["x"], lambda outputs: task.loss(outputs, batch).sum())


def choose_plan(
    config: Config,
    dataset: Dataset,
    periods: tuple[Period, ...],
    models: Sequence[ClientModel],
    trial: Trial | None,
) -> Plan:
    """Return the plan for training the architectures of a run. The other arguments are those of `RunSetup`.

    Clients with different architectures train one at a time. Their images are stored as all architectures prefer.

    Raises:
        ValueError: `config.execution` asks for a plan that is not possible.
    """
    cohort, augmented = cohort_size(config), bool(config.data.augment) or dataset.source is not None
    inputs = sample_inputs(dataset)
    task, execution = periods[0].task, config.execution
    views = views_obstacle(config.client, dataset, periods)
    for model in models:  # `fl tune` asks again after rounds, which bind the module
        require_gradients(model.module, model.initial)
    plans = [
        make_plan(
            config.client,
            model.module,
            model.initial.trained,
            task,
            inputs,
            execution,
            cohort,
            augmented,
            model.facts,
            trial,
            views,
            architectures=len(models),
        )
        for model in models
    ]
    same_format = len({plan.memory_format for plan in plans}) == 1
    return plans[0] if same_format else replace(plans[0], memory_format="contiguous")


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


def split_counts(partition: Partition, split: ViewName) -> np.ndarray:
    """Return the number of rows of each client in a split, (N,)."""
    held = {"val": partition.val, "test": partition.test, "unlabelled": partition.unlabelled}
    return partition.train_slices()[1] if split == "train" else held[split]


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
