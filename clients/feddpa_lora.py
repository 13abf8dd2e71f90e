"""FedDPA-LoRA: an adapter that all clients share, and a private one that is trained and used beside it.

    shared:    (A, B, head) <- local steps from the received values, on W;       send local minus received
    private:   (A_i, B_i)   <- local steps from its own values, on W + w s B A of the received ones;        keep

Yang, Long, Shen, Jiang, Blumenstein 2024, arXiv:2403.19211.  Each of the two trains for the whole budget.  The client
predicts with both; a client that has not trained yet, and the server, with the shared one alone at full weight.
Differs from the paper: one w for all samples, and the private adapter enters at full weight (a smaller weight would
be another scale of B_i).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fl import ClientContext, Initial, Params, TrainingInputs, Trainings, Tree, adapter, checks, join, register

from .lora import LoRA


@register("client", "feddpa_lora")
@dataclass(frozen=True, kw_only=True)
class FedDPALoRA(LoRA):
    """Local training of a shared and a private adapter.

    Args:
        weight: weight w of the shared adapter beside the private one, in [0, 1].
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1]", weight=self.weight, hint="0 leaves the shared adapter out of predictions")

    def first_state(self, inputs: TrainingInputs) -> Tree:
        initial = inputs.initial.trained
        return initial.select([name for pair in adapter.layers(initial).values() for name in pair])

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.state if inputs.training == "private" else super().start(inputs)

    def trainings(self, inputs: TrainingInputs) -> Trainings:
        shared = yield inputs
        private = yield replace(inputs, training="private", initial=self.beside(inputs))
        return self.sent(shared.delta, shared.received), private.params

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        if ctx.state is None:
            return super().predictor(ctx)
        return replace(ctx, initial=self.beside(self.inputs(ctx))).net(ctx.state)

    def beside(self, inputs: TrainingInputs) -> Initial:
        """Return the tensors beside the private adapter: W + w s B A of the received ones, and the received head."""
        received, initial, changes = join(*inputs.received.values()), inputs.initial, {}
        assert inputs.module is not None
        for layer, (a, b) in adapter.layers(initial.trained).items():
            share = self.weight * adapter.scale(inputs.module, layer)
            changes[f"{layer}.W"] = adapter.product(received[a], received[b], share)
        trained = initial.trained.replace({name: received[name] for name in initial.trained})
        return replace(initial, trained=trained, frozen=adapter.folded(initial.frozen, Params.of(changes)))
