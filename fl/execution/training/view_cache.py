"""Views of the tensors of parameters, made once for each object."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from fl.tensors.params import Params

T = TypeVar("T")


class ViewCache(Generic[T]):
    """What `make` returns for parameters, for as long as the parameters live. A method may make new ones in each step.

    Args:
        make: makes the views.
    """

    def __init__(self, make: Callable[[Params], T]):
        self.make = make
        self.known: dict[int, tuple[weakref.ref[Params], T]] = {}

    def of(self, params: Params) -> T:
        """Return the views of `params`."""
        key, known = id(params), self.known
        found = known.get(key)
        if found is None or found[0]() is not params:
            found = known[key] = (weakref.ref(params, lambda _: known.pop(key, None)), self.make(params))
        return found[1]
