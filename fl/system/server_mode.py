"""Base of the parts that decide when the server takes a step (config `server:`)."""

from __future__ import annotations


class ServerMode:
    """Base of server modes: frozen dataclasses of their hyper-parameters."""

    @property
    def chooses(self) -> bool:
        """Whether durations decide which updates are used."""
        return True
