"""The way down, on the driver: encode what all clients share, and enter the bytes into the ledger.

    broadcast -> error feedback -> codec -> ledger -> the broadcast as clients see it

Groups of one client alone, and differences to what a client last received (`delta`), are encoded by the workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback, Residuals, compression_error
from fl.communication.codecs.identity import Identity
from fl.communication.keys import Key, down_key
from fl.communication.ledger import Ledger
from fl.communication.transmit import Sizes, transmit
from fl.communication.wire import wire_bytes
from fl.execution.finite import is_finite, overflow
from fl.method.messages import Broadcast, Static
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.setup import RunSetup
from fl.simulation.static_groups import StaticGroups
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
    """Encodes broadcasts. From round to round it keeps `static` and `residuals` (see `record`)."""

    def __init__(self, run_setup: RunSetup, ledger: Ledger):
        self.config, self.ledger = run_setup.config, ledger
        self.static = StaticGroups(run_setup, self._send)
        self.residuals: dict[str, Residuals] = {}  # compression errors of shared groups, for error feedback
        self.feedback = find_wrapper(self.config.down, ErrorFeedback)
        self.delta = find_wrapper(self.config.down, Delta)

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {**self.static.record(), "residuals": self.residuals}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.static.restore(record)
        self.residuals = record["residuals"]

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
        shared, encoded, deliveries, first = {}, {}, {}, True
        nbytes = np.zeros(len(cohort), np.int64)
        for name, tree in broadcast.shared.items():
            shared[name] = encoded[name] = tree
            if name not in common:
                continue
            if self.feedback:
                encoded[name] = self.feedback.add_residuals(tree, self.residuals.get(f"{work}/{name}"))
            key = down_key(config.seed, place.number, name) if config.down.draws else 0
            shared[name], sizes = self._send(name, encoded[name], key)
            if self.feedback:
                self.residuals[f"{work}/{name}"] = compression_error(encoded[name], shared[name])
            nbytes += self._book(place, name, cohort, [sizes], first)
            if len(cohort):
                self.ledger.multicast(place.round, encoded_size(sizes))
            first = False
        for name, static in broadcast.static.items():
            deliveries[name] = delivery = self.static.send(name, static, cohort)
            for receives, pieces in delivery.due:
                nbytes[receives] += self._book(place, name, cohort[receives], pieces, first)
            for sizes in delivery.sizes:
                self.ledger.multicast(place.round, encoded_size(sizes))
            first = first and not delivery.due
        return Sent(
            _changed(broadcast, shared, {name: d.decoded for name, d in deliveries.items()}),
            _changed(broadcast, encoded, {name: d.encoded for name, d in deliveries.items()}),
            nbytes,
        )

    def send_free(self, work: str, broadcast: Broadcast, place: Place) -> Broadcast:
        """Return the broadcast of an evaluation as clients see it. No bytes are booked, and no residuals change.

        Static groups are whole and exact, and clients do not keep them.
        """
        shared = dict(broadcast.shared)
        for name in self.common_groups(broadcast):
            tree = shared[name]
            if self.feedback:
                tree = self.feedback.add_residuals(tree, self.residuals.get(f"{work}/{name}"))
            shared[name] = self._send(name, tree, down_key(self.config.seed, place.number, name))[0]
        return replace(broadcast, shared=shared)

    def _send(self, group: str, tree: Tree, key: Key) -> tuple[Tree, Sizes]:
        """Send a group through the codec.

        Raises:
            FloatingPointError: the codec made finite numbers infinite or NaN.
        """
        codec = self.config.down
        decoded, sizes = transmit(codec, tree, key=key)
        if not isinstance(codec, Identity) and not is_finite(decoded):
            cause = overflow(codec, {group: tree}, {group: decoded})
            if cause:
                raise FloatingPointError(f"codec.down: {cause}")
        return decoded, sizes

    def _book(self, place: Place, group: str, clients: np.ndarray, pieces: Sequence[Sizes], first: bool) -> int:
        """Enter the pieces of one group into the ledger, and return their encoded bytes.

        `first`: the group opens the clients' message.
        """
        payload, encoded = sum(sizes.payload_bytes for sizes in pieces), sum(map(encoded_size, pieces))
        wire = sum(wire_bytes(encoded_size(sizes), sizes.arrays, first and not i) for i, sizes in enumerate(pieces))
        self.ledger.record(place.round, place.index, "down", group, clients, payload, encoded, wire)
        return encoded


def _changed(broadcast: Broadcast, shared: Mapping[str, Tree], static: Mapping[str, Static]) -> Broadcast:
    """Return the broadcast with other groups; itself if they are the same."""
    if not static and all(tree is broadcast.shared[name] for name, tree in shared.items()):
        return broadcast
    return replace(broadcast, shared=shared, static=static)
