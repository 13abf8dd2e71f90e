"""Sampling that an accountant's assumption holds for."""

from __future__ import annotations

from fl import registry
from fl.method.sampler import Poisson
from fl.privacy.mechanism import Sampling


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
