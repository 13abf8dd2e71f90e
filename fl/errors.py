"""The errors that users meet.

ValueError
  ConfigError      a mistake in a configuration or a command: exit code 2
  UnknownName      no registered part has this name
RuntimeError
  ClientError      a client's work failed: which client, round and stage
  MachineError     the machine failed: no space left, a lost or damaged file of the run
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing numpy takes 0.1 s, and `fl --help` needs this module
    import numpy as np


class ConfigError(ValueError):
    """A mistake in a configuration.

    Args:
        path: dotted path of the key; "" if the error concerns the whole configuration.
        message: what is wrong, which values are allowed, and how to repair it.
    """

    def __init__(self, path: str, message: str):
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class UnknownName(ValueError):
    """No registered part has this name."""


class ClientError(RuntimeError):
    """A client's work or an evaluation failed.

    Args:
        clients: ids of the clients that were handled together, (n,), or in words which data was evaluated.
        round_: the round, counted from 0.
        stage: the step that failed: broadcast, train, encode, reduce, evaluate, ...
        detail: the original error and its traceback.
        user: where the error lies in a user's own file, in lines; "" if it lies elsewhere.
    """

    def __init__(self, clients: np.ndarray | str, round_: int, stage: str, detail: str, user: str = ""):
        if isinstance(clients, str):
            who = clients
        else:
            who = f"client {clients[0]}" if len(clients) == 1 else f"one of the clients {list(map(int, clients))}"
        super().__init__(f"{who}, round {round_}, stage {stage!r}: {detail}")
        self.arguments = (clients, round_, stage, detail, user)
        self.place, self.user = f"{who}, round {round_}, stage {stage!r}", user

    def __reduce__(self) -> tuple[type[ClientError], tuple[np.ndarray | str, int, str, str, str]]:
        return ClientError, self.arguments


class MachineError(RuntimeError):
    """The machine failed and no client is at fault, so the run stops also with `execution.on_client_error: drop`.

    Causes: no space left on the disk, or a file of the run that is lost or damaged.
    """


def dotted(path: str, key: object) -> str:
    """The path of a key below `path`.

    >>> dotted("client", "lr"), dotted("", "rounds")
    ('client.lr', 'rounds')
    """
    return f"{path}.{key}" if path else str(key)


def located(path: str, error: Exception) -> ConfigError:
    """A part's error as a `ConfigError` at `path`. An error that reads `key: message` concerns the key `path.key`.

    >>> str(located("client", ValueError("lr: -1 is negative")))
    'client.lr: -1 is negative'
    """
    key, colon, rest = str(error).partition(": ")
    if not colon or not key.isidentifier():
        return ConfigError(path, str(error))
    return ConfigError(path if key == path else dotted(path, key), rest)


def did_you_mean(value: object, allowed: Iterable[object]) -> str:
    """A sentence that suggests the allowed string closest to `value`; "" if none is close.

    >>> did_you_mean("epoch", ["epochs", "lr"])
    " Did you mean 'epochs'?"
    """
    close = difflib.get_close_matches(str(value), [a for a in allowed if isinstance(a, str)], 1)
    return f" Did you mean {close[0]!r}?" if close else ""
