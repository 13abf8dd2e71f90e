"""Exchanges with secure aggregation, on the driver's side.

    keys, shares -> broadcast, training, masked words (SecureSum) -> who is in the sum -> unmasking -> value

With `system:` the messages take time. The key exchange comes before the download: the server waits for the keys of all
clients, then for their shares. The unmasking comes after the last masked vector that is used.

    key exchange = max_i (latency + keys_up / up_rate) + max_i (2 latency + keys_down / down_rate + shares_up / up_rate)
    unmasking    = max_i (2 latency + unmasking_down / down_rate + unmasking_up / up_rate)

A client that breaks off during the key exchange is no one's neighbour. Later drop-outs leave masks behind.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fl.communication.wire import wire_bytes
from fl.errors import ConfigError, located
from fl.execution.dispatch import DispatchResult
from fl.method.messages import Broadcast
from fl.method.reduction import Product, Reduction, WeightedMean
from fl.method.requests import Exchange
from fl.privacy.clipping import sensitivity
from fl.privacy.distributed_discrete_gaussian import SLACK, DistributedDiscreteGaussian, concentrated_epsilon
from fl.privacy.private_sum import PrivateSum
from fl.privacy.secure.keys import derived
from fl.privacy.secure.messages import KEYS, SHARES, UNMASKING
from fl.privacy.secure.quantiser import Quantiser, clip_of
from fl.privacy.secure.section import SecureAggregation
from fl.privacy.secure.secure_sum import ClientNoise, SecureSum
from fl.privacy.secure.session import Session, root_of
from fl.privacy.secure.summands import Summable, private_bounds, refusal, shrinkage
from fl.privacy.secure.vectors import obstacle, vectors_of
from fl.simulation.setup import RunSetup
from fl.storage.run import RunDirectory
from fl.system.round_trip import RoundTrip
from fl.system.simulated_system import SimulatedSystem
from fl.tensors import random
from fl.tensors.trees import Tree

log = logging.getLogger(__name__)


class SecureExchanges:
    """What the exchanges of a run with secure aggregation have in common.

    Attributes:
        section: the configuration.
        largest_cohort: largest cohort that the sampler draws.
    """

    def __init__(self, run_setup: RunSetup, section: SecureAggregation):
        self.run_setup, self.section = run_setup, section
        self.largest_cohort = run_setup.config.cohort.largest(run_setup.trainable)

    @classmethod
    def of(cls, run_setup: RunSetup) -> SecureExchanges | None:
        """Return what a run with `secure_aggregation:` needs; None for another run."""
        section = run_setup.config.secure_aggregation
        return None if section is None else cls(run_setup, section)

    def quantiser(self, reduction: Summable, exchange: Exchange, cohort: int) -> tuple[Quantiser, int]:
        """Return the quantiser of an exchange, and the number of counters of its reduction.

        A private sum is clipped already, and its weights are at most 1.

        Raises:
            ConfigError: secure aggregation cannot carry out the reduction, a group has no clip range, or the modulus
                is too small.
        """
        if isinstance(reduction, PrivateSum):
            bounds = private_bounds(reduction, known_groups(self.run_setup, exchange))
            noise_std, bound = self.noise_std(), sensitivity(bounds, reduction.norm)
            # with noise of the clients the sum opens without counters, which have no noise
            return self._fitting(cohort, 1, bound, noise_std), 0 if noise_std else len(bounds)
        reductions = reduction.parts
        reason = refusal(reductions)
        if reason:
            raise ConfigError(
                "secure_aggregation",
                f"{reason}; use a strategy that reduces with WeightedMean or Sum, or leave secure_aggregation out",
            )
        uniform = all(getattr(part, "weights", "uniform") == "uniform" for part in reductions.values())
        sizes = [self.run_setup.sizes(period).max(initial=1) for period in range(len(self.run_setup.periods))]
        weight = 1 if uniform else self.section.largest_weight or int(max(sizes))
        if not uniform and weight < max(sizes):
            raise ConfigError(
                "secure_aggregation.largest_weight",
                f"{weight} is less than the {max(sizes)} training samples of the largest client; use at least as many",
            )
        try:
            for group in reductions:
                clip_of(self.section.clip, group)
        except ValueError as error:
            raise located("secure_aggregation", error) from error
        means = sum(isinstance(part, WeightedMean) for part in reductions.values())
        return self._fitting(cohort, weight, self.section.clip), means

    def _fitting(
        self, cohort: int, weight: int, clip: float | Mapping[str, float], noise_std: float = 0.0
    ) -> Quantiser:
        try:
            return self.section.quantiser(max(cohort, self.largest_cohort), weight, clip, noise_std)
        except ValueError as error:
            raise located("secure_aggregation", error) from error

    @property
    def least(self) -> int:
        """Fewest clients in a sum that may be opened."""
        plan = self.run_setup.privacy
        mechanism = None if plan is None else plan.section.mechanism
        return mechanism.least(plan.expected) if plan and isinstance(mechanism, DistributedDiscreteGaussian) else 1

    def noise_std(self) -> float:
        """Return the standard deviation of the noise that each client adds to its integers; 0 if it adds none."""
        plan = self.run_setup.privacy
        if plan is None or not plan.section.mechanism.distributed:
            return 0.0
        return plan.noise_multiplier * ((1 << (self.section.bits - 1)) - 1) / math.sqrt(self.least)

    def _check_noise(self, count: int) -> None:
        """Check that the sum of the clients' discrete noise is close enough to one discrete normal number."""
        std, levels = self.noise_std(), (1 << (self.section.bits - 1)) - 1
        if not std:
            return
        found = concentrated_epsilon(levels, std, self.least, self.largest_cohort, count)
        allowed = levels / (std * math.sqrt(self.least) * (1 - SLACK))
        if found > allowed:
            raise ConfigError(
                "secure_aggregation.bits",
                f"a client's noise has a standard deviation of {std:.3g} steps, which is too coarse for "
                f"{count} elements; take more bits",
            )

    def check(self, exchange: Exchange) -> None:
        """Check before round 0 that an exchange can be carried out.

        Raises:
            ConfigError: it cannot.
        """
        cohort = 0 if exchange.cohort is None else len(exchange.cohort)
        if max(cohort, self.largest_cohort) < 2:
            raise ConfigError(
                "cohort", "the sum of one client is its update; secure_aggregation needs 2 clients or more"
            )
        privacy, reduction = self.run_setup.config.privacy, Product(exchange.reductions)
        private = (
            None
            if privacy is None or privacy.unit != "client"
            else PrivateSum(exchange.reductions, privacy.clipping, privacy.clipping.init(), privacy.mechanism.norm)
        )
        quantiser, _ = self.quantiser(private or reduction, exchange, cohort)
        if private is not None:
            forms = known_groups(self.run_setup, exchange)
            count = sum(vector.numel() for tree in forms.values() for vector in vectors_of(tree))
            try:
                shrinkage(private, count, quantiser.levels)
            except ValueError as error:
                raise located("secure_aggregation", error) from error
            self._check_noise(count)
        try:
            self.section.protocol.check(max(cohort, self.largest_cohort))
        except ValueError as error:
            raise located("secure_aggregation.protocol", error) from error

    def begin(self, exchange: Exchange, reduction: Reduction, cohort: np.ndarray, number: int) -> SecureExchange:
        """Begin an exchange of a cohort, (n,), with a reduction; `number` is its number in the run."""
        assert isinstance(reduction, (Product, PrivateSum))
        return SecureExchange(self, exchange, reduction, cohort, number)


class SecureExchange:
    """One exchange. Arrays are in the order of `session.clients`, ids ascending.

    Attributes:
        session: keys, shares and unmasking; of the whole cohort until `join` has been called.
        reduction: the reduction of the exchange.
        clipped: share of the elements that were clipped; None before `opened` or if the sum was not opened.
        missing: number of clients whose masks had to be removed.
        aborted: why the sum could not be opened; "" if it could.
    """

    def __init__(self, run: SecureExchanges, exchange: Exchange, reduction: Summable, cohort: np.ndarray, number: int):
        config, section = run.run_setup.config, run.section
        self.run, self.number, self.cohort, self.seed = run, number, cohort, config.seed
        self.system = run.run_setup.system
        self.quantiser, counters = run.quantiser(reduction, exchange, len(cohort))
        root = root_of(config.seed, number, section.seeds) if section.masks else None
        graph_seed = int(random.hash64(config.seed, number, "secure/graph"))
        clients = np.sort(cohort)
        self.session = Session(section.protocol, clients, len(cohort), self.quantiser.width, root, graph_seed)
        plain = SecureSum(reduction, self.quantiser, config.seed, number, counters, config.up)
        if run.noise_std():
            plan = run.run_setup.privacy
            assert plan is not None
            noise_root = derived(root_of(config.seed, number, plan.section.seeds), "noise", size=32)
            plain = replace(plain, noise=ClientNoise(run.noise_std(), noise_root))
        self.reduction, self.joined = plain, np.ones(len(clients), bool)
        self.included = self.answering = np.zeros(len(clients), bool)
        self.clipped: float | None = None
        self.missing, self.aborted = 0, ""

    # -- before the training -------------------------------------------------------------------------------------------
    def joining(self, system: SimulatedSystem) -> tuple[SimulatedSystem, np.ndarray]:
        """Return (the system in which downloads wait for the key exchange, bytes of shares down in cohort order)."""
        sizes, clients, devices = self.session.sizes, self.session.clients, system.devices
        latency, up = devices.latency_seconds[clients], devices.up_bytes_per_second[clients]
        down = devices.down_bytes_per_second[clients]
        keys = (latency + sizes.keys_up / up).max(initial=0.0)
        shares = (2 * latency + sizes.keys_down / down + sizes.shares_up / up).max(initial=0.0)
        places = np.searchsorted(clients, self.cohort)
        return replace(system, handshake_seconds=float(keys + shares)), sizes.shares_down[places]

    def join(self, trip: RoundTrip | None) -> SecureSum:
        """Take over who exchanged keys, and return the reduction with their masks."""
        if trip is not None:
            stayed = trip.timing.included | (trip.timing.spent >= trip.world.handshake_seconds)
            clients = np.sort(trip.cohort[stayed])
            if len(clients) < len(self.session.clients):
                self.session = replace(self.session, clients=clients)
        self.reduction = replace(self.reduction, masking=self.session.masking)
        return self.reduction

    # -- after the training --------------------------------------------------------------------------------------------
    def opened(self, result: DispatchResult, participants: np.ndarray) -> DispatchResult:
        """Unmask the sum of a dispatch. If too few clients answer, the result is that of an exchange without answers.

        Args:
            result: its value is the masked sum; its columns are in the order of `participants`.
            participants: the clients that trained, (n,).
        """
        n, session = len(participants), self.session
        survivors = participants[~result.columns.column("dropped", n, False)]
        self.included = np.isin(session.clients, survivors)
        self.answering = self.included & self._stays()
        if result.value is None:
            return result
        self.missing = int((~self.included).sum())
        self.aborted = session.too_few(self.included, self.answering)
        found = int(self.included.sum())
        if not self.aborted and found < self.run.least:
            self.aborted = f"the sum has the noise of {found} clients, and {self.run.least} are needed"
        if self.aborted:
            log.warning("secure aggregation: the round changes nothing: %s", self.aborted)
            result.columns.add(np.arange(n), {"dropped": np.ones(n, bool)})
            errors = [*result.errors, f"secure aggregation: {self.aborted}"]
            return replace(result, value=None, errors=errors)
        words = result.value.words.numpy()
        total = session.unmask(words.view(f"u{words.itemsize}"), self.included, self.answering)
        value, self.clipped = self.reduction.opened(total, result.value.form, int(self.included.sum()))
        return replace(result, value=value)

    def _stays(self) -> np.ndarray:
        """Return whether each client does not break off in the unmasking, bool (n,)."""
        if self.system is None or not self.system.dropout:
            return np.ones(len(self.session.clients), bool)
        draws = random.uniform(self.system.seed, "dropout", "unmasking", self.session.clients, self.number)
        return draws >= self.system.dropout

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics that add up over the exchanges of a round."""
        return {"secure/missing": self.missing, "secure/aborted": int(bool(self.aborted))}

    def unmasking_seconds(self) -> float:
        """Return the virtual seconds of the unmasking."""
        if self.system is None:
            return 0.0
        who, devices = self.answering, self.system.devices
        clients, sizes = self.session.clients[who], self.session.sizes
        seconds = 2 * devices.latency_seconds[clients]
        seconds = seconds + sizes.unmasking_down[who] / devices.down_bytes_per_second[clients]
        seconds = seconds + sizes.unmasking_up[who] / devices.up_bytes_per_second[clients]
        return float(seconds.max(initial=0.0))

    def book(self, folder: RunDirectory, ledger_round: int, exchange: int) -> None:
        """Enter the bytes of keys, shares and unmasking. Clients that broke off in the key exchange are left out."""
        sizes, everybody = self.session.sizes, np.ones(len(self.session.clients), bool)
        for group, direction, who, nbytes in (
            (KEYS, "up", everybody, sizes.keys_up),
            (KEYS, "down", everybody, sizes.keys_down),
            (SHARES, "up", everybody, sizes.shares_up),
            (SHARES, "down", everybody, sizes.shares_down),
            (UNMASKING, "down", self.included, sizes.unmasking_down),
            (UNMASKING, "up", self.answering, sizes.unmasking_up),
        ):
            own = nbytes[who]
            rows = (self.session.clients[who], own, own, wire_bytes(own, 1))
            folder.ledger.record(ledger_round, exchange, direction, group, *rows)
            if direction == "down":
                folder.ledger.multicast(ledger_round, int(own.sum()))


def averaged(examples: np.ndarray) -> np.ndarray:
    """Return what the server knows of numbers of samples, (n,): their mean in place of each.

    >>> averaged(np.array([10, 30]))
    array([20., 20.])
    """
    return np.full(len(examples), examples.mean() if len(examples) else 0.0)


def check_secure(run_setup: RunSetup, request: object) -> None:
    """Check that the first request of a round can be carried out with secure aggregation. Other runs pass.

    Raises:
        ConfigError: it cannot.
    """
    secure = SecureExchanges.of(run_setup)
    if secure is None or not isinstance(request, Exchange):
        return
    secure.check(request)
    for group, tree in known_groups(run_setup, request, may_lack=True).items():
        if reason := obstacle(tree):
            raise ConfigError(
                "secure_aggregation",
                f"it adds dense floating tensors, and the group {group!r} {reason}; leave secure_aggregation out",
            )


def known_groups(run_setup: RunSetup, exchange: Exchange, may_lack: bool = False) -> dict[str, Tree]:
    """Return group of the update -> the group that clients receive in the same form.

    Raises:
        ConfigError: clients receive no such group, unless `may_lack`.
    """
    broadcast, found = Broadcast.of(exchange.broadcast), {}
    known = {**broadcast.shared, **{name: static.value for name, static in broadcast.static.items()}}
    for group in exchange.reductions:
        received = known.get(run_setup.config.client.delta_reference.get(group, group))
        if received is not None:
            found[group] = received
        elif not may_lack:
            raise ConfigError(
                "secure_aggregation",
                f"with privacy the form of the group {group!r} must be known before clients have trained, and they "
                "receive no group of this form; leave privacy or secure_aggregation out",
            )
    return found
