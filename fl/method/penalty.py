"""Quadratic penalties on the parameters of local training, such as proximal terms and control variates.

penalty(w) = strength/2 |w - centre|^2 + <slope, w>        gradient: strength (w - centre) + slope
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fl.tensors.params import Params


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
