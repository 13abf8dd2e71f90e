"""FLASC: LoRA under sparse communication, both ways; everything trained is dense.

    M      the floor(d_down P) largest |w| of all P trained entries together, chosen anew each round; w masked to M goes down
    mean   of what comes up: of each client's change the floor(d_up P) largest (clients/flasc.py)
    w      <- server optimiser along g = -mean: Adam, or SGD with lr 1, w <- w + mean

Kuo, Raje, Rajesh, Smith 2024, arXiv:2406.05233; `cellm` (arXiv:2407.20557, withdrawn, of the same text as Raje's thesis,
CMU-CS-24-123) is an alias. The mean is uniform over the cohort. The server's w is never pruned: an entry outside M keeps its value
if nobody sends it. M * w is what is evaluated and saved. Of equal magnitudes the first by index stays. d P is rounded down, with d
as the decimal it is written as. There is no error feedback. `decay` multiplies both densities each round (at least one entry is sent).
Differs from the release: its AdamW decays weights by .01, here optimiser.weight_decay is 0; densities by tiers of devices are left out.
Positions are counted: min(k ceil(log2 P), P) bits beside k values, none at density 1; uplink_values_bytes and
downlink_values_bytes are the values alone, the figures that the paper gives.
Neutral: down=up=1, SGD with lr=1 is FedAvg with uniform weights, to the bit; with Adam it is FedOpt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fl.communication.codecs.top_k import TopK, keep_largest
from fl.method.messages import Broadcast
from fl.method.optimiser import SGD, Adam, Optimiser
from fl.method.reduction import SparseMean
from fl.method.strategy import Exchange, FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.sparse import Sparse


@dataclass(frozen=True)
class State:
    w: Params  # dense
    moments: dict[str, Params]  # the optimiser's
    steps: int
    positions: Tensor | None = None  # of the mask, where it is fixed


@register("strategy", "flasc", "cellm")
@dataclass(frozen=True, kw_only=True)
class FLASC(Strategy):
    down: float = 0.25
    up: float = 0.25
    decay: float = 1.0
    lr: float = 1e-3
    optimiser: Optimiser = field(default_factory=Adam)

    client: ClassVar[str] = "flasc"
    example_config: ClassVar[dict[str, Any]] = {}
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"down": 1.0, "up": 1.0, "lr": 1.0, "optimiser": SGD()}, fedavg={"weights": "uniform"}
    )

    def __post_init__(self):
        for name in ("down", "up", "decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in (0, 1]; 1 sends all entries")
        if not self.optimiser.batched:
            raise ValueError("optimiser: 'torch' keeps what no checkpoint can hold; take sgd or adam")

    def densities(self, round_: int) -> tuple[float, float]:
        return self.down * self.decay**round_, self.up * self.decay**round_

    def init(self, model, ctx):
        return State(model, self.optimiser.state(model), 0)

    def masked(self, state: State) -> Sparse | Params:
        """w on the mask of the round to come; all of it at density 1."""
        if self.densities(state.steps)[0] == 1:
            return state.w
        return keep_largest(state.w.compact(), self.densities(state.steps)[0])

    def model(self, state):
        masked = self.masked(state)
        return masked if isinstance(masked, Params) else Params.expand(state.w.layout, masked.dense())

    def broadcast(self, state, ctx):
        return Broadcast(shared={"model": self.masked(state)}, config={"up": self.densities(state.steps)[1]})

    def reduction(self, state, ctx):
        return SparseMean("uniform")

    def round(self, state, ctx):
        broadcast = self.broadcast(state, ctx)
        outcome = yield Exchange(broadcast, self.reduction(state, ctx))
        model, up = broadcast.shared["model"], TopK(ratio=broadcast.config["up"]).num_kept(state.w.numel)
        metrics = {
            "downlink_values_bytes": len(ctx.cohort) * (model if isinstance(model, Params) else model.values).nbytes,
            "uplink_values_bytes": len(outcome.clients) * up * state.w.compact().itemsize,
        }
        return (state if outcome.value is None else self.step(state, outcome.value, ctx)[0]), metrics

    def step(self, state, mean, ctx):
        w, moments = state.w.clone(), {name: moment.clone() for name, moment in state.moments.items()}
        self.optimiser.step(w, Params.expand(w.layout, -mean), moments, self.lr, state.steps)
        return State(w, moments, state.steps + 1, state.positions), {}
