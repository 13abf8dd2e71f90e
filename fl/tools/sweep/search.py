"""Which setting a sweep tries next, and which trials it stops early.

grid      all combinations of lists             random    samples of lists and ranges
asha      settings of `random` (of `grid`, without `samples`); a trial that is behind is stopped early, see `Asha`
optuna    samples that learn from finished trials (TPE)

Draws are addressed: setting i depends on the seed, on i, and for optuna on the results of finished trials. So an
interrupted sweep that goes on tries what it would have tried. ASHA and optuna are those of Ray Tune.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from fl.config.space import Range, Space, Values, listed
from fl.errors import ConfigError

Kind = Literal["grid", "random", "asha", "optuna"]
Setting = dict[str, Any]
Done = Sequence[tuple[Setting, float | None]]  # settings of finished trials and their scores; None: it failed
MOST_DRAWS = 100  # per sample, to find a combination of lists that is new
FACTOR = 3  # ASHA: one of so many trials goes on


@dataclass(frozen=True)
class Search:
    """How a sweep searches.

    Args:
        kind: the kind of search; None: "grid" if all keys have lists and there are no `samples`, else "random".
        samples: number of settings per variant, 1 or more; None with "grid".
        seed: seed of the draws.
    """

    kind: Kind | None = None
    samples: int | None = None
    seed: int = 0

    def kind_for(self, space: Space) -> Kind:
        """The kind of search in a space."""
        ranges = any(isinstance(values, Range) for values in space.values())
        return self.kind or ("grid" if not ranges and self.samples is None else "random")

    def check(self, space: Space) -> None:
        """Raise a `ConfigError` if the search does not fit the space, or needs a package that is missing."""
        kind = self.kind_for(space)
        ranges = [key for key, values in space.items() if isinstance(values, Range)]
        if kind == "grid" and ranges:
            raise ConfigError(
                "search",
                f"'grid' tries lists of values, and {ranges[0]} has the range {space[ranges[0]]}; list its values, or "
                "set search to random, asha or optuna, with a number of samples",
            )
        if kind == "grid" and self.samples is not None:
            raise ConfigError("samples", f"{self.samples} with search 'grid', which tries all combinations; leave out")
        if self.samples is None and (ranges or kind in ("random", "optuna")) and space:
            what = f"the range of {ranges[0]}" if ranges else f"search {kind!r}"
            raise ConfigError(
                "samples", f"missing; {what} needs a number of settings to try, such as samples: 20 (--samples 20)"
            )
        if space and kind in ("asha", "optuna"):
            _check_packages(kind)

    def settings(self, space: Space) -> list[Setting] | None:
        """All settings to try, where they are known in advance; None for optuna."""
        kind = self.kind_for(space)
        if not space:
            return [{}]
        if kind == "optuna":
            return None
        if self.samples is None:
            return [dict(zip(space, values)) for values in itertools.product(*(listed(v) for v in space.values()))]
        return list(itertools.islice(self._draws(space), self.samples))

    def number(self, space: Space) -> int:
        """Number of settings to try."""
        known = self.settings(space)
        return len(known) if known is not None else self.samples or 0

    def corners(self, space: Space) -> list[Setting]:
        """Settings with which a configuration is checked before the first run: ends of ranges, all values of lists."""
        ends = {key: (v.rounded(v.low), v.rounded(v.high)) if isinstance(v, Range) else v for key, v in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        found = [{**first, key: value} for key, values in ends.items() for value in values]
        return [each for i, each in enumerate(found) if each not in found[:i]] or [first]

    def _draws(self, space: Space) -> Iterator[Setting]:
        """Different settings by addressed draws; they end when lists have no new combination."""
        from fl.tensors.random import uniform

        seen: list[Setting] = []
        for i in range(MOST_DRAWS * (self.samples or 0)):
            setting = {key: _pick(values, float(uniform(self.seed, "sweep", i, key))) for key, values in space.items()}
            if setting not in seen:
                seen.append(setting)
                yield setting

    def propose(self, space: Space, by: str, mode: str, done: Done, index: int) -> Setting:
        """Setting number `index` of optuna, from the results of finished trials.

        Args:
            space: what to search.
            by: the metric.
            mode: "min" or "max".
            done: finished trials.
            index: number of the setting.
        """
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        from fl.tensors.random import hash64

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
        names = {str(i): key for i, key in enumerate(space)}  # Ray Tune gives dots and slashes a meaning
        distributions = {name: _distribution(space[key]) for name, key in names.items()}
        seed = int(hash64(self.seed, "optuna", index)) % 2**32
        searcher = OptunaSearch(distributions, metric=by, mode=mode, seed=seed)
        for setting, score in done:
            shown = {name: _index_or_value(space[key], setting[key]) for name, key in names.items()}
            failed = score is None or not math.isfinite(score)
            searcher.add_evaluated_point(shown, math.nan if score is None else score, error=failed)
        drawn = searcher.suggest(str(index)) or {}
        return {key: _value(space[key], drawn[name]) for name, key in names.items()}


def _pick(values: Values, share: float) -> Any:
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]


def _distribution(values: Values) -> Any:
    """A distribution of optuna. A list is searched by the index of its values, because these may be any YAML."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(list(range(len(values))))
    if values.kind == "int":
        return IntDistribution(int(values.low), int(values.high))
    return FloatDistribution(values.low, values.high, log=values.kind == "log")


def _index_or_value(values: Values, value: Any) -> Any:
    return value if isinstance(values, Range) else list(values).index(value)


def _value(values: Values, drawn: Any) -> Any:
    return values.rounded(drawn) if isinstance(values, Range) else values[drawn]


def _check_packages(kind: Kind) -> None:
    """Raise a `ConfigError` if Ray Tune or optuna cannot be imported."""
    try:
        import ray.tune  # noqa: F401
    except ImportError:
        raise ConfigError(
            "search", f"{kind!r} needs Ray Tune's packages; pip install 'ray[tune]', or use grid or random"
        ) from None
    if kind == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise ConfigError(
                "search", "'optuna' needs the package optuna; pip install optuna, or use grid, random or asha"
            ) from None


class Asha:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), by Ray Tune.

    After a ninth and after a third of the rounds a trial goes on only if its metric is among the best third of those
    that trials before it had there.

    Args:
        by: the metric.
        mode: "min" or "max".
        rounds: number of rounds of a whole run.
    """

    def __init__(self, by: str, mode: str, rounds: int):
        from ray.tune.schedulers import ASHAScheduler

        self.rounds = rounds
        self._by = by
        self._scheduler = ASHAScheduler(
            "rounds", by, mode, max_t=rounds, grace_period=max(1, rounds // FACTOR**2), reduction_factor=FACTOR
        )
        self._known: dict[str, Any] = {}

    def goes_on(self, trial: str, rounds: int, row: Mapping[str, Any]) -> bool:
        """Whether a trial goes on after its `rounds`, the last of which measured `row`."""
        value = row.get(self._by)
        if value is None or rounds >= self.rounds:
            return True
        if trial not in self._known:
            self._known[trial] = SimpleNamespace(trial_id=trial)
            self._scheduler.on_trial_add(None, self._known[trial])  # type: ignore[arg-type]  # it reads the id only
        result = {"rounds": rounds, self._by: value}
        decision = self._scheduler.on_trial_result(None, self._known[trial], result)  # type: ignore[arg-type]
        return bool(decision == self._scheduler.CONTINUE)
