"""FedETF: FedAvg of a model whose classifier is a fixed frame, the same for all clients (`clients/fedetf.py`).

    (phi, W, b, t) <- mean_i (phi, W, b, t)_i,    weighted by samples;    scores = t E^T z / |z|,  z = W phi(x) + b

Li, Shang, He, Lin, Wu 2023, arXiv:2303.10058.  Local heads cannot drift apart, because there is one head and it does
not move.  Traffic per client and round: |phi| + h k + k + 1 floats each way (h: width of phi), which is FedAvg's and
one more if k = C.  E comes from the seed and costs no bytes.
Differs from the paper: the default loss is the plain one.  The paper's balanced softmax is the client
`fedetf_balanced`; with few samples per class it was worse here and noisier (experiments/fedetf).
Equals FedAvg: no setting (with an ordinary head it is fedavg).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fl import Params, ServerContext, register

from .fedavg import State
from .partial import Partial


@register("strategy", "fedetf")
@dataclass(frozen=True, kw_only=True)
class FedETF(Partial):
    """Average everything but the frame, which is never trained."""

    private: ClassVar[None] = None  # type: ignore[misc]  # it is the frame

    client: ClassVar[str] = "fedetf"

    def default_private(self, model: Params, module: nn.Module) -> list[str]:
        return [name for name in model if name.startswith("etf.frame.")]

    def init(self, model: Params, ctx: ServerContext) -> State:
        if not self.default_private(model, ctx.module):
            raise ValueError(
                "name: fedetf needs the frame etf.frame.* in the model; use client: fedetf or fedetf_balanced, and "
                "leave the frame out of model.freeze"
            )
        return super().init(model, ctx)
