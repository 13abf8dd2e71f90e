"""Callbacks: a user's own code at fixed points of a run.

    class Norm(fl.Callback):
        def measure(self, run, row):                 # a metric of your own, each round
            return {"norm": float(fl.norm(run.model))}

    fl.run("a.yaml", callbacks=[Norm()])

    start -> ready -> (measure -> computed -> round) for each round -> final -> end          failure ends a run early

A round is computed first and then committed, perhaps together with later ones (`checkpoint.every`). Only a committed
round is safe from a crash, so `round` is called for each round once it is committed. The baselines of a run are runs of
their own, and callbacks see them one after the other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fl.checks import meant
from fl.errors import ConfigError

if TYPE_CHECKING:
    from fl.config.config import Config
    from fl.simulation.result import Result
    from fl.tensors.params import Params

Row = Mapping[str, Any]
_LOG = logging.getLogger(__name__)
_OF_FL = ("simulated_", "wall_seconds", "uplink_", "downlink_")  # columns that reports read as costs


class Run(Protocol):
    """A run in progress, as callbacks see it."""

    directory: Path
    config: Config

    @property
    def headline(self) -> str:
        """One line about the run."""

    @property
    def round(self) -> int:
        """The round at hand; between rounds the next one."""

    @property
    def rounds(self) -> int | None:
        """Number of rounds planned; None if it is unknown, as in a Flower app."""

    @property
    def every(self) -> int:
        """Rounds from one evaluation to the next."""

    @property
    def model(self) -> Params:
        """A copy of the server's model after the last round that was computed."""

    def stop(self, reason: str) -> None:
        """End the run after the present round, as a condition of the section `stop` does."""


class Callback:
    """Base of callbacks. Override the methods that you need; by default they do nothing.

    An exception in a callback ends the run with this exception. Committed rounds are safe, and `fl.resume` continues.
    """

    def start(self, run: Run) -> None:
        """Look at a run that is set up, before its workers start."""

    def ready(self, run: Run) -> None:
        """Look at a run whose workers have started."""

    def measure(self, run: Run, row: Row) -> Mapping[str, float]:
        """Return metrics of your own for the round that was just computed. They are written with the row.

        `run.stop(reason)` ends the run after this round. Random numbers drawn here do not change the run.

        Args:
            run: the run; `run.model` is the model after the round.
            row: the round's metrics; those of an evaluation are there only if the round was evaluated.
        """
        return {}

    def computed(self, row: Row) -> None:
        """Look at the metrics of a round that was computed, whether it is committed or not."""

    def round(self, row: Row) -> None:
        """Look at the metrics of a committed round."""

    def final(self, row: Row) -> None:
        """Look at the metrics of the strategy's work after the last round; only some strategies have any."""

    def end(self, result: Result) -> None:
        """Look at the result of a run that has finished, or was interrupted after a round."""

    def failure(self, error: BaseException) -> None:
        """Look at the exception that ends a run; it is raised again."""


class Callbacks(Callback):
    """Several callbacks, called in their order.

    Args:
        callbacks: the callbacks.

    Attributes:
        all: the callbacks.
        measures: whether any of them has metrics of its own.

    Raises:
        ConfigError: one of them is no `Callback`, or has a method whose name is close to one that is called.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()):
        if not isinstance(callbacks, Iterable) or isinstance(callbacks, str):
            raise ConfigError("callbacks", f"{callbacks!r} is no list of callbacks; write callbacks=[...]")
        self.all: Sequence[Callback] = tuple(callbacks)
        for each in self.all:
            if not isinstance(each, Callback):
                hint = f"; write {each.__name__}()" if isinstance(each, type) and issubclass(each, Callback) else ""
                raise ConfigError("callbacks", f"{each!r} is no instance of fl.Callback{hint}")
            _check_names(type(each))
        self.measures = any(type(each).measure is not Callback.measure for each in self.all)

    def start(self, run: Run) -> None:
        for each in self.all:
            each.start(run)

    def ready(self, run: Run) -> None:
        for each in self.all:
            each.ready(run)

    def measure(self, run: Run, row: Row) -> dict[str, float]:
        """Return the metrics of all callbacks.

        Raises:
            TypeError: a callback returned something else than numbers by name.
            ValueError: a metric has a name that the row has already.
        """
        found: dict[str, float] = {}
        for each in self.all:
            if type(each).measure is Callback.measure:
                continue
            who, measured = f"callback {type(each).__name__}: measure returned", each.measure(run, dict(row))
            if not isinstance(measured, Mapping):
                raise TypeError(f"{who} {type(measured).__name__}, expected a mapping name -> number; {{}} for none")
            for name, value in measured.items():
                if not isinstance(name, str) or not name:
                    raise TypeError(f"{who} a metric named {name!r}, expected a text")
                if name in row or name in found:
                    raise ValueError(f"{who} the metric {name!r}, which the round has already; choose another name")
                if name.startswith(_OF_FL):
                    raise ValueError(f"{who} the metric {name!r}, a name of fl's own costs; choose another name")
                found[name] = _number(value, f"{who} {name!r}: {value!r}")
        return found

    def computed(self, row: Row) -> None:
        for each in self.all:
            each.computed(dict(row))

    def round(self, row: Row) -> None:
        for each in self.all:
            each.round(row)

    def final(self, row: Row) -> None:
        for each in self.all:
            each.final(row)

    def end(self, result: Result) -> None:
        for each in self.all:
            each.end(result)

    def failure(self, error: BaseException) -> None:
        for each in self.all:
            try:
                each.failure(error)
            except Exception:  # the others must hear of the failure too
                _LOG.warning("callback %s: failure raised an error", type(each).__name__, exc_info=True)


def _check_names(kind: type[Callback]) -> None:
    """Refuse a method such as `on_round` or `rounds`, which nothing would call."""
    called = [name for name in vars(Callback) if not name.startswith("_")]
    for name in dir(kind):
        close = meant(name, called)
        if close and callable(getattr(kind, name)):
            raise ConfigError(
                "callbacks",
                f"{kind.__name__}.{name}: nothing calls this method; did you mean {close!r}? The methods are "
                f"{', '.join(called)}. Begin the name of a method of your own with an underscore",
            )


def _number(value: Any, who: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{who}, expected one number") from None
    return int(value) if isinstance(value, int) and math.isfinite(number) else number
