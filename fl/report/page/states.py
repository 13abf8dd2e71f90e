"""What a run has kept: the state of its strategy and the states of its clients. No code of the run is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fl.errors import ConfigError
from fl.storage import checkpoint
from fl.storage.growing import Damaged
from fl.storage.run import last_commit
from fl.storage.segments import Segments

MOST_BYTES = 512 << 20  # a larger state is not read
MOST_CLIENTS = 60  # whose states are read: those with the smallest numbers

Leaf = tuple[str, Any]  # path in the tree, such as "prototypes.values", and a Tensor or an ndarray


def strategy_state(directory: Path) -> Any:
    """The state of the strategy after the last committed round, or after its final work; dataclasses are dicts.

    None if there is none, if it is damaged, or if it is larger than 512 MiB.
    """
    folder = directory / "checkpoints"
    files = [folder / "final.safetensors", *checkpoint.newest_first(folder)]
    files = [file for file in files if file.is_file()]
    if not files or files[0].stat().st_size > MOST_BYTES:
        return None
    try:
        return checkpoint.load(files[0], plain=True).get("state")
    except Damaged:
        return None


def client_states(directory: Path) -> dict[int, Any]:
    """The states of the clients with the smallest numbers, at most 60 and 512 MiB: client -> tree, a dataclass as dict.

    {} if clients keep nothing.
    """
    try:
        record = last_commit(directory)["clients"]
    except (ConfigError, KeyError):
        return {}
    folder = directory / "clients"
    if not record["log"]:
        return {}
    rows = np.fromfile(folder / f"index-{record['generation']}.bin", np.int64, record["log"]["length"] // 8)
    newest = {int(client): location for client, *location in rows.reshape(-1, 4).tolist()}
    segments, found, room = Segments(folder), {}, MOST_BYTES
    try:
        for client in sorted(newest)[:MOST_CLIENTS]:
            room -= newest[client][2]
            if room < 0:
                break
            found[client] = segments.read(newest[client], plain=True)
    except Damaged:
        pass  # what was read so far is shown
    finally:
        segments.close()
    return found


def leaves(tree: Any, path: str = "") -> Iterator[Leaf]:
    """Yield (path, tensor or array) of all tensors of a tree, in its order.

    >>> import torch
    >>> [path for path, _ in leaves({"bases": {"1.weight": torch.ones(2)}, "steps": 3, "rest": (torch.ones(1),)})]
    ['bases.1.weight', 'rest.0']
    """
    if isinstance(tree, (Tensor, np.ndarray)):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from leaves(value, f"{path}.{key}".lstrip("."))


def tables(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (path, keys (K,), values (K, D)) of each `fl.Table` of a tree, such as means by class."""
    if isinstance(tree, Mapping):
        if set(tree) == {"keys", "values", "counts"} and isinstance(tree["values"], Tensor):
            if tree["values"].ndim == 2 and len(tree["values"]):
                yield path, tree["keys"].numpy(), tree["values"].float().numpy()
            return
        for key, value in tree.items():
            yield from tables(value, f"{path}.{key}".lstrip("."))
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            yield from tables(value, f"{path}.{key}".lstrip("."))
