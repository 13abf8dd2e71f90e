"""Vertical federated learning: which settings fit a partition of columns, and how its data are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback
from fl.config.config import Config
from fl.data.dataset import Dataset
from fl.data.parties import check_columns, divided
from fl.data.partitioner import ColumnPartitioner
from fl.data.stream import Period
from fl.errors import ConfigError
from fl.system.synchronous import Synchronous


def is_vertical(config: Config) -> bool:
    """Return whether the partition distributes columns. Users' partitioners of rows need not name an axis."""
    return getattr(config.partition, "axis", "rows") == "columns"


def check_axis(config: Config) -> None:
    """Check that strategy and partition speak of the same axis, rows or columns.

    Raises:
        ConfigError: they do not.
    """
    strategy, partition = (_name(part) for part in (config.strategy, config.partition))
    if is_vertical(config) and config.strategy.axis != "columns":
        raise ConfigError(
            "partition",
            f"{partition!r} gives each party some columns of all rows, and strategy {strategy!r} is for clients that "
            'hold rows with all columns. Use a strategy for columns (its class has axis = "columns"), or a partition '
            "of rows (`fl list partition`)",
        )
    if config.strategy.axis == "columns" and not is_vertical(config):
        raise ConfigError(
            "partition",
            f"{partition!r} gives each client some rows, and strategy {strategy!r} is for parties that hold columns; "
            "use a partition of columns, for vertical federated learning (`fl list partition`)",
        )


def check_vertical(config: Config) -> None:
    """Check the settings that have no meaning, or are not possible, with a partition of columns.

    Raises:
        ConfigError: one of them is set.
    """
    splits = config.splits
    for key, is_set in (
        ("stream", config.stream is not None),
        ("shift", config.shift is not None),
        ("labels", config.labels is not None),
        ("splits.clients", bool(splits.clients)),
        ("splits.per_class", splits.per_class is not None),
        ("splits.pooled", splits.pooled),
        ("baselines", bool(config.baselines)),
        ("evaluation.adapt", config.evaluation.adapt is not None),
    ):
        if is_set:
            raise ConfigError(key, "is for clients that hold rows; leave it out with a partition of columns")
    for key, codec in (("codec.up", config.up), ("codec.down", config.down)):
        for wrapper, name in ((ErrorFeedback, "error_feedback"), (Delta, "delta")):
            if find_wrapper(codec, wrapper):
                raise ConfigError(
                    key,
                    f"{name} refers to a client's last message, and the messages of a vertical federation are about "
                    "other rows each time; use another codec, such as quantise or top_k alone",
                )
    if config.system is not None and getattr(config.system, "compute", None) == "flops":
        raise ConfigError(
            "system.compute",
            "flops counts those of `model:`, and the parties of a vertical federation have models of their own; use "
            "ms_per_sample",
        )
    if not isinstance(config.server, Synchronous):
        raise ConfigError("server", "has to be synchronous with a partition of columns: each step needs all parties")


def check_cohort(config: Config, sizes: np.ndarray) -> None:
    """Check that all passive parties take part, as in the first cohort. `sizes`: training rows of each, (n,).

    Raises:
        ConfigError: the cohort has fewer, or parties drop out.
    """
    sampler = config.cohort
    size = len(sampler.sample(sampler.init(len(sizes)), 0, config.seed, sizes)[1])
    if size < len(sizes):
        raise ConfigError(
            "cohort",
            f"has {size} of the {len(sizes)} passive parties; in a vertical federation all take part in each round. "
            "Set cohort: {fraction: 1.0}",
        )
    if config.system is not None and config.system.dropout:
        raise ConfigError(
            "system.dropout",
            f"is {config.system.dropout}; in a vertical federation all passive parties answer in each round. Set 0",
        )


def require_divisible(dataset: Dataset) -> None:
    """Raise a `ValueError` if the columns of a data set cannot be distributed."""
    x = dataset.train["x"]
    if "y" not in dataset.train:
        raise ValueError(
            f"train has no 'y' in {sorted(dataset.train)}; in a vertical federation the active party has the labels"
        )
    if dataset.source is not None:
        raise ValueError(
            "training draws the rows of this data set again at each access; columns of such rows cannot be distributed"
        )
    if dataset.server is not None:
        raise ValueError("this data set has rows of the server's own; with a partition of columns all rows are aligned")
    if x.ndim < 2:
        raise ValueError(f"x has one number per row, {x.shape}; there are no columns to distribute")


def with_columns(config: Config, dataset: Dataset, periods: Sequence[Period]) -> tuple[Dataset, tuple[Period, ...]]:
    """Distribute the columns of a data set whose rows are split already: see `fl.data.parties.divided`."""
    partitioner = config.partition
    assert isinstance(partitioner, ColumnPartitioner)
    if dataset.test is not None and config.splits.test:
        raise ConfigError("splits.test", "has to be 0: the data set has test rows, which all parties hold out")
    columns, axis = partitioner.party_columns(dataset), partitioner.sample_axis
    check_columns(columns, dataset.train["x"].shape[1:][axis])
    (period,) = periods
    dataset, partition = divided(dataset, period.partition, columns, axis)
    return dataset, (replace(period, partition=partition),)


def _name(part: object) -> str:
    return getattr(type(part), "registered_as", type(part).__name__)
