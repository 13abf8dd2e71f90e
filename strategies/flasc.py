"""FLASC: LoRA with sparse communication in both directions; training is dense.

    M   the floor(d_down P) largest |w| of all P trained entries together, chosen in each round; w masked to M goes down
    mean   of the clients' changes, each cut to its floor(d_up P) largest entries (clients/flasc.py)
    w      <- server optimiser along the mean: Adam, or plain with lr 1, w <- w + mean

Kuo, Raje, Rajesh, Smith 2024, arXiv:2406.05233; `cellm` (arXiv:2407.20557, withdrawn, the same text as Raje's thesis,
CMU-CS-24-123) is an alias.  The mean is uniform over the cohort.  The server's w is never pruned: an entry outside M
keeps its value if no client sends it.  M * w is evaluated and saved.  Among equal magnitudes the first entries are
kept.  d P is rounded down, with d as the decimal in the configuration.  There is no error feedback. Positions are
counted: min(k ceil(log2 P), P) bits beside k values, none at density 1; uplink_values_bytes and downlink_values_bytes
count the values only, as the paper's figures do.
Differs from the release: its AdamW decays weights by .01, here Adam's weight_decay is 0; there are no densities by
tiers of devices.
Equals FedAvg: down=up=1, a plain server optimiser and lr=1: FedAvg with uniform weights, equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fl import (
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    PseudoGradient,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Sparse,
    SparseMean,
    Strategy,
    TopK,
    checks,
    keep_largest,
    register,
)


@dataclass(frozen=True)
class State:
    """The dense model, the server optimiser's state, and the positions of the mask if it is fixed."""

    w: Params
    optimiser: OptimiserState
    positions: Tensor | None = None


@register("strategy", "flasc", "cellm")
@dataclass(frozen=True, kw_only=True)
class FLASC(Strategy):
    """Send the largest entries of the model down and the largest entries of each change up.

    Args:
        down: density of the model that goes down, in (0, 1]. 1 is FedAvg.
        up: density of the change that comes up, in (0, 1]. 1 is FedAvg.
        decay: factor of both densities per round, in (0, 1]; at least one entry is sent. 1 keeps them.
        lr: factor of each step of the server. 1 with a plain server optimiser is FedAvg.
        server_optimiser: how the server moves along the mean update. Default: Adam with bias correction, as in the
            release.
    """

    down: float = 0.25
    up: float = 0.25
    decay: float = 1.0
    lr: float = 1e-3
    server_optimiser: ServerOptimiser = PseudoGradient()

    client: ClassVar[str] = "flasc"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"down": 1.0, "up": 1.0, "lr": 1.0, "server_optimiser": Plain()}, fedavg={"weights": "uniform"}
    )

    def __post_init__(self) -> None:
        checks.within("(0, 1]", down=self.down, up=self.up, decay=self.decay, hint="1 sends all entries")

    def densities(self, round_: int) -> tuple[float, float]:
        """Return the densities (down, up) after `round_` steps of the server."""
        return self.down * self.decay**round_, self.up * self.decay**round_

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.server_optimiser.init(model))

    def masked(self, state: State) -> Sparse | Params:
        """Return w on the mask of the next round; the whole of w at density 1."""
        down, _ = self.densities(state.optimiser.steps)
        return state.w if down == 1 else keep_largest(state.w.compact(), down)

    def model(self, state: State) -> Params:
        masked = self.masked(state)
        return masked if isinstance(masked, Params) else Params.expand(state.w.layout, masked.dense())

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast(shared={"model": self.masked(state)}, config={"up": self.densities(state.optimiser.steps)[1]})

    def reduction(self, state: State, ctx: ServerContext) -> SparseMean:
        return SparseMean("uniform")

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        broadcast, (_, density) = self.broadcast(state, ctx), self.densities(state.optimiser.steps)
        outcome = yield Exchange(broadcast, self.reduction(state, ctx))
        model, up = broadcast.shared["model"], TopK(ratio=density).num_kept(state.w.numel)
        metrics = {
            "downlink_values_bytes": len(ctx.cohort) * (model if isinstance(model, Params) else model.values).nbytes,
            "uplink_values_bytes": len(outcome.clients) * up * state.w.compact().itemsize,
        }
        return (state if outcome.value is None else self.step(state, outcome.value, ctx)[0]), metrics

    def step(self, state: State, reduced: Tensor, ctx: ServerContext) -> tuple[State, Metrics]:
        mean = Params.expand(state.w.layout, reduced)
        w, optimiser = self.server_optimiser.step(state.w, mean, state.optimiser, self.lr)
        return replace(state, w=w, optimiser=optimiser), {}
