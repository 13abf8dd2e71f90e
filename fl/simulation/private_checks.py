"""Check before round 0 that a private run keeps the assumptions of its account."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.config.config import Config
from fl.errors import ConfigError, located
from fl.method.requests import Evaluate, Exchange
from fl.method.strategy import ServerContext
from fl.models.architectures.by_client import ByClient
from fl.privacy.audit import numel
from fl.privacy.example import ExampleLevel
from fl.privacy.plan import PrivacyPlan
from fl.privacy.withheld import ReadsPrivate, Withheld
from fl.registry import name_of
from fl.simulation.private_rounds import ONE_RELEASE, exchange_refusal, known_forms, private_result
from fl.system.asynchronous import Asynchronous
from fl.system.availability import Always
from fl.system.synchronous import Synchronous
from fl.tensors.trees import tree_map

if TYPE_CHECKING:
    from fl.simulation.simulation import Simulation


NOT_PRIVATE = ("clipped", "signal_to_noise", "cohort_size", "dropped")  # metrics beside train/*, val/*, clients/*


def check_private(config: Config) -> None:
    """Check the configuration of a private run.

    Raises:
        ConfigError: a part of it breaks an assumption of the accountant, or of the bound on one client's effect.
    """
    example = isinstance(config.client, ExampleLevel)
    if example and (config.privacy is None or config.privacy.unit != "example"):
        raise ConfigError(
            "privacy", f"client {name_of(config.client)!r} needs `privacy` with unit: example, which sets its noise"
        )
    if config.privacy is None or config.privacy.unit == "example":
        return
    if config.privacy.where == "local" and config.privacy.cap is not None:
        raise ConfigError("privacy.cap", "the server would learn numbers of samples without noise; leave cap out")
    if isinstance(config.server, Asynchronous):
        raise ConfigError(
            "server",
            "the clock of an asynchronous server chooses the clients, and the accountant assumes that "
            "`privacy.sampling` does; use server: sync, or leave privacy out",
        )
    if isinstance(config.server, Synchronous) and config.server.needed is not None:
        raise ConfigError(
            "server.needed",
            "with over-selection one client displaces another, so that it changes the sum by two updates; leave needed "
            "out, or use deadline_seconds",
        )
    if config.system is not None and not isinstance(config.system.availability, Always):
        raise ConfigError(
            "system.availability",
            "who is available depends on how long earlier clients took, so that a client's presence shows in later "
            "cohorts, which no accountant covers; leave availability out",
        )
    patient = [] if config.stop.patience is None else [config.evaluation.select or "val/loss"]
    for name in (*config.stop.target, *patient):
        if name.startswith(("train/", "val/", "clients/")) or name in NOT_PRIVATE:
            raise ConfigError(
                "stop",
                f"{name} depends on clients' rows without noise, and the number of rounds would depend on it; use "
                "epsilon or eval/* in stop.target or evaluation.select, or leave stop out",
            )
    if config.client.statistics:
        raise ConfigError(
            "client",
            f"{name_of(config.client)!r} sends the groups {list(config.client.statistics)}, which are no changes of "
            "parameters: after clipping and noise they can be negative or far too small; use a method that sums "
            "changes of parameters (docs/privacy.md)",
        )
    if isinstance(config.model.part, ByClient):
        raise ConfigError("model", "clients of different architectures send no updates that can be summed and clipped")
    if config.model.batch_norm == "averaged":
        raise ConfigError(
            "model.batch_norm",
            "noise on averaged statistics can make variances negative; use batch or local, or a model without "
            "BatchNorm",
        )


def check_private_rounds(run: Simulation) -> None:
    """Try the first round and the last one of each period; see `check_private_round`."""
    ends = [end - 1 for end in run.run_setup.ends if end <= run.config.rounds]
    for round_ in dict.fromkeys([0, *ends, run.config.rounds - 1]):
        check_private_round(run, round_)


def check_private_round(run: Simulation, round_: int) -> None:
    """Try a round of the strategy with a reduced value of zeros: what it requests, and what it reads.

    Raises:
        ConfigError: the account does not cover an exchange, or the strategy reads something of single clients.
    """
    section, context = run.config.privacy, run.run_setup.server_context(round_, np.empty(0, np.int64))
    assert section is not None
    generator = run.config.strategy.round(run.state, withhold_clients(context))
    exchanges, answer = 0, None
    with contextlib.suppress(StopIteration), contextlib.closing(generator):
        while True:
            try:
                request = generator.send(answer)
            except (StopIteration, ReadsPrivate):
                raise
            except Exception:  # a rule may not be made for zeros; the rounds will tell
                return
            if isinstance(request, Evaluate) and request.cohort is not None:
                raise ConfigError(
                    "privacy",
                    "the strategy evaluates the models of single clients in the middle of a round, and what it learns "
                    "has no noise; use another strategy, or leave privacy out",
                )
            if not isinstance(request, Exchange):
                return  # what follows depends on the answer
            exchanges += 1
            if reason := exchange_refusal(request, run.config.client.delta_reference):
                raise ConfigError("privacy", reason)
            if exchanges > 1:
                raise ConfigError(
                    "privacy",
                    f"{ONE_RELEASE}, and the strategy has another one; use a strategy with one exchange per round",
                )
            known, reference = known_forms(request), run.config.client.delta_reference
            zeros = {
                name: tree_map(lambda leaf: leaf * 0, known[reference.get(name, name)]) for name in request.reductions
            }
            try:
                section.clipping.parts(zeros)
            except ValueError as error:
                raise located("privacy.clipping", error) from error
            if section.audit is not None:
                section.audit.check_size(numel(zeros))
            answer = private_result(request, zeros)


def with_private_client(config: Config, plan: PrivacyPlan) -> Config:
    """Return the configuration with the noise of clients that add it to their own steps."""
    if not isinstance(config.client, ExampleLevel):
        return config
    bound = plan.section.clipping.bounds_at(None, 1, "l2")[0]
    return replace(config, client=config.client.with_noise(bound, plan.noise_multiplier))


def withhold_clients(context: ServerContext) -> ServerContext:
    """Return a context without the ids of the round's clients."""
    withheld: Any = Withheld("ctx.cohort")
    return replace(context, cohort=withheld)
