"""Sampling that an accountant's assumption holds for, and figures of samplers."""

from __future__ import annotations

import math

from fl import registry
from fl.method.min_separation import MinSeparation
from fl.method.sampler import CohortSampler, Poisson
from fl.privacy.mechanism import Sampling


def rate_of(sampler: CohortSampler) -> float:
    """Return the probability with which a client takes part in a round, over the run; NaN if it is not defined.

    >>> rate_of(Poisson(rate=0.5)), rate_of(MinSeparation(separation=4, rate=0.5))
    (0.5, 0.125)
    """
    if isinstance(sampler, MinSeparation):
        return sampler.rate / sampler.separation
    return float(getattr(sampler, "rate", math.nan))


def expected_size(sampler: CohortSampler, population: int) -> float:
    """Return the expected number of clients in a cohort. Each mechanism has checked its sampler."""
    size = getattr(sampler, "size", None)
    return rate_of(sampler) * population if size is None else float(size)


def require_poisson(sampling: Sampling) -> None:
    """Require that each client takes part independently of the others, with one probability.

    Raises:
        ValueError: the cohorts are drawn in another way.
    """
    if not isinstance(sampling.sampler, Poisson):
        raise ValueError(
            f"{registry.name_of(sampling.sampler)!r} draws clients that depend on one another, and the accountant "
            "assumes that each takes part independently; use {name: poisson, rate: R}"
        )
