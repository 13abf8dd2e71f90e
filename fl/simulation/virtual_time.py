"""Virtual time of synchronous rounds: who is present, who arrives in time, and how long an exchange takes.

Without `system:` no virtual time passes and every client of the cohort takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from fl.communication.transmit import transmit
from fl.execution.dispatch import DispatchResult
from fl.method.messages import Broadcast
from fl.method.requests import Exchange
from fl.simulation.cohort_ahead import CohortAhead
from fl.simulation.downlink import Downlink
from fl.simulation.expected_bytes import encoded_size, expected_upload_bytes
from fl.simulation.secure_exchanges import SecureExchange
from fl.simulation.setup import RunSetup
from fl.simulation.workload import workload_of
from fl.system.round_trip import RoundTrip
from fl.system.synchronous import Synchronous
from fl.tensors.trees import Tree


class VirtualTime:
    """The clock of a run; `now` counts seconds from the run's start."""

    def __init__(self, run_setup: RunSetup):
        self.run_setup, self.system, self.now = run_setup, run_setup.system, 0.0
        self.ahead = CohortAhead(run_setup)

    def sample(self, state: Tree, round_: int, sizes: np.ndarray, seed: int) -> tuple[Tree, np.ndarray, float]:
        """Draw a cohort as soon as enough clients are present.

        Args:
            state: the sampler's state.
            round_: the round, from 0.
            sizes: training samples of each client, (N,).
            seed: seed of the draws.

        Returns:
            the sampler's next state, the cohort, and the virtual time at which it starts.

        Raises:
            ValueError: too few clients are ever present at once.
        """
        sampler = self.run_setup.config.cohort
        if self.system is None or self.system.always or not sampler.among_present:
            return *self.ahead.sample(state, round_, seed, sizes), self.now
        least = sampler.min_present(len(sizes))
        opens = self.system.opens(least, self.now)
        if opens == math.inf:
            raise ValueError(f"availability: fewer than {least} clients are ever present at once after {self.now} s")
        present = self.system.available(opens)
        if sampler.observes:  # it knows clients by their ids
            masked = np.zeros_like(sizes)
            masked[present] = sizes[present]
            return *sampler.sample(state, round_, seed, masked), opens
        state, chosen = sampler.sample(state, round_, seed, sizes[present])
        return state, present[chosen], opens

    def wait(self, until: float) -> Mapping[str, float]:
        """Advance to `until` without work; return the seconds for the round's totals."""
        waited, self.now = max(until - self.now, 0.0), max(until, self.now)
        return {name: waited for name in ("simulated_seconds", "simulated_waiting_seconds")} if waited else {}

    def plan(
        self,
        exchange: Exchange,
        broadcast: Broadcast,
        cohort: np.ndarray,
        round_: int,
        number: int,
        down: np.ndarray,
        downlink: Downlink,
        sizes: np.ndarray,
        state_of: Callable[[int], Tree],
        unlabelled: np.ndarray,
        secure: SecureExchange | None = None,
    ) -> RoundTrip:
        """Plan the cohort's round trip before anybody trains, with a system model.

        Args:
            exchange: the exchange at hand.
            broadcast: its broadcast before the codec.
            cohort: the clients, (n,).
            round_: the round, from 0.
            number: the exchange's number in the run.
            down: encoded bytes of the common groups per client, (n,); each client's own groups are added here.
            downlink: which groups are sent as differences.
            sizes: training samples of the cohort's clients, (n,).
            state_of: client -> its state.
            unlabelled: their training samples without labels, (n,).
            secure: the messages of secure aggregation; None without it.
        """
        assert self.system is not None
        config = self.run_setup.config
        assert isinstance(config.server, Synchronous)
        for position, client in enumerate(cohort) if not broadcast.uniform else ():
            own = broadcast.groups_for(int(client), state_of(int(client)))
            down[position] += sum(encoded_size(transmit(config.down, tree)[1]) for tree in own.values())
        for name in filter(downlink.per_client, broadcast.shared):
            down += encoded_size(transmit(config.down, broadcast.shared[name])[1])
        client, about = config.client, (round_, config.rounds, exchange.work)
        steps, samples = workload_of(client, sizes, unlabelled, *about)
        extra = client.extra_samples(sizes, *about)
        if exchange.samples is not None:
            steps, samples, extra = (np.full_like(sizes, number) for number in (1, exchange.samples, 0))
        masked = None if secure is None else secure.reduction
        up = expected_upload_bytes(config, exchange, masked) if config.server.chooses else 0
        flops, system = self.run_setup.flops_per_sample(cohort), self.system
        if secure is not None:
            system, shares = secure.joining(system)
            down = down + shares
        trip = RoundTrip(config.server, system, self.now, number, cohort, steps, samples, down, flops, extra)
        return trip.uploading(np.full(len(cohort), up))

    def unmask(self, seconds: float) -> Mapping[str, float]:
        """Advance by the seconds of an unmasking; return them for the round's totals. Without a system model: {}."""
        self.now += seconds
        names = ("simulated_seconds", "simulated_unmasking_seconds")
        return {} if self.system is None else dict.fromkeys(names, seconds)

    def finish(self, trip: RoundTrip, participants: np.ndarray, result: DispatchResult) -> RoundTrip:
        """Advance to the end of the exchange; where nobody is left out, by the bytes that were measured."""
        if not trip.schedule.chooses:
            up = np.zeros(len(trip.cohort))
            place = {int(client): i for i, client in enumerate(trip.cohort)}
            at = [place[int(client)] for client in participants]
            for name in result.columns.pieces:
                if name.startswith("up/"):
                    up[at] += result.columns.column(name, len(participants), 0)[:, 1]
            trip = trip.uploading(up)
        assert trip.round is not None
        self.now += trip.round.seconds
        return trip
