"""Noise that is correlated over the rounds: C^-1 z, from addressed draws z and a few buffers.

The noise of a round depends on the draws of all rounds before. `Stream.at(round)` adds to buffers in memory if rounds
come in order, and otherwise repeats the rounds from the first that matters. So the noise is a function of the address
and the round, and a checkpoint needs no buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from fl.privacy.tree import merges, own_weight

Noise: TypeAlias = "list[Tensor]"  # a tensor per leaf of the released value
Draw: TypeAlias = "Callable[[int, int], Noise]"  # (round, number in the round) -> new independent noise


class Stream:
    """The noise of all rounds.

    Args:
        draw: draws independent standard normal noise at an address. It returns new tensors.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.next = 0  # the next round that the buffers are ready for

    def at(self, round_: int) -> Noise:
        """Return the noise of a round; the caller may change it in place."""
        first = self.first(round_)
        if not first <= self.next <= round_:
            self.clear()
            self.next = first
        while True:
            noise = self.step(self.next)
            self.next += 1
            if self.next > round_:
                return noise

    def first(self, round_: int) -> int:
        """Return the first round whose draws the noise of `round_` depends on. Default: round 0."""
        return 0

    def clear(self) -> None:
        """Forget the buffers."""
        raise NotImplementedError

    def step(self, round_: int) -> Noise:
        """Return the noise of the next round, and update the buffers."""
        raise NotImplementedError


class BandedStream(Stream):
    """w_t = z_t - sum_{j=1}^{b-1} c_j w_{t-j}: the rows of C^-1 z for a banded Toeplitz matrix with c_0 = 1.

    Memory: b - 1 buffers of the size of the released value.

    Args:
        draw: draws z_t at (t, 0).
        coefficients: c_0 .. c_{b-1}.
    """

    def __init__(self, draw: Draw, coefficients: Sequence[float]) -> None:
        super().__init__(draw)
        self.coefficients = [float(c) for c in coefficients]
        self.past: deque[Noise] = deque(maxlen=len(self.coefficients) - 1)  # w_{t-1} first

    def clear(self) -> None:
        self.past.clear()

    def step(self, round_: int) -> Noise:
        noise = self.draw(round_, 0)
        for c, past in zip(self.coefficients[1:], self.past):
            for mine, theirs in zip(noise, past):
                mine.add_(theirs, alpha=-c)
        if self.past.maxlen:
            self.past.appendleft([tensor.clone() for tensor in noise])
        return noise


class TreeStream(Stream):
    """The increments of the noise of the prefix sums of a binary tree.

    Memory: one buffer per level, at most log2(n) + 1.

    Args:
        draw: draws the noise of the node of level l that round t completes, at (t, l).
        restart: rounds of a tree; None never restarts.
        honaker: combine each node with its children, for less variance.
    """

    def __init__(self, draw: Draw, restart: int | None = None, honaker: bool = True) -> None:
        super().__init__(draw)
        self.restart, self.honaker = restart, honaker
        self.stack: list[Noise] = []  # estimates of the nodes of the present prefix sum, largest first

    def first(self, round_: int) -> int:
        return 0 if self.restart is None else round_ - round_ % self.restart

    def clear(self) -> None:
        self.stack.clear()

    def step(self, round_: int) -> Noise:
        leaf = round_ - self.first(round_)
        if leaf == 0:
            self.clear()
        estimate = self.draw(round_, 0)
        total = [tensor.clone() for tensor in estimate]
        for level in range(1, merges(leaf) + 1):
            left, own = self.stack.pop(), self.draw(round_, level)
            weight = own_weight(level) if self.honaker else 1.0
            for i, (x, y, z) in enumerate(zip(left, estimate, own)):
                children = x + y
                estimate[i] = z.mul_(weight).add_(children, alpha=1 - weight)
                total[i].add_(estimate[i]).sub_(children)
        self.stack.append(estimate)
        return total
