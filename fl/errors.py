"""The errors that users meet.

ValueError
  ConfigError      a mistake in a configuration or a command: exit code 2
    UnknownName    a name that no registered part has
RuntimeError
  ClientError      a client's work failed: which client, round and stage
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy takes a tenth of a second, and `fl --help` needs this module
    import numpy as np


class ConfigError(ValueError):
    """A mistake in a configuration.

    Args:
        path: dotted path of the key, "" if it is about the whole.
        message: what is wrong, what is allowed, and the way out.
    """

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class UnknownName(ValueError):
    """A name that no registered part has."""


class ClientError(RuntimeError):
    """A client's work or an evaluation failed.

    Args:
        clients: ids of the clients that were handled together, (n,), or in words which data was evaluated.
        round_: the round, from 0.
        stage: what they were doing: broadcast, train, encode, reduce, evaluate, ...
        detail: the original error and its traceback.
    """

    def __init__(self, clients: np.ndarray | str, round_: int, stage: str, detail: str):
        if isinstance(clients, str):
            who = clients
        else:
            who = f"client {clients[0]}" if len(clients) == 1 else f"one of the clients {list(map(int, clients))}"
        super().__init__(f"{who}, round {round_}, stage {stage!r}: {detail}")
        self.arguments = (clients, round_, stage, detail)

    def __reduce__(self) -> tuple[type[ClientError], tuple[np.ndarray | str, int, str, str]]:
        return ClientError, self.arguments
