"""What a method is compared with, on the same splits and for the same work: `baselines: [local, centralised, finetune, majority]`.

    local        each client trains a model of its own            for as many rounds as one takes part in on average
    centralised  one model from everybody's training rows         as many samples a round as a cohort sees
    finetune     the run's model, trained on by each client       for one round of the run's local budget
    majority     each client answers its most frequent label

They train as the run's clients do (optimiser, rate, batch, budget) and start from the run's first model. Each is a run of its own below
the run's directory, baselines/NAME.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fl import registry
from fl.config.config import Config
from fl.config.sections import Stop
from fl.errors import ConfigError
from fl.method.client import LocalTraining
from fl.method.sampler import Fixed, Uniform
from fl.simulation.setup import RunSetup


def beside(run_setup: RunSetup, directory: Path) -> dict[str, Config]:
    """The baselines that a run asks for, by name; `directory` is the run's."""
    config = run_setup.config
    if config.baselines and (config.stream is not None or config.evaluation.clients == "held_out"):
        what = "stream" if config.stream is not None else "evaluation.clients"
        raise ConfigError(
            "baselines", f"they are for runs of one task whose own clients are evaluated; leave out {what}"
        )
    return {name: _BASELINES[name](run_setup, directory) for name in config.baselines}


def _local(run_setup: RunSetup, directory: Path) -> Config:
    config = run_setup.config
    rounds = max(1, round(config.rounds * _share(run_setup)))
    return _run(config, rounds, "local", _trainer("local", run_setup))


def _centralised(run_setup: RunSetup, directory: Path) -> Config:
    config = run_setup.config
    client, rows = _training(run_setup), int(run_setup.sizes(0)[: run_setup.trainable].sum())
    if client.steps is not None:
        cohort = max(1, round(_share(run_setup) * run_setup.trainable))
        steps = client.steps * cohort
    else:
        batch = rows if client.batch == "full" else client.batch
        steps = max(1, round(client.epochs * _share(run_setup) * rows / batch))
    done = _run(config, config.rounds, "fedavg", _trainer("sgd", run_setup, steps=steps))
    return replace(done, splits=replace(config.splits, pooled=True), cohort=Fixed(clients=(0,)))


def _finetune(run_setup: RunSetup, directory: Path) -> Config:
    config = run_setup.config
    if config.model.freeze or config.model.adapter:
        raise ConfigError(
            "baselines", "'finetune' starts from a run whose whole model trains; leave out freeze and adapter"
        )
    model = replace(config.model, init=str((directory / "model.safetensors").absolute()))
    return replace(_run(config, 1, "local", _trainer("local", run_setup)), model=model)


def _majority(run_setup: RunSetup, directory: Path) -> Config:
    y = run_setup.dataset.train.get("y")
    if run_setup.config.task.kernel != "cross_entropy" or y is None or y.ndim != 1:
        raise ConfigError("baselines", "'majority' is for classification, with one class per row")
    return _run(run_setup.config, 1, "majority", registry.lookup("client", "majority")())


_BASELINES = {"local": _local, "centralised": _centralised, "finetune": _finetune, "majority": _majority}


def _run(config: Config, rounds: int, strategy: str, client: Any) -> Config:
    """The run's configuration for another method, in which every client takes part."""
    server = config.evaluation.server and strategy == "fedavg"  # the others leave the server with the first model
    evaluation = replace(config.evaluation, stage="received", adapt=None, shots=None, server=server)
    return replace(
        config,
        rounds=rounds,
        strategy=registry.lookup("strategy", strategy)(),
        client=client,
        cohort=Uniform(fraction=1.0),
        transforms=(),
        evaluation=replace(evaluation, every=min(evaluation.every, rounds)),
        execution=replace(config.execution, plan="auto", chunk=None, memory_format=None),
        stop=Stop(),
        baselines=(),
    )


def _training(run_setup: RunSetup) -> LocalTraining:
    client = run_setup.config.client
    if not isinstance(client, LocalTraining):
        raise ConfigError(
            "baselines", f"{type(client).__name__} takes no gradient steps for others to train as; use 'majority'"
        )
    return client


def _trainer(name: str, run_setup: RunSetup, **own: Any) -> LocalTraining:
    """A client algorithm with the budget, batch and optimiser of the run's."""
    client = _training(run_setup)
    same = {field.name: getattr(client, field.name) for field in fields(LocalTraining) if field.name != "trains"}
    return registry.lookup("client", name)(**{**same, **own})


def _share(run_setup: RunSetup) -> float:
    """The part of the clients that takes part in a round (in the first, should it differ)."""
    config = run_setup.config
    state = config.cohort.init(run_setup.trainable)
    _, cohort = config.cohort.sample(state, 0, config.seed, run_setup.sizes(0)[: run_setup.trainable])
    return max(len(cohort), 1) / run_setup.trainable
