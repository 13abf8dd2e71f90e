"""Adversaries: clients that send other updates than they trained.

    cohort trains -> honest updates decoded ~~> attack(honest, own) -> transforms -> codec ~~> reduction

An attack sees blocks of columns, (clients, block), so memory stays flat. One call writes the updates of all attackers
of an exchange, so they may collude. What they write goes the way of every update and is booked like one.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl.checks import not_negative, one_of, within
from fl.registry import register
from fl.tensors import random


@dataclass(frozen=True)
class AttackContext:
    """What attackers know besides the updates. Clients are in the order of the rows.

    Attributes:
        seed: seed of the run.
        round: the round, from 0.
        participation: number of the exchange in the run; part of the address of random draws.
        work: what the clients do in the exchange, such as "train".
        group: group of the update, such as "model".
        tensor: index of the group's tensor, from 0. A group of parameters of one dtype is one tensor.
        first: column of the tensor at which the block begins.
        honest_clients: ids of the honest clients whose updates arrived, ascending, (K,).
        honest_examples: their numbers of training samples, (K,).
        clients: ids of the attackers, ascending, (A,).
        num_examples: their numbers of training samples, (A,).
        received: the block of the group that the server sent; None if it sent no group of this form.
    """

    seed: int
    round: int
    participation: int
    work: str
    group: str
    tensor: int
    first: int
    honest_clients: np.ndarray
    honest_examples: np.ndarray
    clients: np.ndarray
    num_examples: np.ndarray
    received: Tensor | None = None

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return one random stream of this block and purpose for each attacker."""
        address = self.participation, purpose, self.group, self.tensor, self.first
        return [random.torch_generator(self.seed, int(client), *address) for client in self.clients]


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Base of adversaries. Subclasses are frozen dataclasses that define `attack`.

    Args:
        clients: ids of the attackers, from 0. Give one of `clients` and `share`.
        share: share of the clients that attack, in (0, 1], rounded; drawn once per run.
        groups: groups of the update to attack. None: all groups that have floating-point tensors of equal shapes.
    """

    clients: tuple[int, ...] | None = None
    share: float | None = None
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.clients is None) == (self.share is None):
            raise ValueError(f"clients: {self.clients} and share: {self.share}: give one of the two")
        within("(0, 1]", share=self.share)

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        """Return the attackers' updates, (A, block), of the dtype of `own`.

        Args:
            honest: decoded updates of the honest clients, (K, block); K may be 0.
            own: what the attackers trained themselves, (A, block), A at least 1.
            ctx: clients, place and random streams.
        """
        raise NotImplementedError

    def check(self, population: int) -> None:
        """Check that the attackers are among a number of clients.

        Raises:
            ValueError: they are not.
        """
        wrong = [client for client in self.clients or () if not 0 <= client < population]
        if wrong:
            raise ValueError(f"clients: {wrong} are not all in 0..{population - 1}")

    def attackers(self, seed: int, population: int) -> np.ndarray:
        """Return whether each client attacks, bool (N,)."""
        chosen = np.zeros(population, bool)
        if self.share is None:
            chosen[np.array(self.clients, np.int64)] = True
        else:
            chosen[random.permutation(population, seed, "adversary")[: round(self.share * population)]] = True
        return chosen


@register("adversary", "sign_flip")
@dataclass(frozen=True, kw_only=True)
class SignFlip(Adversary):
    """Each attacker sends the opposite of its own update: u <- -scale * u.

    Neutral: scale=-1 changes nothing.

    >>> SignFlip(share=0.2, scale=3.0).attack(torch.zeros(0, 1), torch.tensor([[2.0]]), None)
    tensor([[-6.]])

    Args:
        scale: factor of the opposite update.
        clients: ids of the attackers, from 0. Give one of `clients` and `share`.
        share: share of the clients that attack, in (0, 1], rounded; drawn once per run.
        groups: groups of the update to attack. None: all groups that have floating-point tensors of equal shapes.
    """

    scale: float = 1.0

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        return own * -self.scale


@register("adversary", "mean_shift")
@dataclass(frozen=True, kw_only=True)
class MeanShift(Adversary):
    """All attackers send mean - z * std of the updates that they see, at each coordinate ("a little is enough").

    Baruch, Baruch, Goldberg 2019, arXiv:1902.06635, Algorithm 3. The deviation is that of the population, not of a
    sample. With n updates, m of them from attackers, the default z is the largest with
    Phi(z) <= (n - m - s) / (n - m), where s = floor(n / 2 + 1) - m supporters make a majority.
    Differs from the paper: s is at least 1, and `sees: honest` knows the honest updates themselves.

    Args:
        z: number of standard deviations. None: the closed form.
        sees: "honest": mean and deviation of the honest updates. "own": of what the attackers trained themselves.
        clients: ids of the attackers, from 0. Give one of `clients` and `share`.
        share: share of the clients that attack, in (0, 1], rounded; drawn once per run.
        groups: groups of the update to attack. None: all groups that have floating-point tensors of equal shapes.
    """

    z: float | None = None
    sees: Literal["honest", "own"] = "honest"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(("honest", "own"), sees=self.sees)

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        seen = honest if self.sees == "honest" and len(honest) else own
        z = largest_z(len(honest) + len(own), len(own)) if self.z is None else self.z
        return (seen.mean(0) - z * seen.std(0, correction=0)).expand_as(own)


def largest_z(n: int, m: int) -> float:
    """Return the deviation z of `MeanShift` for n updates, m of them from attackers; 0 with fewer than two honest ones.

    >>> round(largest_z(50, 24), 2)  # Phi(1.43) = 24 / 26
    1.43
    """
    supporters = max(n // 2 + 1 - m, 1)
    honest = n - m
    return NormalDist().inv_cdf((honest - supporters) / honest) if honest > supporters else 0.0


@register("adversary", "gaussian")
@dataclass(frozen=True, kw_only=True)
class GaussianUpdate(Adversary):
    """Each attacker sends noise in place of an update: u <- std * n, n standard normal.

    Args:
        std: standard deviation, 0 or more.
        clients: ids of the attackers, from 0. Give one of `clients` and `share`.
        share: share of the clients that attack, in (0, 1], rounded; drawn once per run.
        groups: groups of the update to attack. None: all groups that have floating-point tensors of equal shapes.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(std=self.std)

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        rows = [torch.randn(own.shape[1], generator=generator) for generator in ctx.generators("attack")]
        return torch.stack(rows).to(own.dtype) * self.std
