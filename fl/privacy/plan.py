"""A `privacy` section that a run has: noise multiplier, expected cohort, and epsilon after a number of releases."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from fl.errors import ConfigError, located
from fl.method.client import ClientAlgorithm
from fl.method.sampler import Poisson
from fl.privacy import accounting
from fl.privacy.example import ExampleLevel
from fl.privacy.mechanism import Sampling
from fl.privacy.sampling import expected_size, rate_of
from fl.privacy.section import Privacy
from fl.registry import lookup, name_of, names

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@dataclass(frozen=True)
class PrivacyPlan:
    """The figures of a private run.

    Args:
        section: the configuration.
        sampling: who takes part, with the rate that is accounted.
        expected: expected number of clients in a simulated cohort; noisy sums are divided by it.
        noise_multiplier: noise relative to the clip bound.
        members: number of clients of the run that may train.
    """

    section: Privacy
    sampling: Sampling
    expected: float
    noise_multiplier: float
    members: int

    @classmethod
    def of(cls, section: Privacy, population: int, rounds: int, client: ClientAlgorithm) -> PrivacyPlan:
        """Calibrate the noise of a run.

        Args:
            section: the configuration.
            population: number of clients that may train.
            rounds: number of rounds; each is one release.
            client: the client algorithm; with example-level privacy its local steps are the releases.

        Raises:
            ConfigError: the accountant's assumptions do not hold, or the package dp-accounting is missing.
        """
        if section.unit == "example":
            return cls._of_examples(section, population, rounds, client)
        virtual = section.virtual_cohort
        assert section.sampling is not None  # the section has checked it
        members = population if virtual is None else virtual.population
        # of a virtual cohort 1 / population is allowed, as published figures have it; its clients are nobody's
        if section.delta * members > 1 or (virtual is None and section.delta * members == 1):
            raise ConfigError(
                "privacy.delta",
                f"{section.delta:g} allows that one of {members} clients is published in full; use less than "
                f"{1 / members:g}, better a tenth of it",
            )
        sampling = Sampling(section.sampling, rate_of(section.sampling), population, rounds)
        try:
            section.mechanism.check(sampling)
            if section.audit is not None:
                section.audit.check(section.sampling)
        except ValueError as error:
            raise ConfigError("privacy.sampling", str(error)) from error
        expected = expected_size(section.sampling, population)
        if section.where == "local":  # the server knows who takes part
            sampling = replace(sampling, rate=1.0)
        if virtual is not None:
            if virtual.size < expected:
                raise ConfigError(
                    "privacy.virtual_cohort",
                    f"size {virtual.size} is smaller than the expected {expected:g} clients of the simulated cohorts",
                )
            sampling = replace(sampling, rate=virtual.size / virtual.population, population=virtual.population)
        return cls(section, sampling, expected, 0.0, population)._calibrated()

    @classmethod
    def _of_examples(cls, section: Privacy, population: int, rounds: int, client: ClientAlgorithm) -> PrivacyPlan:
        """Calibrate the noise of local steps, for a client that takes part in each round."""
        if not isinstance(client, ExampleLevel):
            raise ConfigError(
                "client.name",
                f"{name_of(client)!r} adds no noise to its steps, which privacy.unit: example needs; use one of "
                f"{example_clients()}",
            )
        rate, steps = client.step_sampling()
        sampling = Sampling(Poisson(rate=rate), rate, population, rounds * steps)
        return cls(section, sampling, math.nan, 0.0, population)._calibrated()

    def _calibrated(self) -> PrivacyPlan:
        """Return the plan with the noise multiplier that the section gives or asks for."""
        section, releases = self.section, self.sampling.releases
        if section.noise_multiplier is not None:
            return replace(self, noise_multiplier=section.noise_multiplier).checked()
        assert section.epsilon is not None
        try:
            if section.delta == 0:
                pure = section.mechanism.pure_epsilon
                found = accounting.search(lambda z: pure(z, self.sampling, releases), section.epsilon)
            else:
                make_event = partial(self.event, releases=releases)
                found = accounting.noise_multiplier(make_event, section.epsilon, section.delta, section.accountant)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError("privacy.epsilon", str(error)) from error
        return replace(self, noise_multiplier=found).checked()

    def checked(self) -> PrivacyPlan:
        """Return the plan, if the clipping can take its share of the noise.

        Raises:
            ConfigError: it cannot.
        """
        try:
            self.section.clipping.multiplier_of_sum(self.noise_multiplier, self.cohort)
        except ValueError as error:
            raise located("privacy.clipping", error) from error
        return self

    @property
    def cohort(self) -> float:
        """Expected number of clients in the cohort that the noise is made for."""
        virtual = self.section.virtual_cohort
        return self.expected if virtual is None else float(virtual.size)

    def event(self, noise_multiplier: float, releases: int) -> DpEvent:
        """Return the event of the first `releases` releases."""
        return self.section.mechanism.event(noise_multiplier, self.sampling, releases)

    def epsilon(self, releases: int) -> float:
        """Return epsilon after a number of releases; infinity without noise."""
        if releases == 0:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        if self.section.delta == 0:
            return self.section.mechanism.pure_epsilon(self.noise_multiplier, self.sampling, releases)
        return accounting.epsilon(
            self.event(self.noise_multiplier, releases), self.section.delta, self.section.accountant
        )


def example_clients() -> list[str]:
    """Return the names of the client algorithms that add noise to their own steps."""
    return [name for name in names("client") if issubclass(lookup("client", name), ExampleLevel)]
