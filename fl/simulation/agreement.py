"""Check before any work that the parts of a run fit together: strategy, client, sampler, server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl.checks import one_of
from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback
from fl.config.config import Config
from fl.data.stream import Period
from fl.errors import ConfigError, located
from fl.execution.finite import is_finite, non_finite_name
from fl.method.messages import Broadcast
from fl.method.requests import Exchange
from fl.method.strategy import Strategy
from fl.simulation.expected_bytes import expected_upload_bytes
from fl.simulation.view_checks import received_groups
from fl.system.asynchronous import Asynchronous
from fl.tensors.params import Params

BEGINS_WITH_EXCHANGE = "an asynchronous server takes strategies that begin a round with an exchange"
ONE_EXCHANGE = "an asynchronous server takes strategies with one exchange per round, in which all clients do the same"
SAME_MESSAGE = "an asynchronous server takes strategies that send the same to all clients"
SYNCHRONOUS = "Use a synchronous server"


def check_state(strategy: Strategy, state: Any) -> None:
    """Check the state before round 0.

    Raises:
        ConfigError: `strategy.model` returns no `Params` for it.
    """
    try:
        model = strategy.model(state)
    except TypeError as error:
        raise ConfigError("strategy", str(error)) from error
    if not isinstance(model, Params):
        came = f"init returned {type(state).__name__}; model(state) returned {type(model).__name__}, expected Params"
        raise ConfigError("strategy", f"{type(strategy).__name__}: {came}")


def check_finite(strategy: Strategy, state: Any, hook: str | None = None) -> None:
    """Check the model after a round in which all updates were finite.

    Args:
        strategy: the run's strategy.
        state: its state.
        hook: what returned the state. Default: `step` or `round`, whichever the strategy defines.

    Raises:
        FloatingPointError: it is not finite, so the strategy's rule has made it so.
    """
    model = strategy.model(state)
    if not is_finite(model):
        hook = hook or ("step" if type(strategy).round is Strategy.round else "round")
        name = non_finite_name({"model": model})
        raise FloatingPointError(
            f"strategy {type(strategy).__name__}: {hook} returned a model that is not finite: tensor {name}"
        )


def check_asynchronous(config: Config, request: Any) -> None:
    """Check that an asynchronous server can carry out the first request of a round. Other servers pass.

    Args:
        config: the run's configuration.
        request: what the strategy yields first.

    Raises:
        ConfigError: the request is no exchange in which all clients do the same with the same message.
    """
    if not isinstance(config.server, Asynchronous):
        return
    name = type(config.strategy).__name__
    if not isinstance(request, Exchange):
        came = type(request).__name__
        raise ConfigError("server", f"{BEGINS_WITH_EXCHANGE}; {name} begins with {came}. {SYNCHRONOUS}")
    if request.cohort is not None or request.skeleton is not None or request.pin:
        raise ConfigError("server", f"{ONE_EXCHANGE}; {name} sets cohort, skeleton or pin. {SYNCHRONOUS}")
    if not Broadcast.of(request.broadcast).uniform:
        raise ConfigError("server", f"{SAME_MESSAGE}; {name} sends each its own groups or config. {SYNCHRONOUS}")


def check_groups(config: Config, request: Any) -> None:
    """Check the first request of a round.

    Args:
        config: the run's configuration.
        request: what the strategy yields first.

    Raises:
        ConfigError: the client does not send a group that is reduced, or needs one that is not broadcast, or the
            strategy refuses it.
    """
    if isinstance(request, Exchange) and request.work == "train":
        _check_names(config, request)
    try:
        config.strategy.check_client(config.client)
    except ValueError as error:
        raise located("client", error) from error


def _check_names(config: Config, request: Exchange) -> None:
    """Check that the client sends and receives the groups of an exchange.

    Raises:
        ConfigError: it does not.
    """
    strategy, client = config.strategy, config.client
    if config.server.chooses:
        expected_upload_bytes(config, request)
    broadcast = Broadcast.of(request.broadcast)
    for verb, missing in (
        ("send", set(request.reductions) - set(client.sends)),
        (
            "receive",
            {*client.receives, *received_groups(client)} - broadcast.names if not callable(broadcast.config) else set(),
        ),
    ):
        if missing:
            names = [getattr(type(part), "registered_as", type(part).__name__) for part in (client, strategy)]
            raise ConfigError(
                "client.name",
                f"with strategy {names[1]!r}, client {names[0]!r} does not {verb} {sorted(missing)}; "
                f"the strategy's own client is {strategy.client!r}",
            )


def check_adversary(config: Config, trainable: int) -> None:
    """Check that a run can have its adversary; `trainable` is the number of clients that train.

    Raises:
        ConfigError: it cannot.
    """
    if config.adversary is None:
        return
    if isinstance(config.server, Asynchronous):
        raise ConfigError(
            "adversary",
            "an attack needs the honest updates of a round, and an asynchronous server has no rounds; "
            "use server: sync, or leave adversary out",
        )
    for wrapper in (ErrorFeedback, Delta):
        if find_wrapper(config.up, wrapper):
            raise ConfigError(
                "codec.up",
                f"{wrapper.__name__} remembers what a client sent, and attackers have no such memory; use a codec "
                "without memory, or leave adversary out",
            )
    try:
        config.adversary.check(trainable)
        for group in config.adversary.groups or ():
            one_of(sorted(config.client.sends), groups=group)
    except ValueError as error:
        raise located("adversary", error) from error


def check_secure_aggregation(config: Config) -> None:
    """Check that the other parts of a run leave the server with sums only.

    Raises:
        ConfigError: one does not.
    """
    if config.privacy is not None and config.privacy.unit == "client" and config.privacy.mechanism.distributed:
        check_distributed_noise(config)
    if config.secure_aggregation is None:
        return
    way_out = "or leave secure_aggregation out"
    if isinstance(config.server, Asynchronous):
        raise ConfigError(
            "server",
            "the clients of an asynchronous server exchange no keys, because they start at different times; use "
            f"server: sync, {way_out}",
        )
    if config.adversary is not None:
        raise ConfigError(
            "adversary",
            "an attack is written from single updates, and secure aggregation sums them at once. Its sum is that of a "
            f"run without it, up to quantisation: leave adversary out, {way_out}",
        )
    if config.cohort.chooses or config.cohort.observes:
        name = getattr(type(config.cohort), "registered_as", type(config.cohort).__name__)
        raise ConfigError("cohort", f"{name!r} learns from numbers of single clients; use uniform, {way_out}")
    private = config.privacy is not None and config.privacy.unit == "client"
    if config.privacy is not None and config.privacy.where == "local":
        raise ConfigError(
            "privacy.where",
            f"'local' noise has no bound for which the modulus could be made; use central, {way_out}",
        )
    for index, codec in enumerate(config.codec.up):
        if private and not codec.exact:
            raise ConfigError(
                f"codec.up[{index}]",
                "with privacy and secure_aggregation updates are clipped before the codec, and its decoder could "
                f"enlarge a client's effect; leave codec.up out, {way_out}",
            )
        name = getattr(type(codec), "registered_as", type(codec).__name__)
        if codec.wraps:
            raise ConfigError(
                f"codec.up[{index}]",
                f"{name!r} is not possible: the quantiser of secure aggregation comes after all codecs. Leave it out, "
                f"{way_out}",
            )
        if not codec.linear:
            raise ConfigError(
                f"codec.up[{index}]",
                f"{name!r} is not linear: its encodings cannot be added. Masked elements have "
                "secure_aggregation.bits; linear codecs are identity, hadamard, random_k and count_sketch. Use one of "
                f"them, {way_out}",
            )


def check_distributed_noise(config: Config) -> None:
    """Check a run whose clients add shares of the noise of their sum.

    Raises:
        ConfigError: the server would see more than the noisy sum, or the account would not hold.
    """
    privacy = config.privacy
    assert privacy is not None
    name = getattr(type(privacy.mechanism), "registered_as", type(privacy.mechanism).__name__)
    if config.secure_aggregation is None:
        raise ConfigError(
            "privacy.mechanism",
            f"{name!r} has a share of the noise on each update, and the server would see each of them; add "
            "secure_aggregation: {protocol: secagg}, or use gaussian",
        )
    if privacy.accountant != "rdp":
        raise ConfigError("privacy.accountant", f"{privacy.accountant!r} has no bound for {name!r}; use rdp")
    if privacy.virtual_cohort is not None:
        raise ConfigError("privacy.virtual_cohort", f"{name!r} has the noise of the simulated clients; leave it out")
    if privacy.clipping.adapts:
        raise ConfigError(
            "privacy.clipping", f"an adaptive bound needs noisy numbers of clients, and {name!r} opens none; use fixed"
        )


def check_after_reduction(config: Config) -> None:
    """Check that the parts after the reduction fit the groups that clients send.

    Raises:
        ConfigError: one does not.
    """
    for index, part in enumerate(config.after_reduction):
        try:
            part.check(config.client.sends)
        except ValueError as error:
            raise located(f"after_reduction[{index}]", error) from error


def check_sampler(config: Config, periods: Sequence[Period]) -> None:
    """Check that the server and the task give the sampler what it learns from.

    Raises:
        ConfigError: they do not.
    """
    sampler = config.cohort
    if not (sampler.chooses or sampler.observes):
        return
    name = getattr(type(sampler), "registered_as", type(sampler).__name__)
    if isinstance(config.server, Asynchronous):
        raise ConfigError(
            "cohort",
            f"{name!r} learns from rounds, and the clock of an asynchronous server chooses the clients; leave cohort "
            "out, or use server: sync",
        )
    if sampler.chooses and any("loss" not in period.task.metrics() for period in periods):
        raise ConfigError("cohort", f"{name!r} needs the metric 'loss', which the task does not have")
