"""Quadratic penalties on the parameters of local training, such as proximal terms and control variates.

penalty(w) = strength/2 |w - centre|^2 + <slope, w>        gradient: strength (w - centre) + slope
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fl.tensors.combination import Combination
from fl.tensors.params import Layout, Params


@dataclass(frozen=True)
class Penalty:
    """A quadratic penalty. The engine adds its gradient to the gradient of each step.

    >>> import torch
    >>> w, c, b = (Params.of({"w": torch.tensor([value])}) for value in (3.0, 1.0, 0.5))
    >>> Penalty(strength=2.0, centre=c, slope=b).add_gradient(Params.of({"w": torch.zeros(1)}), w)["w"]
    tensor([4.5000])

    Args:
        strength: weight of the squared distance to `centre`: a number for all parameters, or one for each.
        centre: where the squared distance is 0. Default: zeros.
        slope: gradient of the linear part. Default: zeros.

    With C clients each of the three may have a leading axis C.
    """

    strength: float | Params = 0.0
    centre: Params | None = None
    slope: Params | None = None

    def add_gradient(self, grad: Params, params: Params) -> Params:
        """Add the penalty's gradient at `params` to `grad`, in place; return `grad`."""
        if self.slope is not None:
            grad.add_(self.slope)
        if isinstance(self.strength, Params) or self.strength:
            away = params.clone() if self.centre is None else params - self.centre
            if isinstance(self.strength, Params):
                away = away * self.strength
            else:
                away.mul_(self.strength)
            grad.add_(away)
        return grad

    def row(self, clients: slice | Tensor) -> Penalty:
        """Return the penalty of some of the clients that train together."""

        def of(part: Params | None) -> Params | None:
            return part.row(clients) if part is not None and part.batch else part

        strength = of(self.strength) if isinstance(self.strength, Params) else self.strength
        assert strength is not None
        return Penalty(strength, of(self.centre), of(self.slope))


def fitted(penalty: Any, start: Params, clients: int | None, who: str) -> Penalty | None:
    """Return what `penalty()` returned for a phase, in the layout of the trained parameters.

    Tensors are taken by name, so another order, more tensors or another dtype do no harm. Padding is 0.

    Args:
        penalty: what the hook returned.
        start: the parameters that the phase trains, at its start.
        clients: number of clients that train together; None for one client.
        who: name of the client algorithm, for errors.

    Raises:
        TypeError: it is neither a Penalty nor None, or a part has another type.
        ValueError: the strength is not finite, a tensor is missing or has another shape, or an axis is not that of the
            clients.
    """
    if penalty is None:
        return None
    if not isinstance(penalty, Penalty):
        raise TypeError(f"{who}: penalty returned {type(penalty).__name__}, expected fl.Penalty(...) or None")
    parts: dict[str, Params | None] = {}
    for name in ("centre", "slope"):
        part = getattr(penalty, name)
        parts[name] = None if part is None else _part(part, start, clients, f"{who}: {name} of penalty")
    strength = penalty.strength
    if isinstance(strength, Params):
        return _same_or(penalty, Penalty(_part(strength, start, clients, f"{who}: strength of penalty"), **parts))
    number = strength.item() if isinstance(strength, Tensor) and strength.ndim == 0 else strength
    if not isinstance(number, Real):
        raise TypeError(
            f"{who}: strength of penalty is {type(strength).__name__}, expected a number, or Params with one for "
            "each parameter"
        )
    if not math.isfinite(number):
        raise ValueError(f"{who}: strength of penalty is {float(number)}, expected a finite number")
    return _same_or(penalty, Penalty(float(number), **parts))


def _same_or(old: Penalty, new: Penalty) -> Penalty:
    same = old.centre is new.centre and old.slope is new.slope and old.strength is new.strength
    return old if same else new


def _part(part: Any, start: Params, clients: int | None, where: str) -> Params:
    """Return a part in the layout of `start`, with padding 0; the same object if it has both."""
    if not isinstance(part, Params):
        raise TypeError(f"{where} is {type(part).__name__}, expected Params")
    if tuple(part.batch) not in ((), () if clients is None else (clients,)):
        wanted = "none" if clients is None else f"none or the {clients} clients that train together, ({clients},)"
        raise ValueError(f"{where} has the leading axes {tuple(part.batch)}, expected {wanted}")
    layout = start.layout
    if part.layout is not layout:
        for name, entry in layout.entries.items():
            found = part.layout.entries.get(name)
            if found is None or found.shape != entry.shape:
                has = "no such tensor" if found is None else f"the shape {tuple(found.shape)}"
                raise ValueError(f"{where}: the phase trains {name} {tuple(entry.shape)}, and the part has {has}")
    elif part is start or isinstance(part, Combination) or _padded(part):
        return part  # nothing reads the padding of the start and of a combination
    return layout.zeros(*part.batch).to(part.device).copy_(part, names=layout.entries)


def _padded(part: Params) -> bool:
    """Whether the padding of parameters is 0."""
    return not any(bool(b[..., p].any()) for b, p in zip(part.buffers, _padding(part.layout)) if len(p))


@functools.lru_cache(maxsize=16)
def _padding(layout: Layout) -> tuple[Tensor, ...]:
    """Return the positions of each buffer that belong to no tensor."""
    free = [torch.ones(length, dtype=torch.bool) for length in layout.lengths]
    for entry in layout.entries.values():
        free[entry.buffer][entry.offset : entry.offset + entry.numel] = False
    return tuple(positions.nonzero()[:, 0] for positions in free)
