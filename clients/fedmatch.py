"""FedMatch's client: labels move one part of each weight, pseudo-labels the other.    the model's weights are s + u

    labelled steps, on s only:      labelled_weight * cross-entropy(f(x), y)
    unlabelled steps, on u only:    consistency * (agree + 1/H sum_j KL(p_j || softmax f(A(x)))) + l1 |u| + l2 |s - u|^2
    agree = [max p >= threshold] cross-entropy(f(A(x)), most votes of p, p_1, ..., p_H)

p are the local model's probabilities for a(x), p_j those of helper j, a model of another client that the server sends
(`strategies/fedmatch.py`); all without gradient.  A tie of votes goes to p.  u is the part `psi` of the model.
Jeong, Yoon, Yang, Hwang 2021, arXiv:2006.12097.
Differs from the paper: u starts at zero; the distance to helpers is that of A(x), which has a gradient already; l2
is .1, because the authors' 10 belongs to learning rates of .001 (lr * l2 below 1/2 keeps u bounded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import Batch, Extended, Phase, StepContext, Task, TrainingInputs, checks, register

from .fedlwf import distillation
from .semi_supervised import WithThreshold

PSI = "psi."


class WithPsi(Extended):
    """A model whose weights are the sum of its own tensors and of the part `psi`."""

    def forward(self, x: Tensor) -> Any:
        """Return the outputs under the sums."""
        tensors = dict(self.named_parameters())
        missing = [name for name in tensors if not name.startswith(PSI) and PSI + name not in tensors]
        if missing:
            raise ValueError(f"fedmatch has no second part for {missing[0]} of an adapter; leave model.adapter out")
        sums = {f"model.{name}": t + tensors[PSI + name] for name, t in tensors.items() if not name.startswith(PSI)}
        return torch.func.functional_call(_Original(self), sums, (x,))


class _Original(nn.Module):
    """The forward pass of an extended model without its part."""

    def __init__(self, model: Extended):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.original(x)


def zeros_for(named: Iterable[tuple[str, Tensor]]) -> nn.Module:
    """Return a module with a parameter of zeros for each tensor, under the same dotted name."""
    root = nn.Module()
    for name, tensor in named:
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros_like(tensor)))
    return root


def voted(local: Tensor, helpers: Iterable[Tensor]) -> Tensor:
    """Return the class with most votes of the local model and its helpers, (B,), from probabilities (B, C) each.

    >>> a, b, c = torch.eye(3)[:, None]
    >>> voted(a, [b, b]).tolist(), voted(a, [b, c]).tolist()
    ([1], [0])
    """
    classes = local.shape[-1]
    votes = 1.5 * F.one_hot(local.argmax(-1), classes)
    for p in helpers:
        votes = votes + F.one_hot(p.argmax(-1), classes)
    return votes.argmax(-1)


@register("client", "fedmatch")
@dataclass(frozen=True, kw_only=True)
class FedMatch(WithThreshold):
    """Steps on labels and on pseudo-labels, each on its own part of the weights.

    Args:
        labelled_weight: factor of the loss on labels, positive.
        consistency: factor of the loss on pseudo-labels and helpers, at least 0.
        l1: weight of |u|_1, at least 0.
        l2: weight of |s - u|^2, at least 0; lr * l2 has to be below 1/2.
    """

    threshold: float = 0.75
    labelled_weight: float = 10.0
    consistency: float = 0.01
    l1: float = 1e-4
    l2: float = 0.1

    receives: ClassVar[tuple[str, ...]] = ("model", "helpers")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(labelled_weight=self.labelled_weight)
        checks.not_negative(consistency=self.consistency, l1=self.l1, l2=self.l2)
        if self.trains is not None:
            raise ValueError("trains: fedmatch trains one part of each weight in each phase; leave it out")
        if any(phase.lr * self.l2 >= 0.5 for phase in self.phases(0, 1)[1:]):
            raise ValueError(f"l2: {self.l2} with lr: {self.lr} makes u diverge; keep lr * l2 below 0.5")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithPsi(module, "psi", zeros_for(list(module.named_parameters())))

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        parts = [[name for name in self.start(inputs) if name.startswith(PSI) is psi] for psi in (False, True)]
        return tuple(replace(phase, trains=tuple(part)) for phase, part in zip(self.phases(round_, rounds), parts))

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        loss = super().objective(net, batch, at, task)
        return loss if at.phase.view == "unlabelled" else self.labelled_weight * loss

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        assert isinstance(net, nn.Module)  # trained in the loop
        with torch.no_grad():
            p = net(batch["x"]).softmax(-1)
        theirs = [at.under(helper, batch["x"]) for helper in at.received.get("helpers", ())]  # evaluations send none
        outputs = net(batch["strong"])
        label = voted(p, [other.softmax(-1) for other in theirs])
        loss = task.loss(outputs, {"y": label}) * (p.amax(-1) >= self.threshold)
        for other in theirs:
            loss = loss + distillation(outputs, other, 1.0) / len(theirs)
        return self.consistency * loss + self.decomposition_penalty(dict(net.named_parameters()))

    def decomposition_penalty(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return l1 |u|_1 + l2 |s - u|^2 of the model's tensors by name, ()."""
        pairs = [(tensors[name.removeprefix(PSI)], u) for name, u in tensors.items() if name.startswith(PSI)]
        size = sum(u.abs().sum() for _, u in pairs)
        apart = sum((s.detach() - u).square().sum() for s, u in pairs)
        return torch.as_tensor(self.l1 * size + self.l2 * apart)
