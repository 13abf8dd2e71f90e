"""Example-level privacy of a run: clients add noise to their own steps; the server counts how often each took part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fl.method.reduction import Product, Reduction
from fl.method.requests import Exchange, ExchangeResult
from fl.privacy.plan import PrivacyPlan
from fl.privacy.withheld import Withheld
from fl.simulation.private_figures import check_same_noise


class PrivateExamples:
    """Accounts for the updates of clients whose local steps are private.

    Epsilon is that of the client that has sent the most updates; another client's is smaller.

    Args:
        plan: noise multiplier and accountant.
        clients: number of clients that may train.
        seed: seed of the run.
        steps: local steps of an exchange.
    """

    def __init__(self, plan: PrivacyPlan, clients: int, seed: int, steps: int):
        self.plan, self.seed, self.steps = plan, seed, steps
        self.participations = np.zeros(clients, np.int32)
        self.before, self.rise = self.participations, 1  # updates before this round; most of a client in any round
        self.asked: np.ndarray | None = None  # ids of the clients of the exchange at hand; None: an asynchronous server

    def sampling_seed(self, round_: int) -> int:
        """Return the seed with which the cohort of a round is drawn."""
        return self.seed

    def begin(self, round_: int, in_round: bool) -> None:
        """Begin a round, or work outside of rounds: each exchange is accounted."""
        self.before = self.participations.copy()

    def reduction(self, exchange: Exchange) -> Reduction:
        """Return the strategy's own reductions: they reduce values that are private already."""
        return Product(exchange.reductions)

    def release(self, exchange: Exchange, value: Any, clients: np.ndarray) -> tuple[Any, dict[str, float]]:
        """Count an update of each client; return (value, metrics of the round).

        The server may see an update that arrives too late for the sum, so it counts.
        """
        sent = clients if self.asked is None else self.asked
        np.add.at(self.participations, sent, 1)  # an asynchronous server may have a client twice
        spent = int(self.participations.max(initial=0))
        self.rise = max(self.rise, int((self.participations - self.before).max(initial=0)))
        bound = self.plan.section.clipping.bounds_at(None, 1, "l2")[0]
        noise = {"clip_bound": bound, "noise_multiplier": self.plan.noise_multiplier}
        return value, {**noise, "epsilon": self.plan.epsilon(spent * self.steps)}

    def next_epsilon(self) -> float:
        """Return the largest epsilon after one more round, with as many updates of a client as any round has had."""
        return self.plan.epsilon((int(self.participations.max(initial=0)) + self.rise) * self.steps)

    def result(self, exchange: Exchange, value: Any, clients: np.ndarray, num_examples: np.ndarray) -> ExchangeResult:
        """Return the answer of an exchange, without the clients' metrics, which have no noise."""
        metrics: Any = Withheld("ExchangeResult.metrics")
        return ExchangeResult(exchange.reduced(value), clients, num_examples, metrics)

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        counts = torch.from_numpy(self.participations.copy())
        return {"noise_multiplier": self.plan.noise_multiplier, "participations": counts, "rise": self.rise}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`. A `ConfigError` if the run would go on with other noise than it began with."""
        check_same_noise(self.plan, record["noise_multiplier"])
        self.participations, self.rise = record["participations"].numpy().copy(), record["rise"]
