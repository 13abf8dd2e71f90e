"""The global random generators of `random`, numpy and torch: seed them by an address, and restore them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fl.tensors.random import hash64


def seed_all(*address: int | str) -> None:
    """Seed all global generators by an address."""
    word = int(hash64(*address))
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    torch.default_generator.manual_seed(
        word >> 1
    )  # torch.manual_seed also formats a stack for GPUs that are not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word >> 1)


@contextmanager
def seeded(*address: int | str) -> Iterator[None]:
    """Restore the global generators after the block; with an address, seed them before it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    if address:
        seed_all(*address)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
