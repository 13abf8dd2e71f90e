"""Gradients of many clients by one ordinary pass of the module over all their samples ("flat").

    (A, B, ...) -> (A B, ...) -> stacked module -> (A B, K) -> losses (A, B) -> sum of weighted means -> autograd

In the stacked module only the layers with tensors that differ between clients work client by client. Everything else is
the module's own, so that a frozen model is one large product for all clients.

`Flat.covers` runs the module and the stacked module on samples of two clients and compares the outputs. This finds
weights that are used outside their layer, and samples of one batch that influence each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl.execution.training.chunk import Chunk, ChunkMasks
from fl.execution.training.customised import own_loss
from fl.execution.training.stacked_module import StackedModule, Unstackable
from fl.execution.training.view_cache import ViewCache
from fl.method.local_training import LocalTraining
from fl.method.training_values import StepContext
from fl.models.binding import bind, module_params
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import Params

PROBE = 2  # clients, and samples of each, for the comparison of both modules
TOLERANCE = 1e-3  # relative to the largest output


class Flat:
    """Gradients for the models and methods that `covers` accepts; see `chunk.Gradients`."""

    takes_views: ClassVar[bool] = False

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task, x: Tensor) -> str | None:
        """Why clients cannot be trained flat, or `None`. x: some inputs."""
        if reason := own_loss(algorithm):
            return reason
        if len(x) < PROBE:
            return "there are too few samples to test it"
        with _without_dropout(module), torch.no_grad():
            try:
                together, one_by_one = _probe(module, x[:PROBE])
            except Unstackable as error:
                return str(error)
            except Exception as error:  # a module may do anything with more samples or with replaced layers
                return f"stacked layers raise {type(error).__name__}: {error}"
        largest = one_by_one.abs().max()
        if together.shape != one_by_one.shape or (together - one_by_one).abs().max() > TOLERANCE * largest:
            return "stacked layers give other outputs than each client's model alone"
        return None

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        self.task = chunk.task
        bind(chunk.module, local.row(0), chunk.initial)
        differing = [name for name in local if name not in theta and (local[name] != local[name][:1]).any()]
        self.frozen = {name: local[name] for name in differing}
        self.masks = ChunkMasks(chunk, index)
        self.stacked = StackedModule(chunk.module.train(index is not None), [*theta, *differing])
        self.views: ViewCache[dict[str, Tensor]] = ViewCache(dict)
        self.sgd_params: dict[str, Tensor] = {}

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        grads, losses = self._gradients(self.views.of(params), batch, weights, masks)
        torch._foreach_copy_([*self.views.of(grad).values()], grads)
        return losses

    def begin_sgd(self, theta: Params) -> None:
        self.sgd_params = {name: view.contiguous() for name, view in self.views.of(theta).items()}

    def end_sgd(self, theta: Params) -> None:
        torch._foreach_copy_([*self.views.of(theta).values()], [*self.sgd_params.values()])

    def sgd_step(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], lr: float) -> Tensor:
        params = {name: tensor[: len(weights)] for name, tensor in self.sgd_params.items()}
        grads, losses = self._gradients(params, batch, weights, masks)
        torch._foreach_add_([*params.values()], grads, alpha=-lr)
        return losses

    def _gradients(
        self, views: Mapping[str, Tensor], batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """(gradients in the order of `views`, losses (A, B))."""
        count = len(weights)
        leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
        self.stacked.set(leaves | {name: tensor[:count] for name, tensor in self.frozen.items()}, count)
        self.masks.layers.set([mask.flatten(0, 1) for mask in masks])
        samples = {name: array.flatten(0, 1) for name, array in batch.items()}
        losses = self.task.objective(self.stacked, samples).view_as(weights)
        return torch.autograd.grad((losses * weights).sum(), [*leaves.values()]), losses.detach()


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context."""
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)


def _probe(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (A B, ...) for the samples x (B, ...) of A clients with different tensors: stacked, and one by one."""
    model = module_params(module)
    different = model.layout.empty(PROBE)
    for name, tensor in model.items():
        for client in range(PROBE):
            noise = torch.randn(tensor.shape, generator=random.torch_generator(client, name))
            different[name][client].copy_(tensor + 0.1 * noise)
    stacked = StackedModule(module, model)
    stacked.set(different, PROBE)
    own = [{name: different[name][client] for name in model} for client in range(PROBE)]
    one_by_one = [torch.func.functional_call(module, tensors, (x,)) for tensors in own]
    return stacked(torch.cat([x] * PROBE)), torch.cat(one_by_one)


def saved_activations(module: nn.Module, x: Tensor) -> int:
    """Elements per sample that the module saves for the backward pass, without its parameters."""
    parameters = {p.data_ptr() for p in module.parameters()}
    found: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            found[tensor.data_ptr()] = tensor
        return tensor

    with _without_dropout(module), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        outputs = module(x)
    assert outputs.requires_grad  # the saved tensors live as long as the outputs
    return sum(tensor.numel() for tensor in found.values()) // len(x)
