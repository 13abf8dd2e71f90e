"""Models that cannot normalise one sample alone, such as those with BatchNorm, and clients that would need it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl.config.config import Config
from fl.data.dataset import Dataset
from fl.data.stream import Period
from fl.errors import ConfigError
from fl.method.local_training import LocalTraining
from fl.models.client_models import ClientModel
from fl.simulation.setup import evaluated_clients, split_counts


def with_last_batch(
    config: Config, dataset: Dataset, periods: tuple[Period, ...], models: Sequence[ClientModel]
) -> Config:
    """Choose what happens to last batches, and check that no batch has one sample if the model cannot normalise it.

    Raises:
        ConfigError: a client would train or be evaluated on one sample alone.
    """
    if not any(model.facts.needs_two for model in models):
        return config
    if any(model.facts.needs_two_in_evaluation for model in models):
        _check_evaluation(config, dataset, periods)
    client, evaluation = config.client, config.evaluation
    if isinstance(client, LocalTraining):
        client = _merging(client)
        trainable = periods[0].partition.num_clients - config.splits.clients
        for period in periods:
            sizes = period.partition.train_slices()[1][:trainable]
            alone = np.flatnonzero(client.smallest_batches(sizes, 0, config.rounds) == 1)
            if len(alone):
                raise _batch_error(int(alone[0]), int(sizes[alone[0]]), len(alone), client)
    if isinstance(evaluation.adapt, LocalTraining):
        evaluation = replace(evaluation, adapt=_merging(evaluation.adapt))
    config = replace(config, client=client, evaluation=evaluation)
    _check_training_in_evaluation(config, periods)
    return config


def _merging(algorithm: LocalTraining) -> LocalTraining:
    """The algorithm, which merges last batches of one sample if nothing else is asked for."""
    return algorithm if algorithm.last_batch else replace(algorithm, last_batch="merge_one")


def _clients(count: int, first: int, n: int, split: str) -> str:
    """The number of clients, and the first of them with its rows, in words.

    >>> _clients(2, 7, 1, "val")
    '2 clients (the first: client 7, with 1 val row)'
    """
    rows = "row" if n == 1 else "rows"
    return f"{count} client{'s' if count > 1 else ''} (the first: client {first}, with {n} {split} {rows})"


def _batch_error(client: int, n: int, count: int, algorithm: LocalTraining) -> ConfigError:
    """The error for the first client with a batch of one sample."""
    who = _clients(count, client, n, "training")
    what = f"{who} would train on a batch of one row, which the model cannot normalise"
    if n == 1:
        more = "Set partition.min_size, smaller splits.val and splits.test"
        return ConfigError("partition", f"{what}. {more}, or use GroupNorm or LayerNorm")
    if algorithm.batch == 1:
        return ConfigError("client.batch", f"{what}. Use batches of 2 or more, or GroupNorm or LayerNorm")
    more = "Set client.last_batch to merge_one, merge or drop, another client.batch, or partition.min_size"
    return ConfigError("client.last_batch", f"{what}. {more}, or use GroupNorm or LayerNorm")


def _check_training_in_evaluation(config: Config, periods: tuple[Period, ...]) -> None:
    """Check that no client that trains before it is evaluated has a batch of one sample."""
    evaluation = config.evaluation
    trains = {"trained": config.client, "adapted": evaluation.adapt}
    trainable = periods[0].partition.num_clients - config.splits.clients
    for stage, period in itertools.product(evaluation.stages, periods):
        algorithm = trains.get(stage)
        if not isinstance(algorithm, LocalTraining):
            continue
        sizes = period.partition.train_slices()[1]
        used = np.minimum(sizes, evaluation.shots or sizes) if stage == "adapted" else sizes
        alone = algorithm.smallest_batches(used, 0, config.rounds) == 1
        for split in evaluation.splits:
            counts = split_counts(period.partition, split)
            evaluated = evaluated_clients(config, trainable, counts)
            found = evaluated[alone[evaluated]]
            if len(found):
                who = _clients(len(found), int(found[0]), int(sizes[found[0]]), "training")
                what = "would train on a batch of one row before it is evaluated, which the model cannot normalise"
                more = (
                    "Set evaluation.shots to 2 or more" if evaluation.shots == 1 else "Set evaluation.stage: received"
                )
                raise ConfigError("evaluation", f"{who} {what}. {more}, or use GroupNorm or LayerNorm")


def _check_evaluation(config: Config, dataset: Dataset, periods: tuple[Period, ...]) -> None:
    """Check that no evaluation has a forward pass of one sample."""
    out = "use model.batch_norm: averaged or local, or GroupNorm or LayerNorm"
    rows = 0 if dataset.test is None else len(dataset.test["x"])
    block = config.task.evaluation_block
    if config.evaluation.server and rows % block == 1:
        raise ConfigError(
            "evaluation.server",
            f"the server's test set of {rows} rows is evaluated in blocks of {block}. The last block has "
            f"one row, which the model cannot normalise. Set evaluation.server: false, or {out}",
        )
    trainable = periods[0].partition.num_clients - config.splits.clients
    for period in periods:
        for split in config.evaluation.splits:
            counts = split_counts(period.partition, split)
            evaluated = evaluated_clients(config, trainable, counts)
            alone = evaluated[counts[evaluated] % block == 1]
            if len(alone):
                who = _clients(len(alone), int(alone[0]), int(counts[alone[0]]), split)
                raise ConfigError(
                    f"splits.{split}" if split in ("val", "test") else "evaluation.splits",
                    f"{who} would be evaluated on one row alone, which the model cannot normalise. "
                    f"Set splits.{split} to 0 or to more rows, set partition.min_size, or {out}",
                )
