"""Check before any work that a run has the views and chains of augmentations that its client algorithm uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fl import registry
from fl.config.config import Config
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.data.stream import Period
from fl.errors import ConfigError
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.views import Beside, Chain


def check_views(config: Config) -> None:
    """Check the views and chains of the clients' first round.

    Raises:
        ConfigError: they, or evaluations, take rows without labels that do not exist; or they use the strong chain, and
            there is none.
    """
    if "unlabelled" in config.evaluation.splits:
        if config.labels is None:
            raise ConfigError("evaluation.splits", "unlabelled: all rows have labels; set labels:, or leave it out")
        if getattr(config.labels, "in_data", False):
            raise ConfigError("evaluation.splits", "unlabelled: nobody knows the labels of these rows; leave it out")
    for client in (config.client, config.evaluation.adapt):
        name = registry.name_of(client)
        used, chains = _views(client), _chains(client)
        if config.labels is None and ("unlabelled" in used or getattr(client, "weight_view", "") == "unlabelled"):
            raise ConfigError(
                "labels",
                f"missing; client {name} takes steps on rows without labels, and all rows have labels. Set it, for "
                "example to {name: budget, share: 0.1}",
            )
        if "strong" in chains and not config.data.strong:
            raise ConfigError(
                "data.strong",
                f"missing; client {name} uses the strong chain of augmentations. Set it, for example to "
                "[crop, flip, randaugment, cutout]",
            )


def views_obstacle(client: ClientAlgorithm, dataset: Dataset, periods: Sequence[Period]) -> str | None:
    """Return why a client's steps over several views cannot be taken for many clients together, or None."""
    phases = client.phases(0, 1) if isinstance(client, LocalTraining) else ()
    if not any(phase.has_views for phase in phases):
        return None
    steps = f"{type(client).__name__} takes steps over several views"
    if any(phase.view != "train" for phase in phases):
        return f"{type(client).__name__} takes steps over rows without labels"
    if dataset.source is not None:
        return f"{steps}, and rows are read at each access"
    for beside in _besides(client):
        if beside.batch == "full":
            return f"{steps} with all samples of one"
        if beside.view == "unlabelled" and any(_lacks_unlabelled(period.partition) for period in periods):
            return f"{steps}, and some clients have no rows without labels"
    return None


def _lacks_unlabelled(partition: Partition) -> bool:
    """Whether a client has rows with labels and none without."""
    return bool(np.any((partition.train_slices()[1] > 0) & (partition.unlabelled == 0)))


def received_groups(client: ClientAlgorithm) -> set[str]:
    """Return the groups of the broadcast that a client's steps take samples from."""
    return {beside.group for beside in _besides(client) if beside.group}


def _besides(client: ClientAlgorithm | None) -> Iterator[Beside]:
    if isinstance(client, LocalTraining):
        for phase in client.phases(0, 1):
            yield from phase.beside.values()


def _views(client: ClientAlgorithm | None) -> set[str]:
    views = {phase.view for phase in client.phases(0, 1)} if isinstance(client, LocalTraining) else set()
    return {*views, *(beside.view for beside in _besides(client))}


def _chains(client: ClientAlgorithm | None) -> list[Chain]:
    if not isinstance(client, LocalTraining):
        return []
    changes = [phase.changes for phase in client.phases(0, 1)] + [beside.changes for beside in _besides(client)]
    return [chain for each in changes for chain in each.values()]
