"""Laws of strategies."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.check import reference, runs
from fl.check.bench import TRAINING, Bench, fingerprint, finish, own, require_equal_bits, with_methods
from fl.check.finding import Broken, Law, require_close, require_equal
from fl.check.ledger import the_ledger_counts_every_byte
from fl.check.runs import LOOP, WITH_DROPOUT, Settings
from fl.data.views import View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.strategy import Metrics, RoundGenerator, ServerContext, State, Strategy
from fl.simulation.simulation import Simulation
from fl.tensors.generators import seed_generators
from fl.tensors.params import Params
from fl.tensors.trees import tree_map


def a_round_is_a_pure_function(bench: Bench) -> None:
    """A round that runs twice on the same state and answers gives the same results and changes neither."""

    def round_(self: Strategy, state: State, ctx: ServerContext) -> RoundGenerator:
        before, answers = fingerprint(state), list[Any]()
        seed_generators(ctx.round)  # a run seeds them for each round
        first = yield from _record(own(self).round(self, state, ctx), answers)
        if fingerprint(state) != before:
            raise Broken("a round changed the state it was given; make a new one (p + q, not p.add_(q))")
        seed_generators(ctx.round)
        again = _replay(own(self).round(self, state, ctx), answers)
        require_equal(fingerprint(list(again)), fingerprint(list(first)), "two rounds on the same state and answers")
        return first

    config = bench.config()
    bench.run(replace(config, strategy=with_methods(config.strategy, round=round_)))


def _record(round_: RoundGenerator, answers: list[Any]) -> Generator[Any, Any, tuple[State, Metrics]]:
    """Run a round and append a copy of each answer that it is sent."""
    answer = None
    while True:
        try:
            request = round_.send(answer)
        except StopIteration as end:
            return end.value
        answer = yield request
        answers.append(tree_map(lambda leaf: leaf.clone(), answer))


def _replay(round_: RoundGenerator, answers: list[Any]) -> tuple[State, Metrics]:
    """Run a round on recorded answers."""
    supply, answer = iter(answers), None
    while True:
        try:
            round_.send(answer)
        except StopIteration as end:
            return end.value
        answer = next(supply)


def the_fedavg_setting_is_fedavg(bench: Bench) -> str | None:
    """In its `fedavg_equivalent` setting the method equals FedAvg: to 1e-6, or to the bit where it declares so."""
    return _compare_with_fedavg(bench, {})


def the_fedavg_setting_is_fedavg_with_dropout(bench: Bench) -> str | None:
    """The same holds for a model with Dropout: the method draws the same masks as FedAvg."""
    return _compare_with_fedavg(bench, WITH_DROPOUT)


def _compare_with_fedavg(bench: Bench, overrides: Settings) -> str | None:
    config = bench.fedavg_equivalent(**overrides)
    declared = None if config is None else config.strategy.fedavg_equivalent
    if config is None or declared is None:
        return "no setting of it is FedAvg"
    example = {**config.strategy.example_config, **config.client.example_config}.items()
    needs = {path: value for path, value in example if path.split(".")[0] not in ("strategy", "client")}
    overrides = {path: value for path, value in overrides.items() if path != "model.name" or "model" not in needs}
    expected = _fedavg(json.dumps([dict(declared.fedavg), needs | overrides], sort_keys=True))
    ours = bench.run(config).model
    if set(expected) < set(ours):  # tensors that the client algorithm adds have no counterpart
        ours = ours.select(list(expected))
    require_close(ours, expected, 1e-6, "the setting and FedAvg")
    if declared.bits:
        require_equal_bits(ours, expected, "equal bits are declared")
    return None


@functools.lru_cache(maxsize=8)
def _fedavg(settings: str) -> Params:
    """The model of the reference FedAvg; most methods are compared with the same run.

    `settings` is JSON: the strategy's arguments and overrides by dotted path.
    """
    arguments, overrides = json.loads(settings)
    strategy, client = {"name": reference.STRATEGY, **arguments}, {"name": reference.CLIENT, **TRAINING}
    with tempfile.TemporaryDirectory() as folder:
        return Bench(strategy, client, Path(folder)).run(**overrides).model


def a_cohort_of_one_is_that_client(bench: Bench) -> str | None:
    """In the `fedavg_equivalent` setting, a round with one client gives the model that the client computes alone."""
    config = bench.fedavg_equivalent(cohort={"name": "fixed", "clients": [3]}, rounds=1, **LOOP)
    if config is None:
        return "no setting of it is FedAvg"
    if set(config.client.receives) != {"model"} or "model" not in config.client.sends:
        return "its messages are not a model down and its update up"
    with bench.simulation(config) as simulation:
        ctx = _context(simulation, client=3)
        alone = ctx.received["model"] + config.client.work("train", ctx, None).update.groups["model"]
        require_close(finish(simulation).model, alone, 1e-6, "a cohort of one and that client")
    return None


def _context(simulation: Simulation, client: int) -> ClientContext:
    """The context of a client in round 0 of a run that has not started; it receives the strategy's initial model."""
    setup, strategy = simulation.run_setup, simulation.run_setup.config.strategy
    state = strategy.init(setup.model.clone(), setup.server_context(0, np.empty(0, np.int64)))
    arrays = {name: torch.from_numpy(array) for name, array in setup.dataset.train.items()}
    partition = setup.periods[0].partition
    return ClientContext(
        client=client,
        seed=setup.config.seed,
        round=0,
        rounds=1,
        participation=0,
        received={"model": strategy.model(state).clone()},
        config={},
        state=None,
        train=View(arrays, partition.view_rows(client, "train")),
        val=View(arrays, partition.view_rows(client, "val")),
        test=View(arrays, partition.view_rows(client, "test")),
        initial=setup.initial,
        module=copy.deepcopy(setup.module),
        task=setup.config.task,
        module_facts=setup.facts,
        training_loop=train,
    )


LAWS: list[Law] = [
    *runs.LAWS,
    a_round_is_a_pure_function,
    the_ledger_counts_every_byte,
    the_fedavg_setting_is_fedavg,
    the_fedavg_setting_is_fedavg_with_dropout,
    a_cohort_of_one_is_that_client,
]
