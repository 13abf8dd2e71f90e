"""FedRep: several epochs on the private head with the received body, then the body with that head.

    v_i <- `head_epochs` of steps, u as received
    u <- `epochs` (or `steps`) of steps, v_i fixed;  send u - received u, keep v_i

Collins, Hassani, Mokhtari, Shakkottai 2021, arXiv:2102.07078.  Both phases use one optimiser and batch size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fl import LRSchedule, Phase, TrainingInputs, checks, register

from .partial import Partial, shared_names


@register("client", "fedrep")
@dataclass(frozen=True, kw_only=True)
class FedRep(Partial):
    """Local training of the head, then of the body.

    Args:
        head_epochs: epochs on the head, at least 1. `epochs` or `steps` are those on the body.
        head_lr: learning rate of the head, a number or a schedule. Default: `lr`.
    """

    head_epochs: int = 10
    head_lr: float | LRSchedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(head_epochs=self.head_epochs, hint="fedbabu is the method that does not train the head")
        if self.trains is not None:
            raise ValueError("trains: fedrep's two phases choose the trained tensors; fix others with model.freeze")

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (body,) = super().phases(round_, rounds)
        rate = self.lr if self.head_lr is None else self.head_lr
        head = replace(body, epochs=self.head_epochs, steps=None, name="head")
        return head.at_rate(rate, round_, rounds), replace(body, name="body")

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        head, body = self.phases(round_, rounds)
        if inputs.state is None:
            return (body,)
        return replace(head, trains=tuple(inputs.state)), replace(body, trains=tuple(shared_names(inputs)))
