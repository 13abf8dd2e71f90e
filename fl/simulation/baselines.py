"""The runs of a configuration's baselines: `baselines: [NAME, ...]`.

A baseline trains as the run's clients do (optimiser, learning rate, batch size, budget) and starts from the run's
first model. It is a run of its own in the folder baselines/NAME of the run's directory. Each baseline is a part, see
fl/method/baseline.py; such parts are written with the functions of this module.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fl import registry
from fl.config.config import Config
from fl.config.sections import Stop
from fl.errors import ConfigError
from fl.method.client import ClientAlgorithm, LocalTraining
from fl.method.sampler import Uniform
from fl.method.strategy import Strategy
from fl.simulation.setup import RunSetup


def beside(run_setup: RunSetup, directory: Path) -> dict[str, Config]:
    """The configurations of a run's baselines, by name; `directory` is the run's."""
    config = run_setup.config
    if config.baselines and (config.stream is not None or config.evaluation.clients == "held_out"):
        key = "stream" if config.stream is not None else "evaluation.clients"
        raise ConfigError(
            "baselines", f"they are for runs of one task whose own clients are evaluated; leave out {key}"
        )
    return {registry.name_of(part): part.config(run_setup, directory) for part in config.baselines}


def compared(config: Config, rounds: int, strategy: Strategy, client: ClientAlgorithm, server: bool = False) -> Config:
    """The run's configuration with another method, in which every client takes part.

    Args:
        config: the configuration of the run.
        rounds: rounds of the baseline.
        strategy: its strategy.
        client: its client algorithm.
        server: whether the baseline changes the server's model, so that evaluating that model makes sense.
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
        transforms=(),
        evaluation=evaluation,
        execution=replace(config.execution, plan="auto", chunk=None, memory_format=None),
        stop=Stop(),
        baselines=(),
    )


def local_training(run_setup: RunSetup) -> LocalTraining:
    """The run's client algorithm; a `ConfigError` if it does not train by gradient steps."""
    client = run_setup.config.client
    if not isinstance(client, LocalTraining):
        raise ConfigError(
            "baselines",
            f"{type(client).__name__} takes no gradient steps, so that there is no budget to train with; "
            "leave out the baselines that train",
        )
    return client


def trainer(algorithm: str, run_setup: RunSetup, **arguments: Any) -> LocalTraining:
    """The client algorithm of this name with the run's budget, batch size and optimiser.

    Args:
        algorithm: its registered name.
        run_setup: the run that the baseline is compared with.
        arguments: hyper-parameters that differ from the run's.
    """
    client = local_training(run_setup)
    same = {field.name: getattr(client, field.name) for field in fields(LocalTraining) if field.name != "trains"}
    return registry.lookup("client", algorithm)(**{**same, **arguments})


def participation(run_setup: RunSetup) -> float:
    """Fraction of the clients that takes part in a round (in the first round, if it is not constant)."""
    config = run_setup.config
    state = config.cohort.init(run_setup.trainable)
    _, cohort = config.cohort.sample(state, 0, config.seed, run_setup.sizes(0)[: run_setup.trainable])
    return max(len(cohort), 1) / run_setup.trainable
