"""The way down, on the driver: encode what all clients share, and enter the bytes into the ledger.

    broadcast -> error feedback -> codec -> ledger -> the broadcast as clients see it

Groups of one client alone, and differences to what a client last received (`delta`), are encoded by the workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl.communication.chain import find_wrapper
from fl.communication.codec import Identity
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback, Residuals, compression_error
from fl.communication.keys import down_key
from fl.communication.ledger import Ledger
from fl.communication.transmit import Sizes, transmit
from fl.communication.wire import wire_bytes
from fl.execution.finite import is_finite, overflow
from fl.method.messages import Broadcast
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.setup import RunSetup
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Place:
    """Where an exchange stands in a run: the round of its ledger rows, and its index within that round."""

    round: int
    index: int

    @property
    def number(self) -> int:
        """The exchange's number in the run: the `participation` in addresses of randomness."""
        return self.round << 16 | self.index


@dataclass(frozen=True)
class Sent:
    """A broadcast after encoding.

    decoded: the broadcast as clients see it. encoded: the same before the codec, for executors that encode it
    themselves. nbytes: encoded bytes per client of the cohort, (n,).
    """

    decoded: Broadcast
    encoded: Broadcast
    nbytes: np.ndarray


class Downlink:
    """Encodes broadcasts. From round to round it keeps `versions_seen` and `residuals` (see `record`)."""

    def __init__(self, run_setup: RunSetup, ledger: Ledger):
        self.config, self.population, self.ledger = run_setup.config, run_setup.population, ledger
        self.versions_seen: dict[str, np.ndarray] = {}  # static group -> version each client last saw, -1 for none
        self.residuals: dict[str, Residuals] = {}  # compression errors of shared groups, for error feedback
        self.feedback = find_wrapper(self.config.down, ErrorFeedback)
        self.delta = find_wrapper(self.config.down, Delta)

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"versions_seen": self.versions_seen, "residuals": self.residuals}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.versions_seen, self.residuals = record["versions_seen"], record["residuals"]

    def per_client(self, group: str) -> bool:
        """Whether workers encode a shared group as each client's own difference."""
        return self.delta is not None and self.delta.covers(group)

    def common_groups(self, broadcast: Broadcast) -> list[str]:
        """Return the shared groups that are encoded once for all clients."""
        return [name for name in broadcast.shared if name not in broadcast.hidden and not self.per_client(name)]

    def send(self, work: str, broadcast: Broadcast, cohort: np.ndarray, place: Place) -> Sent:
        """Encode the shared and static groups of a broadcast and book their bytes.

        Args:
            work: what the clients do; residuals are kept per work and group.
            broadcast: what the strategy sends.
            cohort: the receiving clients, (n,).
            place: the exchange's place in the run.
        """
        config, common = self.config, set(self.common_groups(broadcast))
        shared, encoded, static, first = {}, {}, {}, True
        nbytes = np.zeros(len(cohort), np.int64)
        for name, tree in broadcast.shared.items():
            shared[name] = encoded[name] = tree
            if name not in common:
                continue
            if self.feedback:
                encoded[name] = self.feedback.add_residuals(tree, self.residuals.get(f"{work}/{name}"))
            shared[name], sizes = transmit(config.down, encoded[name], key=down_key(config.seed, place.number, name))
            self._check_overflow({name: encoded[name]}, {name: shared[name]})
            if self.feedback:
                self.residuals[f"{work}/{name}"] = compression_error(encoded[name], shared[name])
            self._book(place, name, cohort, sizes, first)
            nbytes += encoded_size(sizes)
            first = False
        for name, value in broadcast.static.items():
            key = down_key(config.seed, place.number, name, version=value.version)
            decoded, sizes = transmit(config.down, value.value, key=key)
            self._check_overflow({name: value.value}, {name: decoded})
            static[name] = replace(value, value=decoded)
            seen = self.versions_seen.setdefault(name, np.full(self.population, -1))
            new = seen[cohort] != value.version
            if new.any():
                self._book(place, name, cohort[new], sizes, first)
                nbytes[new] += encoded_size(sizes)
                first = False
            seen[cohort] = value.version
        decoded_broadcast = replace(broadcast, shared=shared, static=static)
        return Sent(decoded_broadcast, replace(broadcast, shared=encoded), nbytes)

    def _check_overflow(self, before: Mapping[str, Tree], after: Mapping[str, Tree]) -> None:
        """Raise a FloatingPointError if the codec made finite numbers of a group infinite or NaN."""
        if not isinstance(self.config.down, Identity) and not is_finite(after):
            cause = overflow(self.config.down, before, after)
            if cause:
                raise FloatingPointError(f"codec.down: {cause}")

    def _book(self, place: Place, group: str, clients: np.ndarray, sizes: Sizes, first: bool) -> None:
        """Enter one group into the ledger; `first`: it opens the clients' message."""
        wire = wire_bytes(sizes.encoded_bytes, sizes.arrays, first)
        rows = (clients, sizes.payload_bytes, sizes.encoded_bytes, wire)
        self.ledger.record(place.round, place.index, "down", group, *rows)
        if len(clients):
            self.ledger.multicast(place.round, encoded_size(sizes))
