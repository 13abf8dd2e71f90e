"""Hand-written gradients of a stack of linear layers for many clients at once.

    z_l = h_{l-1} W_l^T + b_l,  h_l = phi(z_l) * mask    G = dL/dz_L (softmax - onehot, or output - y), weighted
    dW_l = G_l^T h_{l-1},  db_l = sum_B G_l,  G_{l-1} = (G_l W_l) * mask * phi'(z_{l-1})
    sum_B (dW_l of one sample)^2 = (G_l^2)^T h_{l-1}^2

Two batched matrix products per layer replace a graph per client. Covers nn.Sequential of Flatten, Linear, ReLU, Tanh,
Sigmoid, Dropout, FeatureNorm and SampleNorm under cross-entropy or squared error; Dropout may come before the first
Linear. Frozen weights and biases have no gradient; the pass ends at the lowest trained layer. `LinearStack.covers` says
whether it covers a model. The gradients of both norms are in `feature_norm_gradient` and `sample_norm_gradient`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl.execution.training.chunk import Chunk, ChunkMasks
from fl.execution.training.customised import own_objective
from fl.execution.training.own_losses import OwnLosses
from fl.execution.training.view_cache import ViewCache
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import LossOfOutputs
from fl.method.training_values import StepContext
from fl.models.dropout import Dropout
from fl.models.normalise import FEATURE_EPS, LAYER_EPS, FeatureNorm, SampleNorm
from fl.tasks.task import Task
from fl.tensors.params import Params

Layer = tuple[Tensor, Tensor | None]  # weights (A, out, in), biases (A, out)
Backward = Callable[[Tensor], Tensor]  # the gradient after a layer without parameters -> the gradient before it
# (outputs, inputs of the last layer, batch, weights) -> (gradients in both, losses), see `OwnLosses`
Losses = Callable[[Tensor, Tensor, Mapping[str, Tensor], Tensor], tuple[Tensor, Tensor | None, Tensor]]


@dataclass(frozen=True)
class _Names:
    """Names of a layer's tensors, whether these are trained, and the layers without parameters after it."""

    weight: str
    bias: str | None
    trained: tuple[bool, bool]
    after: tuple[nn.Module, ...]


class LinearStack:
    """Gradients for the models that `covers` accepts; see `chunk.Gradients`."""

    takes_views: ClassVar[bool] = False

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task) -> str | None:
        """Why this backend cannot compute the gradients, or `None`."""
        if reason := own_objective(algorithm):
            return reason
        if isinstance(algorithm, LossOfOutputs) and algorithm.features is not None:
            return f"{type(algorithm).__name__} compares the outputs of the layer {algorithm.features!r}"
        if task.kernel is None:
            return f"{type(task).__name__} has a loss that is not hand-written"
        if type(task).objective is not Task.objective:
            return f"{type(task).__name__} has its own objective"
        if not isinstance(module, nn.Sequential):
            return f"the model is a {type(module).__name__}, not an nn.Sequential"
        started = False
        for child in module:
            if isinstance(child, nn.Linear):
                started = True
            elif isinstance(child, (nn.ReLU, nn.Tanh, nn.Sigmoid, Dropout, FeatureNorm, SampleNorm)):
                if not started and not isinstance(child, Dropout):
                    return f"the model has a {type(child).__name__} before the first Linear layer"
            elif hasattr(child, "base_layer"):
                return "the model has adapters"
            elif not isinstance(child, nn.Flatten) or started:
                return f"the model has a {type(child).__name__} layer"
        return None if started and isinstance(module[-1], nn.Linear) else "the model does not end in a Linear layer"

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        layers: list[tuple[str, str | None, list[nn.Module]]] = []
        children = list(chunk.module._modules.values())  # children() skips a module's second use
        for name, child in chunk.module._modules.items():
            if isinstance(child, nn.Linear):
                layers.append((f"{name}.weight", f"{name}.bias" if child.bias is not None else None, []))
            elif layers and child is not None:
                layers[-1][2].append(child)
        self.layers = [_Names(w, b, (w in theta, b in theta), tuple(after)) for w, b, after in layers]
        self.lowest = next(k for k, layer in enumerate(self.layers) if any(layer.trained))
        names = [name for layer in self.layers for name in (layer.weight, layer.bias) if name and name not in theta]
        sources = (local, chunk.initial.trained, chunk.initial.frozen)
        self.frozen = {name: next(source[name] for source in sources if name in source) for name in names}
        first = next(i for i, child in enumerate(children) if isinstance(child, nn.Linear))
        self.masked_samples = sum(isinstance(child, Dropout) and child.p > 0 for child in children[:first])
        self.kernel = chunk.task.kernel
        own = OwnLosses(algorithm, chunk) if isinstance(algorithm, LossOfOutputs) else None
        self.losses: Losses = self._loss if own is None else own
        self.masks = ChunkMasks(chunk, index)
        self.views = ViewCache(self._layers)
        self.sgd_params: list[Layer] = []

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        def write(k: int, g: Tensor, inputs: Tensor) -> None:
            (weight, bias), (weights_change, bias_changes) = self.views.of(grad)[k], self.layers[k].trained
            if weights_change:
                weight.copy_(torch.bmm(g.mT, inputs))
            if bias is not None and bias_changes:
                torch.sum(g, 1, out=bias)

        return self._backward(self.views.of(params), batch, weights, masks, write, self.losses)

    def add_squares(self, params: Params, batch: Mapping[str, Tensor], weights: Tensor, total: Params) -> None:
        def add(k: int, g: Tensor, inputs: Tensor) -> None:  # (g_i h_j)^2 = g_i^2 h_j^2, summed over the samples
            (weight, bias), (weights_change, bias_changes) = self.views.of(total)[k], self.layers[k].trained
            squares = g * g
            if weights_change:
                weight.add_(torch.bmm(squares.mT, inputs * inputs))
            if bias is not None and bias_changes:
                bias.add_(squares.sum(1))

        self._backward(self.views.of(params), batch, weights, [], add, self._loss)

    def begin_sgd(self, theta: Params) -> None:
        # contiguous (C, ...): for small layers, batched products are several times faster than on rows of `Params`
        self.sgd_params = [(w.contiguous(), None if b is None else b.contiguous()) for w, b in self.views.of(theta)]

    def end_sgd(self, theta: Params) -> None:
        for layer, views, now in zip(self.layers, self.views.of(theta), self.sgd_params):
            for changes, view, tensor in zip(layer.trained, views, now):
                if changes and view is not None and tensor is not None:
                    view.copy_(tensor)

    def sgd_step(self, batch: Mapping[str, Tensor], weights: Tensor, masks: list[Tensor], lr: float) -> Tensor:
        # g is never stored: a third less memory traffic
        active = weights.shape[0]
        layers = [(w[:active], None if b is None else b[:active]) for w, b in self.sgd_params]

        def step(k: int, g: Tensor, inputs: Tensor) -> None:
            (weight, bias), (weights_change, bias_changes) = layers[k], self.layers[k].trained
            if weights_change:
                weight.baddbmm_(g.mT, inputs, alpha=-lr)
            if bias is not None and bias_changes:
                bias.sub_(g.sum(1), alpha=lr)

        return self._backward(layers, batch, weights, masks, step, self.losses)

    def _backward(
        self,
        layers: list[Layer],
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        use: Callable[[int, Tensor, Tensor], None],
        loss: Losses,
    ) -> Tensor:
        """Forward pass; then, down to the lowest trained layer, use(layer, G, inputs). Returns the losses (A, B)."""
        next_mask = iter(masks)
        h = batch["x"].flatten(2)
        for mask in itertools.islice(next_mask, self.masked_samples):
            h = h * mask.flatten(2)
        tape: list[tuple[Tensor, list[Backward]]] = []
        for layer, (weight, bias) in zip(self.layers, layers):
            tape.append((h, []))
            h = torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
            for module in layer.after:
                h = self._forward(module, h, next_mask, tape[-1][1])
        g, of_features, losses = loss(h, tape[-1][0], batch, weights)
        for k in range(len(layers) - 1, self.lowest - 1, -1):
            below = torch.bmm(g, layers[k][0]) if k > self.lowest else None  # before `use` changes the weights
            if below is not None and k == len(layers) - 1 and of_features is not None:
                below.add_(of_features)
            use(k, g, tape[k][0])
            if below is not None:
                g = below
                for backward in reversed(tape[k - 1][1]):
                    g = backward(g)
        return losses

    def _layers(self, params: Params) -> list[Layer]:
        """Weight and bias of each layer, for the clients of `params` (A,)."""
        (clients,) = params.batch

        def tensor(name: str, axes: int) -> Tensor:
            if name in params:
                return params[name]
            frozen = self.frozen[name]
            return frozen[:clients] if frozen.ndim > axes else frozen.expand(clients, *frozen.shape)

        return [(tensor(x.weight, 2), tensor(x.bias, 1) if x.bias else None) for x in self.layers]

    @staticmethod
    def _forward(module: nn.Module, h: Tensor, masks: Iterator[Tensor], tape: list[Backward]) -> Tensor:
        """The output of a layer without parameters. Records how its gradient is computed."""
        if isinstance(module, nn.ReLU):
            h = h.relu_()
            tape.append(partial(_where_positive, h))
        elif isinstance(module, nn.Tanh):
            h = h.tanh_()
            tape.append(partial(_times, 1 - h * h))
        elif isinstance(module, nn.Sigmoid):
            h = h.sigmoid()  # not in place: a ReLU before it keeps h, and sigmoid would change its sign
            tape.append(partial(_times, h * (1 - h)))
        elif isinstance(module, FeatureNorm):
            norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
            scale = h.shape[-1] ** 0.5 / norm.clamp_min(FEATURE_EPS)
            tape.append(partial(feature_norm_gradient, h, scale, norm >= FEATURE_EPS))
            h = h * scale
        elif isinstance(module, SampleNorm):
            inputs = h
            h, mean, scale = torch.native_layer_norm(inputs, inputs.shape[-1:], None, None, LAYER_EPS)
            tape.append(partial(sample_norm_gradient, inputs, mean, scale))
        elif isinstance(module, Dropout) and module.p > 0:
            mask = next(masks, None)
            if mask is not None:
                h = h * mask
                tape.append(partial(_times, mask))
        return h

    def _loss(
        self, outputs: Tensor, features: Tensor, batch: Mapping[str, Tensor], weights: Tensor
    ) -> tuple[Tensor, None, Tensor]:
        """(dL/d outputs (A, B, K), None, losses (A, B))."""
        y = batch["y"]
        if self.kernel == "cross_entropy":
            log_p, at = torch.log_softmax(outputs, -1), y.unsqueeze(-1)
            losses = -log_p.gather(-1, at).squeeze(-1)
            g = log_p.exp_()
            g.scatter_add_(-1, at, g.new_full((), -1.0).expand(at.shape))
        else:
            g = outputs - y.view_as(outputs)
            losses = 0.5 * g.square().sum(-1)
        return g.mul_(weights.unsqueeze(-1)), None, losses


def _where_positive(h: Tensor, g: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(g, h, 0)


def _times(factor: Tensor, g: Tensor) -> Tensor:
    return g.mul_(factor)


def feature_norm_gradient(z: Tensor, scale: Tensor, depends: Tensor, g: Tensor) -> Tensor:
    """Return s (g - y <y, g> / h), y = s z, s = sqrt(h) / max(|z|, eps): the gradient of FN.

    Args:
        z: the inputs, (..., h).
        scale: s, (..., 1).
        depends: whether s depends on z, |z| >= eps, (..., 1). Elsewhere the gradient is s g.
        g: gradient of the loss in y, (..., h).
    """
    y = z * scale
    along = (y * g).sum(-1, keepdim=True) * depends / y.shape[-1]
    return (g - y * along) * scale


def sample_norm_gradient(a: Tensor, mean: Tensor, scale: Tensor, g: Tensor) -> Tensor:
    """Return s (g - mean g - y mean(y g)), y = s (a - mean a), s = 1 / sqrt(var a + eps): the gradient of LN.

    Args:
        a: the inputs, (..., m).
        mean: their means, (..., 1).
        scale: s, (..., 1).
        g: gradient of the loss in y, (..., m).
    """
    outputs = [True, False, False]
    return torch.ops.aten.native_layer_norm_backward(g, a, a.shape[-1:], mean, scale, None, None, outputs)[0]
