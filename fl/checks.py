"""Checks of constructor arguments. Each takes arguments by name and skips arguments that are None.

A failed check raises a ValueError `name: value is not ...; hint`. The configuration puts the section's path in front.

    positive(epochs=self.epochs, steps=self.steps)
    within("[0, 1)", beta=self.beta, hint="at 1 the velocity never decays")
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


def positive(*, hint: str = "", **values: float | str | tuple[float, ...] | None) -> None:
    """Require numbers above 0, or tuples of them. Strings such as "full" are left to the type check of the field.

    >>> positive(rank=0)
    Traceback (most recent call last):
    ValueError: rank: 0 is not positive
    >>> positive(hidden=(100, -1))
    Traceback (most recent call last):
    ValueError: hidden: -1 is not positive
    """
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not isinstance(number, str) and not number > 0:
                raise _error(name, number, "is not positive", hint)


def not_negative(*, hint: str = "", **values: float | str | None) -> None:
    """Require numbers that are 0 or more.

    >>> not_negative(mu=-0.5, hint="0 is plain local training")
    Traceback (most recent call last):
    ValueError: mu: -0.5 is negative; 0 is plain local training
    """
    for name, value in values.items():
        if value is not None and not isinstance(value, str) and not value >= 0:
            raise _error(name, value, "is negative", hint)


def at_least(least: float, /, *, hint: str = "", **values: float | None) -> None:
    """Require numbers that are `least` or more.

    >>> at_least(2, ways=1)
    Traceback (most recent call last):
    ValueError: ways: 1 is not at least 2
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise _error(name, value, f"is not at least {least}", hint)


def within(interval: str, *, hint: str = "", **values: float | None) -> None:
    """Require numbers in an interval, written as in mathematics: "[0, 1)" contains 0 and not 1.

    >>> within("[0, 1)", beta=1.0)
    Traceback (most recent call last):
    ValueError: beta: 1.0 is not in [0, 1)
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in values.items():
        if value is None:
            continue
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise _error(name, value, f"is not in {interval}", hint)


def one_of(allowed: Collection[object], *, hint: str = "", **values: object) -> None:
    """Require values that are in `allowed`.

    >>> one_of(("examples", "uniform"), weights="sizes")
    Traceback (most recent call last):
    ValueError: weights: 'sizes' is not one of ['examples', 'uniform']
    """
    for name, value in values.items():
        if value is not None and value not in allowed:
            raise _error(name, value, f"is not one of {list(allowed)}", hint)


def _error(name: str, value: object, complaint: str, hint: str) -> ValueError:
    return ValueError(f"{name}: {value!r} {complaint}{f'; {hint}' if hint else ''}")


def meant(name: str, called: Collection[str]) -> str | None:
    """Return the method that a method of another name was probably meant to be, or None.

    >>> meant("on_rund", ["round"]), meant("rounds", ["round"]), meant("steps_memory", ["step", "step_memory"])
    ('round', 'round', 'step_memory')
    >>> meant("bound", ["round"]), meant("measured", ["measure"]), meant("round", ["round"])
    (None, None, None)

    Args:
        name: name of a method.
        called: names of the methods that are called.
    """
    if name in called:
        return None
    prefixed = name.startswith("on_")
    found = difflib.get_close_matches(name.removeprefix("on_"), called, 1, 0.8 if prefixed else 0.88)
    if not found or (not prefixed and name in (f"{found[0]}d", f"{found[0]}ed")):  # measured: an ordinary word
        return None
    return found[0]
