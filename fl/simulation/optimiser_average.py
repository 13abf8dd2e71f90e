"""The server's side of `client.optimiser_state: averaged`: a group "optimiser" in each exchange in which clients train.

    Exchange -> with the mean memory in the broadcast, and its mean in the reduction -> ... -> without both

So codecs, the ledger and virtual time see the group as any other, and no strategy has to know it. In the first round
the server has no memory, and only updates carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fl.config.config import Config
from fl.errors import ConfigError
from fl.method.local_training import LocalTraining
from fl.method.messages import Broadcast
from fl.method.optimiser import SGD
from fl.method.optimiser_memory import GROUP, mean_like
from fl.method.requests import Exchange
from fl.system.asynchronous import Asynchronous
from fl.tensors.trees import Tree

KEY = "client.optimiser_state"


class OptimiserAverage:
    """The mean memory of clients' optimisers.

    Attributes:
        active: whether the run averages memories.
        memory: the mean; None before the first round.
    """

    def __init__(self, config: Config) -> None:
        self.active = averages(config)
        self.memory: Tree = None

    def extend(self, exchange: Exchange) -> Exchange:
        """Return the exchange with the group "optimiser", if clients train in it.

        Raises:
            ConfigError: the strategy does not reduce the group "model", or has clients train another module.
        """
        if not self.active or exchange.work != "train":
            return exchange
        if "model" not in exchange.reductions or exchange.skeleton is not None:
            raise ConfigError(
                KEY, "'averaged' needs a strategy that reduces the clients' models; use 'kept' or 'reset'"
            )
        broadcast = Broadcast.of(exchange.broadcast)
        if self.memory is not None:
            broadcast = replace(broadcast, shared={**broadcast.shared, GROUP: self.memory})
        reductions = {**exchange.reductions, GROUP: mean_like(exchange.reductions["model"])}
        return replace(exchange, broadcast=broadcast, reduction=reductions)

    def learn(self, exchange: Exchange, value: Mapping[str, Any] | None) -> Any:
        """Take the mean memory out of the reduced groups; return the rest in the form that `exchange` asks for."""
        if not self.active or exchange.work != "train" or value is None:
            return value
        rest = dict(value)
        self.memory = rest.pop(GROUP)
        return exchange.reduced(rest)


def averages(config: Config) -> bool:
    """Return whether clients' optimisers are averaged."""
    return isinstance(config.client, LocalTraining) and config.client.optimiser_state == "averaged"


def check_optimiser_state(config: Config) -> None:
    """Check that the other parts of a run allow what `optimiser_state` asks for.

    Raises:
        ConfigError: they do not.
    """
    adapt = config.evaluation.adapt
    if isinstance(adapt, LocalTraining) and adapt.optimiser_state != "reset":
        raise ConfigError(
            "evaluation.adapt.optimiser_state", f"{adapt.optimiser_state!r} is not possible: evaluations keep nothing"
        )
    if not averages(config):
        return
    assert isinstance(config.client, LocalTraining)
    lossy = next((key for key in ("up", "down") if not getattr(config, key).exact), None)
    for obstacle, found in (
        ("an asynchronous server; use server: sync", isinstance(config.server, Asynchronous)),
        ("after_reduction, which would not see the optimisers; leave it out", bool(config.after_reduction)),
        ("privacy, whose noise would not cover the optimisers; leave it out", config.privacy is not None),
        ("an adversary; leave it out", config.adversary is not None),
        (
            f"a lossy codec.{lossy} with {type(config.client.optimiser).__name__}, whose second moments may become "
            "negative; use sgd with momentum, or an exact codec",
            lossy is not None and not isinstance(config.client.optimiser, SGD),
        ),
    ):
        if found:
            raise ConfigError(KEY, f"'averaged' is not possible with {obstacle}, or use 'kept' or 'reset'")
    if config.server.chooses and config.system is not None and config.system.up_bytes is None:
        raise ConfigError(
            "system.up_bytes",
            "missing: with client.optimiser_state: averaged the size of an update is not known before clients have "
            "trained, and `server` needs it to know which updates arrive in time; declare it in bytes",
        )
