"""The runs of a configuration's baselines: `baselines: [NAME, ...]`.

A baseline uses the optimiser, learning rate, batch size and budget of the run's clients, and starts from the run's
first model. It is a separate run in the folder baselines/NAME of the run directory. Each baseline is a part, see
fl/method/baseline.py. Such parts use the functions of this module.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl import registry
from fl.config.config import Config
from fl.config.sections import Stop
from fl.errors import ConfigError
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.sampler import Uniform
from fl.method.strategy import Strategy
from fl.simulation.client_models import check_method
from fl.simulation.setup import RunSetup


def baseline_configs(run_setup: RunSetup, directory: Path) -> dict[str, Config]:
    """Return the configurations of a run's baselines by name; `directory` is the run directory.

    Raises:
        ConfigError: the run has baselines, and is a stream of tasks or evaluates held-out clients; or a baseline
            exchanges parameters, and clients have different architectures.
    """
    config = run_setup.config
    if config.baselines and (config.stream is not None or config.evaluation.clients == "held_out"):
        key = "stream" if config.stream is not None else "evaluation.clients"
        raise ConfigError(
            "baselines", f"they need a run of one task that evaluates the clients that train; leave out {key}"
        )
    found = {registry.name_of(part): part.config(run_setup, directory) for part in config.baselines}
    for name, other in found.items():
        try:
            check_method(other)
        except ConfigError as error:
            raise ConfigError("baselines", f"{name}: {error}") from error
    return found


def with_method(
    config: Config, rounds: int, strategy: Strategy, client: ClientAlgorithm, server: bool = False
) -> Config:
    """Return the run's configuration with another method: all clients in every round, no adversary.

    Args:
        config: the configuration of the run.
        rounds: number of rounds of the baseline.
        strategy: the baseline's strategy.
        client: the baseline's client algorithm.
        server: True if the baseline trains the server's model, so that this model can be evaluated.
    """
    evaluation = replace(
        config.evaluation,
        stage="received",
        adapt=None,
        shots=None,
        server=config.evaluation.server and server,
        every=min(config.evaluation.every, rounds),
    )
    return replace(
        config,
        rounds=rounds,
        strategy=strategy,
        client=client,
        cohort=Uniform(fraction=1.0),
        adversary=None,
        transforms=(),
        after_reduction=(),
        secure_aggregation=None,
        evaluation=evaluation,
        execution=replace(config.execution, plan="auto", chunk=None, memory_format=None),
        stop=Stop(),
        baselines=(),
    )


def local_training(run_setup: RunSetup) -> LocalTraining:
    """Return the run's client algorithm.

    Raises:
        ConfigError: it does not train by gradient steps.
    """
    client = run_setup.config.client
    if not isinstance(client, LocalTraining):
        raise ConfigError(
            "baselines",
            f"{type(client).__name__} takes no gradient steps, so the run has no budget for training; "
            "leave out the baselines that train",
        )
    return client


def with_budget(algorithm: str, run_setup: RunSetup, **arguments: Any) -> LocalTraining:
    """Return a client algorithm with the budget, batch size and optimiser of the run's clients.

    Args:
        algorithm: registered name of the client algorithm.
        run_setup: the run that the baseline is compared with.
        arguments: hyper-parameters that differ from the run's.

    Raises:
        ConfigError: the run's clients do not train by gradient steps.
    """
    client = local_training(run_setup)
    same = {field.name: getattr(client, field.name) for field in fields(LocalTraining) if field.name != "trains"}
    return registry.lookup("client", algorithm)(**{**same, **arguments})


def participation(run_setup: RunSetup) -> float:
    """Return the fraction of clients in a cohort, measured in round 0; in (0, 1]."""
    config = run_setup.config
    state = config.cohort.init(run_setup.trainable)
    state, cohort = config.cohort.sample(state, 0, config.seed, run_setup.sizes(0)[: run_setup.trainable])
    _, cohort = config.cohort.choose(state, cohort, np.zeros(len(cohort)))
    return max(len(cohort), 1) / run_setup.trainable
