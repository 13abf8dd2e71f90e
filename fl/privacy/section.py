"""The `privacy` section: sampler, clipping, noise and accountant of a run as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.checks import at_least, positive, within
from fl.method.sampler import CohortSampler
from fl.privacy.accounting import Accountant
from fl.privacy.audit import Audit
from fl.privacy.clipping import Clipping
from fl.privacy.fixed import Fixed
from fl.privacy.gaussian import Gaussian
from fl.privacy.mechanism import Mechanism
from fl.privacy.streams import Seeds
from fl.registry import name_of


@dataclass(frozen=True, kw_only=True)
class VirtualCohort:
    """A larger cohort than the one that is simulated. Noise and epsilon are those of a training with this cohort.

    The noise on the mean is what it would be with `size` clients, and epsilon assumes that each of `population` clients
    takes part with probability size / population. It does not hold for the simulated clients.

    Args:
        size: expected number of clients of the larger cohort, positive.
        population: number of clients from which it would be drawn, at least `size`.
    """

    size: int
    population: int

    def __post_init__(self) -> None:
        positive(size=self.size)
        at_least(self.size, population=self.population)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy of a run. It replaces `cohort`, and the strategy's reductions by noisy sums.

    Give `epsilon` (the noise follows from `rounds`) or `noise_multiplier` (epsilon follows).

    Args:
        clipping: bounds each update: {bound: B} (the same as {name: fixed, bound: B}), or adaptive, per_layer,
            per_group.
        sampling: draws the clients of each round, {name: poisson, rate: R} or {rate: R}; R is the probability of each
            client. It takes the place of `cohort`; None for unit example, which has a `cohort`.
        unit: what is protected: a whole "client", or one training "example" of a client (with a client algorithm for
            DP-SGD).
        epsilon: the wanted epsilon after all rounds, positive; None: `noise_multiplier` is given.
        delta: delta of the guarantee, in [0, 1); less than 1 / number of clients. 0 is for Laplace noise only.
        noise_multiplier: noise relative to the clip bound, 0 or more; None: computed from `epsilon`.
        mechanism: the noise: gaussian, laplace, or a part of your own.
        cap: a client of n training samples has weight min(n, cap) / cap in means, 1 or more; None: all have weight 1.
        where: who adds the noise: the server ("central"), or each client to its own update ("local").
        virtual_cohort: noise and epsilon of a larger cohort than the simulated one; None: those of this run.
        seeds: "reproducible" noise follows from the run's seed; "cryptographic" noise follows from a secret of the
            system, and the run cannot be repeated.
        accountant: computes epsilon: "pld" (tight) or "rdp" (Renyi).
        audit: canary clients that give a lower bound of epsilon, {canaries: 1000}; None: there are none.
    """

    clipping: Clipping
    sampling: CohortSampler | None = None
    unit: Literal["client", "example"] = "client"
    epsilon: float | None = None
    delta: float = 0.0
    noise_multiplier: float | None = None
    mechanism: Mechanism = Gaussian()
    cap: int | None = None
    where: Literal["central", "local"] = "central"
    virtual_cohort: VirtualCohort | None = None
    seeds: Seeds = "reproducible"
    accountant: Accountant = "pld"
    audit: Audit | None = None

    def __post_init__(self) -> None:
        within("(0, inf)", hint="for no noise set noise_multiplier: 0", epsilon=self.epsilon)
        within("[0, 1)", delta=self.delta)
        within("[0, inf)", noise_multiplier=self.noise_multiplier)
        if (self.epsilon is None) == (self.noise_multiplier is None):
            given = f"epsilon: {self.epsilon} and noise_multiplier: {self.noise_multiplier}"
            raise ValueError(f"{given}; give one of the two")
        at_least(1, cap=self.cap)
        pure = type(self.mechanism).pure_epsilon is not Mechanism.pure_epsilon
        if self.delta == 0 and self.noise_multiplier != 0 and not pure:
            raise ValueError(
                f"delta: 0 has no finite epsilon with mechanism {name_of(self.mechanism)!r}; give a delta below "
                "1 / number of clients, or use laplace"
            )
        if (self.unit == "client") != (self.sampling is not None):
            way_out = "give {rate: R}" if self.sampling is None else "leave it out, and set cohort"
            raise ValueError(f"sampling: {self.sampling} with unit {self.unit!r}; {way_out}")
        if self.unit == "example":
            self._check_examples()
        if self.where == "local" and not self.mechanism.local:
            raise ValueError("where: clients cannot add the noise of this mechanism; use central, or gaussian")
        if self.where == "local" and (self.virtual_cohort is not None or self.clipping.adapts):
            raise ValueError("where: local noise has no virtual cohort, and its clip bound is fixed; use central")
        if self.where == "local" and self.seeds == "cryptographic":
            raise ValueError("seeds: local noise is simulated with reproducible seeds only; use central")
        if self.audit is not None and (self.where == "local" or self.unit == "example"):
            raise ValueError("audit: canaries are clients in noisy sums of the server; use unit client, where central")
        if self.clipping.adapts and (self.mechanism.correlated or self.mechanism.norm != "l2"):
            raise ValueError(
                "clipping: an adaptive bound needs independent normal noise in each round; use mechanism gaussian, or "
                "clipping {name: fixed, bound: B}"
            )

    def _check_examples(self) -> None:
        """Check the options that example-level privacy has."""
        others = {"where": "central", "cap": None, "virtual_cohort": None, "seeds": "reproducible"}
        for name, only in others.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name}: {getattr(self, name)!r} with unit example, whose noise is the client's own")
        if not isinstance(self.clipping, Fixed) or not isinstance(self.mechanism, Gaussian):
            raise ValueError("clipping: unit example has a fixed bound and the gaussian mechanism; use {bound: B}")
