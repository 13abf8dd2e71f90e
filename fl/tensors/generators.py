"""The global random generators of torch, NumPy and Python, from which modules and users' code may draw."""

from __future__ import annotations

import contextlib
import ctypes
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


class GeneratorWatch:
    """Tells whether a global generator has moved: torch's, NumPy's or Python's."""

    def __init__(self) -> None:
        self.last = self._states()

    def since_last(self) -> bool:
        """Whether a generator has moved since the last call, or since the beginning."""
        before, self.last = self.last, self._states()
        return before != self.last

    @staticmethod
    def _states() -> tuple[bytes, bytes, Any]:
        numpy_state = np.random.mtrand.get_bit_generator().ctypes.state_address  # 1 us; get_state: 36
        return (
            torch.default_generator.get_state().numpy().tobytes(),
            ctypes.string_at(numpy_state, _MT19937_BYTES),
            random.getstate(),
        )


_MT19937_BYTES = 624 * 4 + 4  # key and position


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the states of torch's, NumPy's and Python's global generators at the end."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextlib.contextmanager
def seeded_generators(word: int) -> Iterator[None]:
    """Seed the global generators, see `seed_generators`, and restore their states at the end."""
    with preserved_generators():
        seed_generators(word)
        yield


def seed_generators(word: int, cuda: bool = False) -> None:
    """Seed torch's, NumPy's and Python's global generators with a word of 64 bits, in 8 microseconds.

    Args:
        word: an addressed random word.
        cuda: seed the generator of the current GPU, too.
    """
    torch.default_generator.manual_seed(word >> 1)
    if cuda:
        torch.cuda.manual_seed(word >> 1)
    np.random.seed(word & 0xFFFFFFFF)
    random.seed(word)
