"""The result of checking one law, and the comparisons that laws are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fl.tensors.params import Params, difference

Law = Callable[[Any], str | None]
"""A function of the checked part. It raises if the law is broken and may return a remark. Its name states the law."""


@dataclass(frozen=True)
class Finding:
    """The result of one law: its name, whether it holds, and a remark or the reason why it does not hold."""

    law: str
    ok: bool
    detail: str = ""

    @property
    def sentence(self) -> str:
        """The law in words: its name without underscores."""
        return self.law.replace("_", " ")


class Broken(Exception):
    """A law does not hold; the message says what was found."""


def try_law(law: Law, part: Any) -> Finding:
    """Check one law; an exception of any kind means that the law is broken."""
    try:
        return Finding(law.__name__, True, law(part) or "")
    except Broken as broken:
        return Finding(law.__name__, False, str(broken))
    except Exception as error:  # whatever a part does wrong, the other laws are still checked
        return Finding(law.__name__, False, f"{type(error).__name__}: {error}")


def require_equal(a: object, b: object, what: str) -> None:
    """Raise `Broken` unless the two values are equal; `what` names them in the message."""
    if a != b:
        raise Broken(f"{what} differ: {a} and {b}")


def require_close(a: Params, b: Params, tolerance: float, what: str) -> None:
    """Raise `Broken` if two models differ by more than `tolerance`, relative to the largest parameter of `b`."""
    distance = relative_distance(a, b)
    if not distance <= tolerance:
        raise Broken(f"{what}: {distance:.1e} apart, more than {tolerance}")


def relative_distance(a: Params, b: Params) -> float:
    """Largest difference of two models, divided by the largest parameter of `b`."""
    if a.layout is not b.layout:
        raise Broken(f"the models differ: {difference(a, b)}")
    largest = max(float(x.abs().max()) for x in b.buffers)
    return max(float((x - y).abs().max()) for x, y in zip(a.buffers, b.buffers)) / max(largest, 1e-30)
