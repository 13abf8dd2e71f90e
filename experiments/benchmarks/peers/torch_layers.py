"""A workload's model and its training in hand-written torch: the reference, also used by other contestants on torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from protocol import UNKNOWN, Workload
from torch import nn

torch.set_num_threads(1)

LAYERS = {"flatten": nn.Flatten, "linear": nn.Linear, "relu": nn.ReLU, "conv": nn.Conv2d, "pool": nn.MaxPool2d}


def module(work: Workload) -> nn.Sequential:
    """Build the model with its initial weights."""
    if work.layers is None:
        raise NotImplementedError(UNKNOWN)
    net = nn.Sequential(*(LAYERS[name](*numbers) for name, *numbers in work.layers))
    net.load_state_dict({name: torch.from_numpy(weight.copy()) for name, weight in work.first.items()})
    return net.to(work.device)


def samples(work: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x, y) on the workload's device."""
    return torch.from_numpy(work.x).to(work.device), torch.from_numpy(work.y).to(work.device)


def arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """Return the trained parameters as arrays."""
    return {name: w.detach().cpu().numpy() for name, w in net.named_parameters() if w.requires_grad}


class Descent:
    """Local training: one module, foreach updates, no optimiser object, no `.item()`."""

    def __init__(self, net: nn.Module, lr: float, batch: int, epochs: int):
        self.net, self.lr, self.batch, self.epochs = net, lr, batch, epochs
        self.leaves = [p for p in net.parameters() if p.requires_grad]
        self.weights = [p.detach() for p in self.leaves]  # views of the same memory

    def client(self, x: torch.Tensor, y: torch.Tensor, shuffle: bool) -> None:
        """Train on one client's samples."""
        for _ in range(self.epochs):
            order = torch.randperm(len(x)) if shuffle else torch.arange(len(x))
            for a in range(0, len(x), self.batch):
                rows = order[a : a + self.batch]
                loss = F.cross_entropy(self.net(x[rows]), y[rows])
                torch._foreach_add_(self.weights, torch.autograd.grad(loss, self.leaves), alpha=-self.lr)

    def round(self, clients: Sequence[tuple[Any, Any]], shuffle: bool) -> None:
        """Train a round of federated averaging over the clients' (x, y), weighted by samples."""
        received = [w.clone() for w in self.weights]
        total, examples = [torch.zeros_like(w) for w in self.weights], 0
        for x, y in clients:
            torch._foreach_copy_(self.weights, received)
            self.client(x, y, shuffle)
            torch._foreach_add_(total, torch._foreach_sub(self.weights, received), alpha=len(x))
            examples += len(x)
        torch._foreach_copy_(self.weights, received)
        torch._foreach_add_(self.weights, total, alpha=1 / examples)
