"""Few-shot tasks with handwritten characters: each client distinguishes `ways` characters of one alphabet.

    client c   a random alphabet; `ways` random characters of it with labels 0..ways-1 as drawn; 20 drawings each

Omniglot: Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050. The file omniglot/omniglot28.npz of the data
folder has `x` (N, 28, 28) uint8, `alphabet`, `character` (N,) and `evaluation` (N,) bool. The last `held_out` clients
have characters of the evaluation alphabets, the others of the background alphabets. If splits.clients equals
`held_out`, no client trains on a character that is tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.checks import at_least
from fl.data.archives import read_npz
from fl.data.dataset import Dataset, Loader
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random


def draw_tasks(alphabets: Mapping[int, np.ndarray], ways: int, clients: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw the characters of each client's task, (len(clients), ways), in the order of their labels.

    A task depends on (seed, client) only. Alphabets with fewer than `ways` characters are left out.

    Args:
        alphabets: Characters of each alphabet.
        ways: Number of characters per task.
        clients: Ids of the clients.
        seed: Seed of the draw.
    """
    large = [characters for _, characters in sorted(alphabets.items()) if len(characters) >= ways]
    if not large:
        raise ValueError(f"ways: {ways} is more than the largest alphabet has, {max(map(len, alphabets.values()))}")
    tasks = np.empty((len(clients), ways), np.int64)
    for row, client in enumerate(clients):
        characters = large[int(random.uniform(seed, "alphabet", int(client)) * len(large))]
        tasks[row] = characters[random.permutation(len(characters), seed, "characters", int(client))[:ways]]
    return tasks


@register("data", "omniglot_tasks")
@dataclass(frozen=True, kw_only=True)
class OmniglotTasks(Loader):
    """Few-shot tasks of Omniglot, one per client. Samples are 1 x side x side in [0, 1]; ink is 1.

    Args:
        clients: Number of clients.
        held_out: The last `held_out` clients get evaluation alphabets; fewer than `clients`.
        ways: Number of characters per task; at least 2.
        side: Height and width in pixels. 14 and 7 are means over blocks of the original 28.
        seed: Seed of the tasks.
    """

    clients: int = 300
    held_out: int = 50
    ways: int = 5
    side: Literal[28, 14, 7] = 28
    seed: int = 0

    def load(self) -> Dataset:
        if not 0 <= self.held_out < self.clients:
            raise ValueError(f"held_out: {self.held_out} is not in 0..{self.clients - 1}")
        at_least(2, ways=self.ways)
        names = ("x", "alphabet", "character", "evaluation")
        x, alphabet, character, evaluation = read_npz(find("omniglot", "omniglot28.npz"), *names, key="data").values()
        ids = np.arange(self.clients)
        tasks = []
        for part, clients in (
            (~evaluation, ids[: self.clients - self.held_out]),
            (evaluation, ids[len(ids) - self.held_out :]),
        ):
            alphabets = {a: np.unique(character[part & (alphabet == a)]) for a in np.unique(alphabet[part])}
            tasks.append(draw_tasks(alphabets, self.ways, clients, self.seed))
        characters = np.concatenate(tasks).reshape(-1)
        order = np.argsort(character, kind="stable")
        starts = np.searchsorted(character[order], characters)
        counts = np.searchsorted(character[order], characters, side="right") - starts
        rows = order[np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())]
        block = 28 // self.side
        images = x[rows].reshape(-1, self.side, block, self.side, block).mean((2, 4), dtype=np.float32) / np.float32(
            255
        )
        labels = np.repeat(np.tile(np.arange(self.ways), self.clients), counts)
        owners = np.repeat(np.repeat(ids, self.ways), counts)
        return Dataset({"x": images[:, None], "y": labels}, clients=owners)
