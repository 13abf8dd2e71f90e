"""Laws of samplers."""

from __future__ import annotations

from dataclasses import Field, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from fl.check.bench import fingerprint
from fl.check.finding import Broken, Law, require_equal
from fl.method.sampler import CohortSampler
from fl.tensors.serialise import flatten, unflatten

EXAMPLES = {"size": 4, "rate": 0.5, "clients": (1, 4, 6), "candidates": 6, "separation": 2}
SIZES = np.arange(1, 13)  # samples of each client of the population


def cohorts_are_ascending_distinct_ids(sampler: CohortSampler) -> None:
    """Each cohort is an int64 array of ascending, distinct ids of the population."""
    state = sampler.init(len(SIZES))
    for round_ in range(10):
        state, ids = sampler.sample(state, round_, 0, SIZES)
        if ids.dtype != np.int64 or (np.diff(ids) <= 0).any() or (len(ids) and not 0 <= ids[0] <= ids[-1] < len(SIZES)):
            raise Broken(f"{ids!r} is not ascending, distinct int64 ids below {len(SIZES)}")


def a_draw_depends_on_state_round_and_seed_only(sampler: CohortSampler) -> None:
    """Repeating a draw gives the same cohort, whatever was drawn in between; the given state is not modified."""
    start = sampler.init(len(SIZES))
    before, here = fingerprint(start), start
    for round_ in range(10):
        one, cohort = sampler.sample(here, round_, 0, SIZES)
        sampler.sample(sampler.init(len(SIZES)), round_ + 5, 1, SIZES)  # another draw in between
        two, again = sampler.sample(here, round_, 0, SIZES)
        require_equal(cohort.tolist(), again.tolist(), f"cohorts of round {round_} drawn twice")
        require_equal(fingerprint(one), fingerprint(two), f"states after round {round_} drawn twice")
        here = one
    require_equal(fingerprint(start), before, "the state that sample() was given, before and after,")


def learning_depends_on_what_was_observed_only(sampler: CohortSampler) -> str | None:
    """Observing a round twice gives the same state, which can be stored; the given state is not modified."""
    if not (sampler.observes or sampler.chooses):
        return "does not learn"
    state = sampler.init(len(SIZES))
    for round_ in range(3):
        state, cohort = sampler.sample(state, round_, 0, SIZES)
        losses = np.arange(float(len(cohort)))
        losses[:1] = np.nan  # the first client did not answer
        given = fingerprint(state)
        (one, chosen), (two, again) = (sampler.choose(state, cohort, losses) for _ in range(2))
        require_equal(chosen.tolist(), again.tolist(), "cohorts chosen twice")
        require_equal(fingerprint(one), fingerprint(two), "states after choosing twice")
        answered = ~np.isnan(losses)
        metrics = {"loss": losses, "answered": 1.0 * answered, "num_examples": SIZES[cohort] * answered}
        one, two = (sampler.observe(state, cohort, metrics, losses) for _ in range(2))
        require_equal(fingerprint(one), fingerprint(two), "states after observing twice")
        require_equal(fingerprint(state), given, "the state that observe() was given, before and after,")
        state = unflatten(*flatten(one))
    return None


class _Sized(Protocol):
    """A sampler with a cohort size."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    size: int | None

    def init(self, population: int) -> Any: ...


def impossible_cohort_sizes_are_refused(sampler: _Sized) -> str | None:
    """A cohort of no client, or of more clients than there are, raises a ValueError."""
    if getattr(sampler, "size", None) is None:
        return "takes no size"
    for size in (0, len(SIZES) + 1):
        try:
            replace(sampler, size=size).init(len(SIZES))
        except ValueError:
            continue
        raise Broken(f"size={size} of a population of {len(SIZES)} is not refused")
    return None


LAWS: list[Law] = [
    cohorts_are_ascending_distinct_ids,
    a_draw_depends_on_state_round_and_seed_only,
    impossible_cohort_sizes_are_refused,
    learning_depends_on_what_was_observed_only,
]
