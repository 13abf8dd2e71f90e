"""FedSelect's clients: single entries of the model become the client's own, and are trained apart from the shared ones.

    theta <- own entries where k_i = 1, received entries where k_i = 0
    `alternations` times:  local training of the entries with k_i = 1, then of those with k_i = 0
    send  theta - received where k_i = 0;    keep theta
    every `every` participations, per tensor with m entries and s shared ones:
        the  min(floor(share s), floor(limit m) - (m - s))  shared entries of largest |theta - ref| become own
        (among equal ones the first, none with 0);  ref <- theta

Tamirisa, Xie, Bao, Zhou, Arel, Shamsian 2024, arXiv:2404.02478.  ref starts as the run's first model.  Both trainings
pass through the whole model, and the gradient of the other entries is set to 0.  Optimisers must leave entries without
gradient in place: weight decay is refused.  `clip` bounds the norm of the masked gradient.  The mask is kept in
ceil(d / 8) bytes. The positions of new own entries are sent once, packed, in the group "grown".  A client without
samples gets no own entries.
Differs from the release: the cut takes exactly the number above, also among equal changes; tensors without "weight" in
their names grow, too (`grows`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl import (
    ClientContext,
    LocalTraining,
    Optimiser,
    Params,
    Phase,
    Reply,
    Sparse,
    StepContext,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    elementwise,
    match,
    pack_mask,
    pack_positions,
    register,
    unpack_mask,
)


def grown(change: Tensor, own: Tensor, share: float, limit: float) -> Tensor:
    """Return the mask of one tensor after it has grown, bool (m,).

    Shares count as the decimal numbers that the user wrote: .29 of 100 is 29.

    >>> grown(torch.tensor([1.0, -3.0, 0.0, 3.0]), torch.tensor([False, False, False, False]), 0.5, 1.0).tolist()
    [False, True, False, True]

    Args:
        change: by how much each entry has moved, (m,).
        own: the mask before, bool (m,).
        share: share of the shared entries that become own.
        limit: largest share of own entries.
    """
    m, shared = len(own), int((~own).sum())
    count = min(_part(share, shared), _part(limit, m) - (m - shared))
    largest = change.abs().masked_fill(own, 0).sort(descending=True, stable=True)
    chosen = largest.indices[: max(count, 0)][largest.values[: max(count, 0)] > 0]
    return own.index_fill(0, chosen, True)


def _part(share: float, n: int) -> int:
    """Return floor(share n)."""
    return int(Decimal(str(share)) * n)


def moves_without_gradient(optimiser: Optimiser) -> bool:
    """Return whether steps along a gradient of 0 change a parameter, as weight decay does."""
    w, zero = (Params.of({"w": torch.full((1,), value)}) for value in (1.0, 0.0))
    memory = optimiser.state(w)
    for t in range(2):
        optimiser.step(w, zero, memory, 0.1, t)
    return float(w["w"]) != 1.0


@register("client", "fedselect")
@dataclass(frozen=True, kw_only=True)
class FedSelect(LocalTraining):
    """Local training of own and of shared entries, in turn. `epochs` or `steps` are those of each of the two.

    Args:
        share: share of a tensor's shared entries that become own when the mask grows, in [0, 1].
        limit: largest share of a tensor's entries that are own, in [0, 1]. 0 is FedAvg.
        every: participations between two growths of the mask, at least 1.
        alternations: how often own and shared entries are trained in turn in a round, at least 1.
        grows: glob patterns of the tensors that have own entries. Default: all.
        ref: what changes are measured from: the client's model at the last growth (`growth`), or at the start of the
            round (`round`).
    """

    share: float = 0.25
    limit: float = 0.5
    every: int = 3
    alternations: int = 1
    grows: tuple[str, ...] | None = None
    ref: Literal["growth", "round"] = "growth"
    lr: float = 0.05

    sends: ClassVar[tuple[str, ...]] = ("model", "grown")
    receives: ClassVar[tuple[str, ...]] = ("part",)
    one_at_a_time: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1]", share=self.share)
        checks.within("[0, 1]", limit=self.limit, hint="0 is FedAvg")
        checks.at_least(1, every=self.every, alternations=self.alternations)
        checks.one_of(("growth", "round"), ref=self.ref)
        if self.trains is not None:
            raise ValueError("trains: fedselect chooses the trained entries; fix tensors with model.freeze")
        if self.limit and moves_without_gradient(self.optimiser):
            raise ValueError(
                f"optimiser: {self.optimiser} moves entries whose gradient is 0, so masked entries would not stay in "
                "place; set weight_decay: 0"
            )

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        if not self.limit:  # FedAvg has one phase
            return (phase,)
        return (replace(phase, name="own"), replace(phase, name="shared")) * self.alternations

    def first_state(self, inputs: TrainingInputs) -> Tree:
        if not self.limit:
            return None
        model = inputs.initial.trained
        match(model, self.grows or ("*",))  # a pattern that matches nothing is an error before any training
        first = {"model": model, "own": pack_mask(torch.zeros(model.numel, dtype=torch.bool)), "participations": 0}
        return first | ({"ref": model} if self.ref == "growth" else {})

    def start(self, inputs: TrainingInputs) -> Params:
        layout = inputs.initial.trained.layout
        if "part" not in inputs.received:  # the server's evaluation has no client, and so no own entries
            return inputs.received["model"]
        if inputs.state is None:
            return Params.expand(layout, inputs.received["part"])
        vector = inputs.state["model"].compact().clone()
        vector[~unpack_mask(inputs.state["own"], len(vector))] = inputs.received["part"]
        return Params.expand(layout, vector)

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        if at.state is None:
            return grad
        own = unpack_mask(at.state["own"], grad.numel)
        trained = Params.expand(grad.layout, (own if at.phase.name == "own" else ~own).to(grad.buffers[0].dtype))
        return elementwise(torch.mul, grad, trained)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        if end.state is None:
            return {"model": end.delta, "grown": torch.empty(0, dtype=torch.uint8)}, None
        change, d = end.delta.compact(), end.delta.numel
        own, times = unpack_mask(end.state["own"], d), end.state["participations"] + 1
        state = {**end.state, "model": end.params, "participations": times}
        positions, after = (~own).nonzero()[:, 0], own
        if times % self.every == 0 and end.num_examples:
            after = self.after_growth(end, own)
            state = state | {"own": pack_mask(after)} | ({"ref": end.params} if self.ref == "growth" else {})
        new = (after & ~own).nonzero()[:, 0]
        return {"model": Sparse(positions, change[positions], d), "grown": pack_positions(new, d)}, state

    def after_growth(self, end: TrainingResult, own: Tensor) -> Tensor:
        """Return the mask after it has grown, bool (d,), from the mask `own` before."""
        change = end.delta if self.ref == "round" else end.params - end.state["ref"]
        after, grows = own.clone(), set(match(change, self.grows or ("*",)))
        begin = 0
        for name, entry in change.layout.entries.items():
            part = slice(begin, begin := begin + entry.numel)
            if name in grows:
                after[part] = grown(change[name].reshape(-1), own[part], self.share, self.limit)
        return after

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        if reply.state is None:
            part = ctx.received["part"] + reply.update.groups["model"].compact()
        else:
            model = reply.state["model"].compact()
            part = model[~unpack_mask(reply.state["own"], len(model))]
        return replace(ctx, received={**ctx.received, "part": part}, state=reply.state)
