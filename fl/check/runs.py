"""Laws that strategies and clients have in common: each compares runs of the small federation.

Bit-identical results are required unless a law states a tolerance.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import torch

from fl.check import reference
from fl.check.bench import (
    CLIENTS,
    Bench,
    client_states,
    fingerprint,
    finish,
    own,
    require_equal_bits,
    with_methods,
)
from fl.check.executors import LeftToRight, Scattered
from fl.check.finding import Broken, Law, require_close, require_equal
from fl.errors import ConfigError
from fl.execution.training.plan import Kind
from fl.method.strategy import RoundGenerator, ServerContext, State, Strategy
from fl.simulation.run import resume
from fl.simulation.simulation import Simulation
from fl.tensors.params import Params
from fl.tensors.serialise import flatten, unflatten
from fl.tracking.callback import Callback, Row

LOOP: dict[str, Any] = {"execution.plan": "loop"}  # clients train one after the other
WITH_DROPOUT: dict[str, Any] = {"model.name": reference.DROPOUT_MODEL, **LOOP, "rounds": 1}
Settings = dict[str, Any]  # by dotted path
ALL_PARTIES = "in a vertical federation all parties take part in each round"


def three_rounds_run_and_stay_finite(bench: Bench) -> None:
    """Three rounds run; all parameters and metrics stay finite."""
    if not all(torch.isfinite(b).all() for b in bench.plain.model.buffers):
        raise Broken("the model is not finite after three rounds")
    for metrics in map(json.loads, bench.plain.metrics):
        bad = [name for name, x in metrics.items() if isinstance(x, float) and not math.isfinite(x)]
        if bad:
            raise Broken(f"round {metrics['round']}: {bad} are not finite")


def the_server_state_can_be_saved_and_restored(bench: Bench) -> None:
    """The strategy's state is a tree of plain values and tensors: flattened and rebuilt, it is the same."""
    with bench.simulation() as simulation:
        skeleton, tensors = flatten(simulation.state)
        restored = fingerprint(unflatten(skeleton, tensors))
        require_equal(restored, fingerprint(simulation.state), "the state and what is read back")


def the_same_configuration_gives_the_same_bits(bench: Bench) -> None:
    """A configuration that is run twice gives the same results."""
    bench.run().require_same(bench.plain, "run twice")


def cohort_order_does_not_matter(bench: Bench) -> str | None:
    """The order in which a cohort is listed has no effect."""
    if bench.is_vertical:
        return ALL_PARTIES
    one, other = (bench.run(cohort={"name": "fixed", "clients": list(c)}) for c in ((1, 4, 6), (6, 1, 4)))
    one.require_same(other, "clients 1, 4, 6 and 6, 1, 4")
    return None


def an_empty_round_changes_nothing(bench: Bench) -> str | None:
    """A round without any client does not change the model that `setup` returned."""
    if bench.is_vertical:
        return ALL_PARTIES
    before: list[Params] = []

    def round_(self: Strategy, state: State, ctx: ServerContext) -> RoundGenerator:
        before.append(self.model(state).clone())
        return (yield from own(self).round(self, state, ctx))

    config = bench.config(cohort={"name": "poisson", "rate": 1e-9}, rounds=1)
    run = bench.run(replace(config, strategy=with_methods(config.strategy, round=round_)))
    require_equal_bits(run.model, before[0], "before and after a round without clients")
    return None


def evaluation_has_no_effect_on_training(bench: Bench) -> None:
    """Evaluating after each round or only once gives the same model and the same client states."""
    once: Settings = {"evaluation.every": 3}
    seldom, how = bench.run(**once), "evaluated after each round and once"
    require_equal_bits(seldom.model, bench.plain.model, how)
    require_equal(seldom.states, bench.plain.states, f"{how}: states of clients")


def worker_and_order_of_tasks_do_not_matter(bench: Bench) -> None:
    """Two workers that take single tasks in a shuffled order give the same results as one."""
    bench.run(executor=Scattered()).require_same(bench.plain, "tasks in order and scattered over two workers")


def chunk_size_does_not_matter(bench: Bench) -> None:
    """When clients train one after the other, the number of clients per task has no effect."""
    chunks: list[Settings] = [{"execution.chunk": size} for size in (1, 2, 8)]
    one, two, eight = (bench.run(**LOOP, **chunk) for chunk in chunks)
    two.require_same(one, "tasks of two clients and of one")
    eight.require_same(one, "tasks of eight clients and of one")


def order_of_summation_changes_at_most_1e_6(bench: Bench) -> None:
    """Adding updates from left to right, instead of in a tree, changes the model by at most 1e-6 (relative)."""
    left_to_right = bench.run(executor=LeftToRight(), rounds=1, **LOOP)
    require_close(left_to_right.model, bench.run_once(rounds=1, **LOOP).model, 1e-6, "another tree")


def a_resumed_run_gives_the_same_bits(bench: Bench) -> None:
    """A run that is stopped and resumed after each round equals the uninterrupted run."""
    with bench.simulation() as first:
        first.run(interrupt=lambda: True)
    resume(first.directory, interrupt=lambda: True)
    with Simulation(first.config, first.directory, resumed=True) as last:
        finish(last).require_same(bench.plain, "resumed after each round and uninterrupted")


def client_states_do_not_leak(bench: Bench) -> str | None:
    """A client's state changes only in its own rounds, and other clients in the cohort have no effect on it."""
    if bench.is_vertical:
        return ALL_PARTIES
    settings: Settings = {"cohort": {"name": "cyclic", "size": 3}, **LOOP}
    history: list[dict[int, str]] = [{}]

    class Remember(Callback):
        def round(self, row: Row) -> None:
            history.append(client_states(simulation))

    with bench.simulation(**settings) as simulation:
        simulation.run([Remember()])
    for round_, (before, after) in enumerate(zip(history, history[1:])):
        cohort = {(3 * round_ + k) % CLIENTS for k in range(3)}
        for client, state in before.items():
            if client not in cohort and after.get(client) != state:
                raise Broken(f"round {round_}: the state of client {client} changed, the cohort was {sorted(cohort)}")
    if not history[1]:
        return "clients keep no state"
    if any(row["exchange"] for row in bench.plain.ledger):
        return "compared between rounds only: within a round of several exchanges, clients learn of each other"
    for client, state in history[1].items():
        alone = bench.run(cohort={"name": "fixed", "clients": [client]}, rounds=1, **LOOP)
        require_equal(alone.states.get(client), state, f"states of client {client} after a round alone and in a cohort")
    return None


def an_asynchronous_server_without_delays_is_a_synchronous_one(bench: Bench) -> str | None:
    """If all clients train at once, take equally long and are waited for, both servers give the same results.

    A strategy that an asynchronous server refuses keeps the law; the remark has the reason.
    """
    if bench.is_vertical:
        return "refused: a vertical federation needs a synchronous server"
    # each client takes two seconds for any work; the declared size serves methods whose updates vary in size
    equal = {"devices": {"name": "identical", "ms_per_sample": 0, "latency_ms": 1000}, "up_bytes": 0}
    all_at_once = {"name": "buffered", "concurrency": CLIENTS, "buffer": CLIENTS}
    try:
        asynchronous = bench.run(system=equal, server=all_at_once)
    except ValueError as error:
        if "an asynchronous server takes strategies" not in str(error):
            raise
        return f"refused: {error}"
    synchronous, how = bench.run(system=equal, cohort={"name": "uniform", "size": CLIENTS}), "both servers"
    require_equal_bits(asynchronous.model, synchronous.model, how)
    require_equal(asynchronous.states, synchronous.states, f"{how}: states of clients")
    return None


def loop_and_batched_training_agree(bench: Bench) -> str:
    """Clients that train one after the other or together end within 1e-4 of each other; the remark lists the plans."""
    loop, agreed = bench.run_once(rounds=1, **LOOP), []
    with bench.simulation(rounds=1, **LOOP) as simulation:
        trial = simulation.run_setup.trial
    plans: tuple[Kind, ...] = ("fused", "compiled", "stacked", "flat", "vmap")
    for plan in plans:
        batched: Settings = {"execution.plan": plan}
        try:
            together = bench.run(rounds=1, **batched)
        except ConfigError as error:
            if "is not possible" not in str(error):
                raise
            if trial and (reason := trial(plan)) and reason in str(error):
                raise Broken(
                    f"{reason}. If it is meant for one client, set one_at_a_time = True in the class"
                ) from None
            continue
        require_close(together.model, loop.model, 1e-4, f"{plan} and loop")
        require_equal(sorted(together.states), sorted(loop.states), f"{plan} and loop: clients with a state")
        agreed.append(plan)
    return ", ".join(agreed) or "trains in the loop only"


def clients_send_the_groups_they_declare(bench: Bench) -> None:
    """The groups in the ledger are those of `sends`; groups of `optional` may be missing."""
    client = bench.config().client
    rows = (row for row in bench.plain.ledger if row["tier"] == "client" and row["direction"] == "up")
    sent = {row["group"] for row in rows}
    require_equal(sent, set(client.sends) - (set(client.optional) - sent), "the groups sent and `sends`")


LAWS: list[Law] = [
    three_rounds_run_and_stay_finite,
    the_server_state_can_be_saved_and_restored,
    the_same_configuration_gives_the_same_bits,
    cohort_order_does_not_matter,
    an_empty_round_changes_nothing,
    evaluation_has_no_effect_on_training,
    worker_and_order_of_tasks_do_not_matter,
    chunk_size_does_not_matter,
    order_of_summation_changes_at_most_1e_6,
    a_resumed_run_gives_the_same_bits,
    client_states_do_not_leak,
    an_asynchronous_server_without_delays_is_a_synchronous_one,
    loop_and_batched_training_agree,
    clients_send_the_groups_they_declare,
]
