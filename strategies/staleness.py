"""Weights of late updates.    s(tau),  tau: number of server steps between the start of a client and its arrival

    constant     1
    polynomial   (tau + 1)^-a
    hinge        1 up to b,  1 / (a (tau - b) + 1) beyond

Xie, Koyejo, Gupta 2019, arXiv:1903.03934, section 5.2.  s(0) = 1, and s never grows.
"""

from __future__ import annotations

from typing import Literal

from fl import checks

Kind = Literal["constant", "polynomial", "hinge"]
KINDS = ("constant", "polynomial", "hinge")


def damping(kind: Kind, tau: int, a: float, b: int) -> float:
    """Return s(tau), in (0, 1].

    >>> damping("polynomial", 3, a=0.5, b=4), damping("hinge", 6, a=10, b=4)
    (0.5, 0.047619047619047616)
    """
    if kind == "constant" or (kind == "hinge" and tau <= b):
        return 1.0
    return (tau + 1.0) ** -a if kind == "polynomial" else 1.0 / (a * (tau - b) + 1.0)


def check(kind: str, a: float, b: int) -> None:
    """Raise a `ValueError` if the arguments of s are not allowed."""
    checks.one_of(KINDS, staleness=kind)
    checks.not_negative(a=a, hint="late updates would count for more than fresh ones")
    checks.not_negative(b=b, hint="updates that are 0 to b steps late count in full")
