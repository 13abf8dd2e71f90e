"""Reference parts of the small federation: the plainest strategy, client algorithm and partition, and a model.

Laws compare methods with this FedAvg, not with a registered one, so that the expected values never come from the code
under test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from fl.data.dataset import Dataset
from fl.data.grouping import group_by
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.method.local_training import LocalTraining
from fl.method.reduction import Reduction, WeightedMean
from fl.method.strategy import Metrics, ServerContext, Strategy
from fl.models.section import Architecture
from fl.tensors.params import Params


@dataclass(frozen=True, kw_only=True)
class FederatedAveraging(Strategy):
    """FedAvg: model <- model + mean(update).

    Args:
        weights: Weight of each client in the mean: its number of training samples ("examples") or the same for all
            ("uniform").
    """

    weights: Literal["examples", "uniform"] = "examples"

    def reduction(self, state: Params, ctx: ServerContext) -> Reduction:
        return WeightedMean(self.weights)

    def step(self, state: Params, reduced: Params, ctx: ServerContext) -> tuple[Params, Metrics]:
        return state + reduced, {}


@dataclass(frozen=True, kw_only=True)
class GradientSteps(LocalTraining):
    """Local training without any addition: gradient steps on the loss of the task."""


@dataclass(frozen=True)
class ClientsOfTheData(Partitioner):
    """Partition with one client for each distinct client id of the data set."""

    def split(self, dataset: Dataset) -> Partition:
        """Partition of all rows; clients are in ascending order of their ids."""
        assert dataset.clients is not None, "the data set of the small federation has client ids"
        ids, owners = np.unique(dataset.clients, return_inverse=True)
        return Partition(*group_by(owners, len(ids)))


@dataclass(frozen=True, kw_only=True)
class PerceptronWithDropout(Architecture):
    """The perceptron of the federation with Dropout after its hidden layer; its tensors have the same names.

    Args:
        hidden: Width of the hidden layer, a tuple of one number.
        p: Probability that Dropout sets an entry to zero, in [0, 1).
    """

    hidden: tuple[int, ...] = (5,)
    p: float = 0.5

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The module for samples of a shape."""
        features, (hidden,) = math.prod(shape), self.hidden
        middle = nn.Sequential()  # names instead of numbers: patterns like "1.*" in `example_config` must not match
        middle.add_module("relu", nn.ReLU())
        middle.add_module("dropout", nn.Dropout(self.p))
        return nn.Sequential(nn.Flatten(), nn.Linear(features, hidden), middle, nn.Linear(hidden, outputs))


STRATEGY, CLIENT, PARTITION, DROPOUT_MODEL = (
    f"{part.__module__}:{part.__qualname__}"
    for part in (FederatedAveraging, GradientSteps, ClientsOfTheData, PerceptronWithDropout)
)
