"""The global random generators of `random`, numpy and torch: seed them by an address, and restore them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from fl.tensors.random import hash64

_gpu_seed: int | None = None  # of the GPUs' generators, which exist only once CUDA has started
_registered = False


def seed_all(*address: int | str) -> None:
    """Seed all global generators by an address. Those of GPUs are seeded when CUDA starts, if it has not yet."""
    word = int(hash64(*address))
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    # torch.manual_seed also formats a stack for GPUs that are not in use
    torch.default_generator.manual_seed(word >> 1)
    _seed_gpus(word >> 1)


def _seed_gpus(seed: int | None) -> None:
    global _gpu_seed, _registered
    _gpu_seed = seed
    if torch.cuda.is_initialized():
        _apply_gpu_seed()
    elif torch.backends.cuda.is_built() and not _registered:
        # once: torch's own manual_seed_all would keep one such call for each seed
        _registered = True
        torch.cuda._lazy_call(_apply_gpu_seed)


def _apply_gpu_seed() -> None:
    if _gpu_seed is not None:
        for generator in torch.cuda.default_generators:
            generator.manual_seed(_gpu_seed)


@contextmanager
def seeded(*address: int | str) -> Iterator[None]:
    """Restore the global generators after the block; with an address, seed them before it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_seed, gpus = _gpu_seed, torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    if address:
        seed_all(*address)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        _seed_gpus(gpu_seed)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
