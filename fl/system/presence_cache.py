"""Presence of single clients, looked up in blocks and cached."""

from __future__ import annotations

import math

import numpy as np

from fl.system.availability import Presence

CLIENTS = 1 << 7  # clients looked up at once


class PresenceCache:
    """Answers about single clients, kept until the client's next change. A lookup covers `CLIENTS` clients."""

    def __init__(self, presence: Presence, clients: int):
        self.presence = presence
        self.now = np.zeros(clients, bool)
        self.since = np.full(clients, math.inf)
        self.change = np.zeros(clients)

    def at(self, client: int, time: float) -> bool:
        """Return whether the client is present at `time`."""
        self._find(client, time)
        return bool(self.now[client])

    def until(self, client: int, time: float) -> float:
        """Return the time of the client's next change after `time`; infinite if there is none."""
        self._find(client, time)
        return float(self.change[client])

    def _find(self, client: int, time: float) -> None:
        if self.since[client] <= time < self.change[client]:
            return
        block = slice(client // CLIENTS * CLIENTS, client // CLIENTS * CLIENTS + CLIENTS)
        clients = np.arange(block.start, min(block.stop, len(self.now)))
        self.now[block] = self.presence.at(clients, time)
        self.change[block] = self.presence.until(clients, time)
        self.since[block] = time
