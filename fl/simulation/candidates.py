"""The candidates of a sampler that chooses by the loss of the present model (`CohortSampler.choose`).

    model -> codec ~~> candidates: mean loss on their training rows ~~8 bytes~~> server -> sampler -> cohort

The ledger books both ways under the round, as exchange -1. A forward pass takes a third of the time of a gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fl.communication.keys import down_key
from fl.communication.transmit import transmit
from fl.communication.wire import wire_bytes
from fl.method.messages import Broadcast
from fl.simulation.downlink import Place
from fl.simulation.evaluation import clients_per_chunk
from fl.simulation.exchange import EVALUATIONS, ExchangeRunner
from fl.simulation.expected_bytes import encoded_size
from fl.system.round_trip import RoundTrip
from fl.system.synchronous import Synchronous
from fl.tasks.task import pooled
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.simulation.simulation import Simulation

BEFORE_EXCHANGES = -1  # the ledger's exchange
LOSS_BYTES = 8  # one double
FORWARD = 1 / 3  # computation of a forward pass, as a share of forward and backward pass


def choose_cohort(run: Simulation, candidates: np.ndarray) -> np.ndarray:
    """Have the run's sampler choose the cohort from candidates, (d,), by their losses; return the cohort, (n,)."""
    strategy = run.config.strategy
    broadcast = Broadcast.of(strategy.broadcast(run.state, run.context(candidates)))
    with span("evaluate", "candidates"):
        losses = candidate_losses(run.exchanges, broadcast.with_model(strategy.model(run.state)), candidates)
    run.sampler, cohort = run.config.cohort.choose(run.sampler, candidates, losses)
    run.exchanges.set_cohort(cohort)
    return cohort


def candidate_losses(exchanges: ExchangeRunner, broadcast: Broadcast, candidates: np.ndarray) -> np.ndarray:
    """Evaluate the model on the candidates' training rows; book bytes and virtual time.

    Args:
        exchanges: carries out the evaluation.
        broadcast: the model, and the groups that clients receive with it.
        candidates: ids, ascending, (d,).

    Returns:
        the mean loss of each candidate, (d,); NaN for those that dropped out or have no training rows.

    Raises:
        ValueError: the strategy sends each client something else.
    """
    if not broadcast.uniform:
        raise ValueError("cohort: candidates can only evaluate a model that is the same for all clients")
    if not len(candidates):
        return np.empty(0)
    number = Place(exchanges.ledger_round, EVALUATIONS + exchanges.evaluations).number
    statics = {name: static.value for name, static in broadcast.static.items()}
    visible = {name: tree for name, tree in broadcast.shared.items() if name not in broadcast.hidden}
    message = Broadcast({**visible, **statics}, config=broadcast.config)
    decoded, nbytes = _send(exchanges, message, candidates, number)
    counts = exchanges.sizes[candidates]
    result = exchanges.dispatch(
        kind="evaluate",
        work="received",
        number=number,
        cohort=candidates,
        broadcast=decoded,
        reduction=pooled(exchanges.run_setup.periods[exchanges.period].task.metrics()),
        plan=exchanges.run_setup.plan.in_loop("clients share forward passes", clients_per_chunk(np.maximum(counts, 1))),
        split="train",
        original=message if exchanges.executor.remote else None,
    )
    losses = result.columns.metrics(len(candidates))["loss"]
    answered = _pass_time(exchanges, candidates, counts, nbytes, number)
    sent, place = candidates[answered], (exchanges.ledger_round, BEFORE_EXCHANGES)
    exchanges.folder.ledger.record(*place, "up", "loss", sent, LOSS_BYTES, LOSS_BYTES, wire_bytes(LOSS_BYTES, 1))
    return np.where(answered, losses, np.nan)


def _send(
    exchanges: ExchangeRunner, broadcast: Broadcast, candidates: np.ndarray, number: int
) -> tuple[Broadcast, int]:
    """Encode a broadcast of shared groups, book it, and return it as clients see it, and its bytes per client.

    Codecs have no memory of candidates (`delta`, `error_feedback`); static groups are sent in full.
    """
    config, ledger = exchanges.run_setup.config, exchanges.folder.ledger
    received, total = {}, 0
    for name, tree in broadcast.shared.items():
        received[name], sizes = transmit(config.down, tree, key=down_key(config.seed, number, name))
        encoded = encoded_size(sizes)
        wire = wire_bytes(encoded, sizes.arrays, message=not total)
        place = (exchanges.ledger_round, BEFORE_EXCHANGES)
        ledger.record(*place, "down", name, candidates, sizes.payload_bytes, encoded, wire)
        ledger.multicast(exchanges.ledger_round, encoded)
        total += encoded
    return Broadcast(received, config=broadcast.config), total


def _pass_time(
    exchanges: ExchangeRunner, candidates: np.ndarray, counts: np.ndarray, down: int, number: int
) -> np.ndarray:
    """Let virtual time pass until all candidates have answered or dropped out; return who answered, bool (d,)."""
    system = exchanges.time.system
    if system is None:
        return np.ones(len(candidates), bool)
    n, flops = len(candidates), exchanges.run_setup.flops_per_sample(candidates)
    down_bytes, steps = np.full(n, down), np.ones(n, np.int64)
    trip = RoundTrip(
        Synchronous(), system, exchanges.time.now, number, candidates, steps, counts * FORWARD, down_bytes, flops
    ).uploading(np.full(n, LOSS_BYTES))
    exchanges.time.now += trip.timing.seconds
    exchanges.totals.add_simulated({k: v for k, v in trip.metrics().items() if k.startswith("simulated_")})
    return trip.timing.included
