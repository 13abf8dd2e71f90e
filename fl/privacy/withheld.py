"""What a strategy may not know under `privacy:`, because it is neither noisy nor accounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from fl.errors import ConfigError

_METHODS = (
    *("len", "iter", "getitem", "contains", "bool", "array", "int", "float", "index"),
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
)


class ReadsPrivate(ConfigError):
    """A strategy read something of single clients that is not private."""


class Withheld:
    """Stands in the place of a private value. Any use of it is an error.

    >>> len(Withheld("ctx.cohort"))
    Traceback (most recent call last):
    fl.privacy.withheld.ReadsPrivate: privacy: the strategy reads ctx.cohort, which has no noise and is not accounted; \
use a strategy that reads nothing but the reduced value, or leave privacy out

    Args:
        name: what is withheld, in words.
    """

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):  # asked by copy and pickle
            raise AttributeError(attribute)
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ReadsPrivate(
            "privacy",
            f"the strategy reads {object.__getattribute__(self, '_name')}, which has no noise and is not accounted; "
            "use a strategy that reads nothing but the reduced value, or leave privacy out",
        )

    __hash__ = object.__hash__


def _refusing() -> Callable[..., NoReturn]:
    def refuse(self: Withheld, *_: Any, **__: Any) -> NoReturn:
        self._refuse()

    return refuse


for _name in _METHODS:
    setattr(Withheld, f"__{_name}__", _refusing())
