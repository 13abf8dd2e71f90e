"""What a deployment can do: the keys of a configuration that it refuses, and the checks before it is used.

    deployable(config)     refuses keys; returns the configuration with the one plan that SuperNodes have
    assembled(config, ...) its Simulation: every check that `fl run` makes before round 0, and those of a deployment

Server, clients and `fl flower export` all use these two, so all refuse the same. docs/flower.md has the table of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta
from fl.config.config import Config
from fl.errors import ConfigError
from fl.execution.isolation import isolated
from fl.execution.workers.executor import Executor
from fl.method.messages import Broadcast
from fl.method.requests import Exchange
from fl.method.strategy import Strategy
from fl.method.unknown_state import StateNotHere, UnknownState
from fl.models.architectures.by_client import ByClient
from fl.simulation.simulation import Simulation
from fl.simulation.vertical import is_vertical
from fl.system.synchronous import Synchronous

OTHER_MODULE = "clients train a module other than the run's, and no message can carry a module"


@dataclass(frozen=True)
class Refusal:
    """A key that a deployment refuses.

    Args:
        key: dotted path of the key.
        found: the value that is refused; None or an empty one if the configuration is fine.
        reason: why a deployment refuses it, what is allowed, and the way out.
    """

    key: str
    found: Callable[[Config], object]
    reason: str


REFUSALS = (
    Refusal(
        "privacy",
        lambda config: config.privacy and (config.privacy.where == "local" or config.privacy.unit == "example"),
        "the clients' noise follows from the run's seed, which the server knows; use central noise of whole clients, "
        "or `fl run`",
    ),
    Refusal(
        "privacy.seeds",
        lambda config: config.privacy and config.privacy.seeds != "cryptographic",
        "clients know the run's seed, and the noise follows from it; set privacy.seeds=cryptographic, or use `fl run`",
    ),
    Refusal(
        "server",
        lambda config: None if config.server == Synchronous() else config.server,
        "a deployment runs plain synchronous rounds; leave `server` and `system` out, or use `fl run`. A client that "
        "takes too long is left out with `flwr run -c timeout=SECONDS` and execution.on_client_error=drop",
    ),
    Refusal(
        "system",
        lambda config: config.system,
        "the devices of a deployment are real, so no virtual time passes; leave it out (system=null), or use `fl run`",
    ),
    Refusal(
        "adversary",
        lambda config: config.adversary,
        "an attack needs the updates of all honest clients on one machine; leave it out (adversary=null), or use "
        "`fl run`",
    ),
    Refusal(
        "secure_aggregation",
        lambda config: config.secure_aggregation,
        "the protocol is simulated on one machine, with keys that follow from one secret; leave it out "
        "(secure_aggregation=null), or use `fl run`",
    ),
    Refusal(
        "baselines",
        lambda config: config.baselines,
        "a deployment cannot run baselines; leave them out (baselines=[]), and run them with `fl run`",
    ),
    Refusal(
        "codec.down",
        lambda config: find_wrapper(config.down, Delta),
        "a deployment cannot use delta: the server would have to store a copy for every client. Use another codec, "
        "such as error_feedback",
    ),
    Refusal(
        "model.by_client.assign",
        lambda config: isinstance(config.model.part, ByClient) and config.model.part.path,
        "SuperNodes do not have this file; write the list of names into the configuration",
    ),
    Refusal(
        "partition",
        is_vertical,
        "it distributes columns, and each Flower app loads the whole data set, with the columns and labels of all "
        "parties; use `fl run`",
    ),
    Refusal(
        "execution.workers",
        lambda config: config.execution.workers,
        "each SuperNode trains one client at a time; leave it out (execution.workers=null)",
    ),
    Refusal(
        "execution.address",
        lambda config: config.execution.address,
        "a deployment does not use Ray; leave it out (execution.address=null)",
    ),
    Refusal(
        "execution.client_timeout",
        lambda config: config.execution.client_timeout,
        "a deployment gives each reply a limit with `flwr run -c timeout=SECONDS`; leave it out "
        "(execution.client_timeout=null)",
    ),
    Refusal(
        "execution.plan",
        lambda config: None if config.execution.plan in ("auto", "loop") else config.execution.plan,
        "each SuperNode trains its client alone; allowed are loop and auto, which is loop here",
    ),
    Refusal(
        "execution.chunk",
        lambda config: None if config.execution.chunk == 1 else config.execution.chunk,
        "each SuperNode trains its client alone; leave it out (execution.chunk=null)",
    ),
)


def deployable(config: Config) -> Config:
    """Return the configuration that a deployment runs: `execution.plan` is `loop`.

    Raises:
        ConfigError: a deployment cannot do what a key asks for.
    """
    for refusal in REFUSALS:
        if refusal.found(config):
            raise ConfigError(refusal.key, refusal.reason)
    return replace(config, execution=replace(config.execution, plan="loop"))


@contextmanager
def assembled(config: Config, directory: Path, resumed: bool, executor: Executor) -> Iterator[Simulation]:
    """Set up the simulation of a deployment, with every check before round 0; the arguments as in `Simulation`.

    Raises:
        ConfigError: a deployment cannot run the configuration, or its parts do not fit together.
    """
    with isolated(), Simulation(deployable(config), directory, resumed, executor) as simulation:
        _check_exchange(simulation)
        yield simulation


def _check_exchange(simulation: Simulation) -> None:
    """Refuse strategies whose clients train another module, or receive what depends on their states.

    A strategy that sets its state up first is checked in its rounds: the same tests of each later exchange are in
    `FlowerExecutor`.
    """
    strategy = simulation.config.strategy
    if type(strategy).setup is not Strategy.setup:
        return
    request = simulation.first_request()
    if not isinstance(request, Exchange):
        return
    if request.skeleton is not None:
        raise ConfigError("strategy", f"{OTHER_MODULE}; use another strategy, or `fl run`")
    try:
        Broadcast.of(request.broadcast).groups_for(0, UnknownState())
    except StateNotHere as error:
        raise ConfigError("strategy", f"{type(strategy).__name__}: {error}") from error
