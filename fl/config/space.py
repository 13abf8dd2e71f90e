"""What a sweep searches: for each key a list of values, or a range.

log(1e-4, 1)    uniform in the logarithm        uniform(0, 1)    uniform        int(1, 10)    whole numbers, both ends
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fl.errors import ConfigError

DIGITS = 4  # significant digits of a value that is drawn from a range
EDGE = 0.05  # share of a range; a value so close to an end lies at the edge
RANGES = "log(1e-4, 1), uniform(0, 1) or int(1, 10)"
_RANGE = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")


@dataclass(frozen=True)
class Range:
    """A range of numbers.

    Args:
        kind: "log": the logarithm is uniform; "uniform"; "int": whole numbers.
        low: lower end.
        high: upper end, above `low`. Both ends belong to the range.
    """

    kind: Literal["log", "uniform", "int"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self}: the first number must be below the second, and both finite")
        if self.kind == "log" and self.low <= 0:
            raise ValueError(f"{self}: the logarithm needs positive numbers, as in log(1e-4, 1)")
        if self.kind == "int" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"{self}: both ends are whole numbers, as in int(1, 10)")

    def __str__(self) -> str:
        return f"{self.kind}({self.low:g}, {self.high:g})"

    def at(self, share: float) -> float:
        """The value at a share of the range in [0, 1), with `DIGITS` significant digits.

        >>> Range("log", 0.01, 1.0).at(0.5), Range("uniform", 0.0, 3.0).at(1 / 3), Range("int", 1, 10).at(0.99)
        (0.1, 1.0, 10)
        """
        if self.kind == "int":
            return int(self.low) + math.floor(share * (self.high - self.low + 1))
        if self.kind == "log":
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """The value with `DIGITS` significant digits, inside the range."""
        if self.kind == "int":
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def share(self, value: float) -> float:
        """The place of a value in the range: 0 at the lower end, 1 at the upper end."""
        if self.kind == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


Values: TypeAlias = "Sequence[Any] | Range"
Space: TypeAlias = Mapping[str, Values]


def listed(values: Values) -> Sequence[Any]:
    """The values of a list; a `TypeError` for a range."""
    if isinstance(values, Range):
        raise TypeError(f"{values} is no list")
    return values


def values_of(raw: Any, path: str) -> Values:
    """The values of a tuned key, from a list or from the text of a range.

    Raises:
        ConfigError: the list is empty, names a value twice, or the text is no range.
    """
    if isinstance(raw, Range):
        return raw
    if isinstance(raw, str):
        return _parse_range(raw, path)
    if not isinstance(raw, (list, tuple)):
        raise ConfigError(path, f"{raw!r} is one value; write a list, such as [0.03, 0.1, 0.3], or {RANGES}")
    if not raw:
        raise ConfigError(path, f"an empty list; write the values to try, such as [0.03, 0.1, 0.3], or {RANGES}")
    for i, value in enumerate(raw):
        if any(value == other and type(value) is type(other) for other in raw[:i]):
            raise ConfigError(path, f"{value!r} is listed twice")
    return tuple(raw)


def _parse_range(text: str, path: str) -> Range:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ConfigError(path, f"{text!r} is one value; write a list, such as [a, b], or {RANGES}")
    kind, ends = match[1], match[2].split(",")
    if kind not in ("log", "uniform", "int"):
        raise ConfigError(path, f"{text!r}: {kind!r} is not one of ['log', 'uniform', 'int']; write {RANGES}")
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise ConfigError(path, f"{text!r} needs two numbers; write {RANGES}") from None
    try:
        return Range(kind, low, high)  # type: ignore[arg-type]  # one of the three, see above
    except ValueError as error:
        raise ConfigError(path, str(error)) from None


def edge_of(value: Any, values: Values) -> str:
    """Where a chosen value lies at the edge of what was searched: "lower", "upper", or "" inside.

    Of a list: the smallest or the largest of at least two numbers. Of a range: within 5 % of an end.

    >>> edge_of(0.3, [0.03, 0.1, 0.3]), edge_of(0.1, [0.03, 0.1, 0.3]), edge_of("a", ["a", "b"])
    ('upper', '', '')
    >>> edge_of(0.00015, Range("log", 1e-4, 1.0)), edge_of(0.0002, Range("log", 1e-4, 1.0))
    ('lower', '')
    """
    if isinstance(values, Range):
        share = values.share(value)
        return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else ""
    numbers = [each for each in values if isinstance(each, (int, float)) and not isinstance(each, bool)]
    if len(numbers) < len(values) or len(numbers) < 2:
        return ""
    return "lower" if value == min(numbers) else "upper" if value == max(numbers) else ""


def edge_sentences(variant: str, setting: Mapping[str, Any], space: Space) -> list[str]:
    """A sentence for each key whose chosen value lies at the edge.

    >>> edge_sentences("FedAvg", {"client.lr": 0.3}, {"client.lr": (0.03, 0.1, 0.3)})
    ['FedAvg: client.lr=0.3 is the largest value that was tried; try values above it']
    """
    found = []
    for key, values in space.items():
        side = edge_of(setting[key], values)
        if side and isinstance(values, Range):
            end, way = (values.low, "below") if side == "lower" else (values.high, "above")
            found.append(
                f"{variant}: {key}={setting[key]} lies within 5 % of the {side} end of {values}; "
                f"try values {way} {end:g}"
            )
        elif side:
            most, way = ("smallest", "below") if side == "lower" else ("largest", "above")
            found.append(f"{variant}: {key}={setting[key]} is the {most} value that was tried; try values {way} it")
    return found


def to_plain(space: Space) -> dict[str, Any]:
    """The space as plain values; `from_plain` is the inverse."""
    return {key: str_of(values) if isinstance(values, Range) else list(values) for key, values in space.items()}


def str_of(values: Range) -> str:
    """A range with all digits, as `values_of` reads it.

    >>> str_of(Range("log", 0.00012345678, 1.0))
    'log(0.00012345678, 1.0)'
    """
    return f"{values.kind}({values.low!r}, {values.high!r})"


def from_plain(plain: Mapping[str, Any]) -> dict[str, Values]:
    """The space of plain values."""
    return {key: values_of(values, key) for key, values in plain.items()}
