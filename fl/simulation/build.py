"""Set up a run: load and partition the data, build the model, choose the plan, draw the simulated system."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from fl import registry
from fl.config.config import Config
from fl.data.checking import checked
from fl.data.dataset import Dataset
from fl.data.labels import chosen, hide, moved_to_server, unlabelled_rows
from fl.data.partition import Partition
from fl.data.partitioner import split_checked
from fl.data.stream import Period, split_rows
from fl.errors import ConfigError, located
from fl.execution.training.customised import overrides
from fl.execution.training.plan import Plan
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.rates import check_rates
from fl.models.architectures.by_client import ByClient
from fl.models.batch_norm import statistics_names
from fl.models.binding import Initial
from fl.models.client_models import ClientModel
from fl.models.dropout import with_addressed_dropout
from fl.models.extension import Extend, extended
from fl.models.probe import ModuleFacts
from fl.privacy.plan import PrivacyPlan
from fl.simulation.agreement import check_adversary, check_after_reduction, check_sampler, check_secure_aggregation
from fl.simulation.client_models import check_fit, set_up_models
from fl.simulation.first_look import first_look
from fl.simulation.lone_samples import with_last_batch
from fl.simulation.one_class_rows import check_own_and_other
from fl.simulation.optimiser_average import check_optimiser_state
from fl.simulation.private_checks import check_private, with_private_client
from fl.simulation.setup import RunSetup, device, sample_inputs
from fl.simulation.several_tasks import check_several_tasks, with_heads
from fl.simulation.trial import Trial
from fl.simulation.vertical import (
    check_axis,
    check_cohort,
    check_vertical,
    is_vertical,
    require_divisible,
    with_columns,
)
from fl.simulation.view_checks import check_views
from fl.tensors import random
from fl.tensors.generators import preserved_generators

T = TypeVar("T")
REDRAWN = "training draws the rows of this data set again at each access"


@preserved_generators()
def set_up_run(config: Config) -> RunSetup:
    """Set up a run. Global random generators are restored, because the user's data and model may draw.

    Raises:
        ConfigError: parts of the configuration do not fit together.
    """
    _located("execution", device(config).check)
    check_axis(config)
    check_several_tasks(config)
    _located("client", lambda: check_views(config))
    dataset, periods = load_data(config)
    check_own_and_other(config, dataset)
    population = periods[0].partition.num_clients
    trainable = population - config.splits.clients
    if trainable < 1:
        raise ConfigError(
            "splits.clients", f"{config.splits.clients} of {population} clients are held out; none is left to train"
        )
    drawn_by = "cohort" if config.privacy is None or config.privacy.sampling is None else "privacy.sampling"
    _located(drawn_by, lambda: config.cohort.check(trainable))
    if is_vertical(config):
        check_cohort(config, periods[0].partition.train_slices()[1])
    check_sampler(config, periods)
    check_adversary(config, trainable)
    check_after_reduction(config)
    check_optimiser_state(config)
    check_secure_aggregation(config)
    check_private(config)
    privacy = None
    if config.privacy is not None:
        privacy = PrivacyPlan.of(config.privacy, trainable, config.rounds, config.client)
        config = with_private_client(config, privacy)
    for task in (config.task, *(period.task for period in periods)):
        _located("task", partial(config.client.check_task, task))
        if config.evaluation.adapt is not None:
            _located("task", partial(config.evaluation.adapt.check_task, task))
    outputs = _num_outputs(config, dataset)
    by_client = None

    def make(one: Config, dataset: Dataset) -> tuple[ClientModel, Dataset]:
        return _model(one, dataset, periods, outputs)

    if isinstance(config.model.part, ByClient):
        by_client, dataset = set_up_models(config, dataset, population, make)
    else:
        model, dataset = make(config, dataset)
    models = (model,) if by_client is None else by_client.models
    check_fit(config.client, models, sample_inputs(dataset))
    _check_rates(config, models)
    config = with_last_batch(config, dataset, periods, models)
    system = config.system
    drawn = None if system is None else _located("system", lambda: system.draw(config.seed, trainable))
    undecided = Plan("loop", 1, "not chosen yet")
    first = models[0]
    about = (first.module, first.facts, first.initial, outputs)
    return _planned(RunSetup(config, dataset, periods, *about, undecided, drawn, privacy=privacy, by_client=by_client))


def _planned(run_setup: RunSetup) -> RunSetup:
    """Choose the plan; a user's own client code is tried first."""
    trial, config = Trial.of(run_setup), run_setup.config
    if trial is not None:
        trial.check()
    plan = _located("execution", lambda: run_setup.choose_plan(config, trial))
    if trial is not None:
        trial.release()
    execution = replace(config.execution, plan=plan.kind, chunk=plan.chunk, memory_format=plan.memory_format)
    return replace(run_setup, config=replace(config, execution=execution), plan=plan, trial=trial)


def load_data(config: Config) -> tuple[Dataset, tuple[Period, ...]]:
    """Load the data and, for each period of the run, assign its rows to clients."""
    labels = config.labels
    gaps = labels is not None and getattr(labels, "in_data", False)
    vertical = is_vertical(config)
    if vertical:
        check_vertical(config)
    dataset = _located("data", lambda: config.data.load(partial(checked, task=config.task, gaps=gaps)))
    if vertical:
        _located("data", lambda: require_divisible(dataset))

    def split(part: Dataset) -> Partition:
        if part.held is None or getattr(config.partition, "keeps_held", False):
            return _located("partition", lambda: split_checked(config.partition, part))
        return split_rows(replace(part, held=None), np.flatnonzero(part.held == 0), split)

    stream, shift = config.stream, config.shift
    if stream is None:
        periods: Sequence[Period] = [Period(config.rounds, split(dataset), config.task)]
    else:
        stored = dataset
        dataset, periods = _located("stream", lambda: stream.periods(stored, split, config.task))
        kept = dataset.source is not None and all(dataset.train.get(n) is a for n, a in stored.train.items())
        if stored.source is not None and not kept:
            raise ConfigError("stream", f"changes rows, and {REDRAWN}; use a stream that only chooses rows")
    if shift is not None and dataset.source is not None:
        raise ConfigError("shift", f"changes rows, and {REDRAWN}; leave it out, or shift in the data set")
    if shift is not None:
        dataset = _located("shift", lambda: shift.apply(dataset, periods[0].partition))
    holders = np.sum([np.diff(period.partition.offsets) for period in periods], axis=0)
    empty = np.flatnonzero(holders == 0)
    if len(empty):
        raise ConfigError(
            "partition",
            f"{len(empty)} of {len(holders)} clients have no data (the first: {[int(c) for c in empty[:5]]}). "
            "Set partition.min_size, fewer clients, or a larger alpha",
        )
    if labels is not None and dataset.source is not None:
        raise ConfigError("labels", f"hides labels, and {REDRAWN}, with them; leave it out, or store the rows")
    split_up: Sequence[Partition] = [
        _located("splits", partial(_split, period.partition, dataset, config)) for period in periods
    ]
    if labels is not None:
        dataset, split_up = _located("labels", lambda: _with_labels(config, dataset, split_up))
    if config.splits.pooled:
        split_up = [partition.pooled() for partition in split_up]
    periods = tuple(replace(period, partition=partition) for period, partition in zip(periods, split_up))
    return _located("partition", lambda: with_columns(config, dataset, periods)) if vertical else (dataset, periods)


def _split(partition: Partition, dataset: Dataset, config: Config) -> Partition:
    """Split each client's rows into train, val and test."""
    splits, labels = config.splits, config.labels
    eligible = None
    if labels is not None and getattr(labels, "in_data", False):
        eligible = chosen(labels, dataset, partition)
    partition = partition.hold_out(splits.val, splits.test, getattr(config.partition, "seed", 0), eligible)
    return partition if splits.per_class is None else partition.capped(dataset.labels, splits.per_class)


def _with_labels(
    config: Config, dataset: Dataset, partitions: Sequence[Partition]
) -> tuple[Dataset, Sequence[Partition]]:
    """Hide the labels of the training rows that `labels:` does not choose, in each period."""
    labels = config.labels
    assert labels is not None
    partitions = [hide(labels, dataset, partition) for partition in partitions]
    if getattr(labels, "to_server", False):
        if config.stream is not None:
            raise ValueError("rows move to the server before round 0, and a stream shows them later; leave one out")
        dataset, partition = moved_to_server(dataset, partitions[0])
        partitions = [partition]
    unlabelled_rows(dataset, partitions)  # checks them
    return dataset, partitions


def _model(config: Config, dataset: Dataset, periods: tuple[Period, ...], outputs: int) -> tuple[ClientModel, Dataset]:
    """Build the model of a configuration and look at it; return it, and the data as it takes them."""
    module = build_model(config, dataset, outputs)
    facts, dataset = _located("model", lambda: first_look(config, dataset, periods, module, outputs))
    _check_statistics(config, dataset, module, facts)
    initial = Initial.of(module)
    initial.hold(module)
    return ClientModel("", module, facts, initial), dataset


def build_model(config: Config, dataset: Dataset, outputs: int) -> torch.nn.Module:
    """Build the module; its first weights follow from the seed alone, or come from a file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.hash64(config.seed, "model")) >> 1)
        built = _located("model", lambda: _built(config, dataset.train["x"].shape[1:], outputs))
        module = with_addressed_dropout(built)
    return module


def _built(config: Config, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
    try:
        return with_heads(config).build(shape, outputs, _extension(config))
    except IndexError as error:
        if shape:
            raise
        raise ConfigError("data", "x is one number per row, and the model takes vectors; make it (rows, 1)") from error


def _extension(config: Config) -> Extend | None:
    """What adds the method's parts to the model, with random numbers of its own; `None` if it adds none."""
    client, adapt = config.client, config.evaluation.adapt
    if all(type(part).extend is ClientAlgorithm.extend for part in (client, adapt) if part is not None):
        return None
    word, name = int(random.hash64(config.seed, "extension")), registry.name_of(client)

    def extend(module: torch.nn.Module, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
        made = _located("client", lambda: extended(client.extend, module, shape, outputs, word, name))
        if adapt is not None and type(adapt) is not type(client):
            copied = copy.deepcopy(made)
            with contextlib.suppress(Exception):  # it fails where there is such a part already
                if adapt.extend(copied, shape, outputs) is copied:
                    return made
            raise ConfigError(
                "evaluation.adapt",
                f"{registry.name_of(adapt)} adds parts to the model, which only the run's client may do",
            )
        return made

    return extend


def _num_outputs(config: Config, dataset: Dataset) -> int:
    """Outputs that the task needs."""
    parts = [part for part in (dataset.train, dataset.test) if part]
    return _located("task", lambda: max(config.task.num_outputs(part) for part in parts))


RUNNING = ("running_mean", "running_var")


def _check_statistics(config: Config, dataset: Dataset, module: torch.nn.Module, facts: ModuleFacts) -> None:
    """Check that running statistics that training changes have an owner: the client, or the average."""
    running = [name for name in facts.state if name.rpartition(".")[2] in RUNNING]
    if running and isinstance(config.client, LocalTraining):
        raise ConfigError(
            "model",
            f"has buffers that training changes ({running[0]}, ...): running statistics would leak between clients. "
            "Use GroupNorm or LayerNorm, set model.batch_norm: batch, local or averaged, or (InstanceNorm) set "
            "track_running_stats=False",
        )
    if statistics_names(module, "local") and config.evaluation.server and dataset.test is not None:
        raise ConfigError(
            "evaluation.server",
            "with model.batch_norm: local the server has no running statistics to predict with; set it to false, "
            "or use batch_norm: averaged or batch",
        )
    if statistics_names(module, "averaged"):
        strategy, client = config.strategy, config.client
        if not strategy.averages():
            raise ConfigError(
                "model.batch_norm",
                f"'averaged' needs a strategy whose model is an average of the clients' models; "
                f"{type(strategy).__name__} may step to negative variances. Use batch or local",
            )
        others = ("work", "answer", "prepare", "step", "trainings")
        if not isinstance(client, LocalTraining) or any(overrides(client, name) for name in others):
            raise ConfigError(
                "model.batch_norm",
                f"'averaged' needs a client that takes gradient steps only; {type(client).__name__} does other work",
            )


def _check_rates(config: Config, models: Sequence[ClientModel]) -> None:
    """Check that the patterns of `rates` name trained parameters, each of them once."""
    parameters = [pair for model in models for pair in model.module.named_parameters()]
    trained = dict.fromkeys(name for name, p in parameters if p.requires_grad)
    for path, client in (("client", config.client), ("evaluation.adapt", config.evaluation.adapt)):
        if isinstance(client, LocalTraining):
            for phase in client.phases(0, config.rounds):
                _located(path, partial(check_rates, phase.rates, trained))


def _located(path: str, make: Callable[[], T]) -> T:
    """Call `make`; a ValueError becomes a ConfigError at `path`."""
    try:
        return make()
    except ConfigError:
        raise
    except ValueError as error:
        raise located(path, error) from error
    except (MemoryError, OverflowError, RecursionError) as error:  # a huge number, or a deeply nested file
        raise ConfigError(path, f"is too large for this machine ({type(error).__name__}: {error})") from error
