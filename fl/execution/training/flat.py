"""Gradients of many clients by one ordinary pass of the module over all their samples, laid flat: multi-tenant adapters.

    (A, B, ...) -> (A B, ...) -> the module's twin -> (A B, K) -> losses (A, B) -> sum of weighted means -> autograd

In the twin each layer with tensors that differ from client to client has a tenant in its place, which takes each client's samples
with that client's tensors, stacked (A, *shape). All else is the module's own, so that a frozen model is one large product for all.
A parameter that a container owns (a table of positions, a class token) is repeated along the samples.

    Linear       y_a = x_a W_a^T + b_a                     LoRA    y = W x + b of all,  y_a += s (x_a A_a^T) B_a^T
    norms        y = norm(x) of all,  y_a = y_a w_a + b_a  VeRA    y = W x + b of all,  y_a += b_a * B (d_a * A x_a)
    Embedding    y_a = E_a[ids_a]                          Conv    y_a = conv(x_a, W_a) + b_a, a group of channels each

`Flat.covers` runs module and twin on samples of two clients and compares: a weight that is used outside its layer, or samples of
one batch that meet, show there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.execution.training.batched import Chunk, Masks
from fl.execution.training.loop import overrides
from fl.method.client import LocalTraining, StepContext
from fl.models.binding import bind, module_params
from fl.tasks.task import Task
from fl.tensors import random
from fl.tensors.params import Params

PROBE = 2  # clients, and samples of each, with which module and twin are compared
TOLERANCE = 1e-3  # of the largest output


# -- layers -----------------------------------------------------------------------------------------------------------
class StackedLayer:
    """Stands in for a layer of `clients` clients. `own`: its tensors by name, (A, *shape); those not there are the layer's."""

    def __init__(self, layer: nn.Module):
        self.layer, self.clients, self.own = layer, 0, {}

    @classmethod
    def refuses(cls, layer: nn.Module, own: Iterable[str]) -> str | None:
        """Why clients cannot each have these tensors of this layer, or `None`."""

    def tensor(self, name: str) -> Tensor | None:
        """Of each client, (A, 1, *shape), or of all, (*shape)."""
        return self.own[name].unsqueeze(1) if name in self.own else getattr(self.layer, name, None)

    def rows(self, x: Tensor, inner: int = 1) -> Tensor:
        """x (A B, ..., last `inner` axes) as (A, all between, last)."""
        return x.reshape(self.clients, -1, *x.shape[x.ndim - inner :])


class _Linear(StackedLayer):
    def __call__(self, x):
        bias = self.tensor("bias")
        if "weight" not in self.own:
            return (self.rows(F.linear(x, self.layer.weight)) + bias).view(*x.shape[:-1], -1)
        weight, x_A = self.own["weight"].mT, self.rows(x)
        return (torch.bmm(x_A, weight) if bias is None else torch.baddbmm(bias, x_A, weight)).view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = W x + b of all,  y_a += s (z_a A_a^T) B_a^T,  where z is x or what dropout left of it; A (A, r, in), B (A, out, r).

    Kept and made in the order (A, r, M) of few rows: on a CPU these thin products take a half to a fifth of the time that they
    take in the other order, and both additions to large arrays happen in place."""

    @staticmethod
    def forward(ctx, x, dropped, weight, bias, first, second, scale):
        clients = len(first)
        z = (x if dropped is None else dropped).reshape(clients, -1, x.shape[-1])
        y = F.linear(x, weight, bias)
        inner = torch.bmm(first, z.mT)
        y.view(clients, -1, y.shape[-1]).baddbmm_(inner.mT, second.mT, alpha=scale)
        ctx.save_for_backward(z, weight, first, second, inner)
        ctx.scale, ctx.shape, ctx.apart = scale, x.shape, dropped is not None
        return y

    @staticmethod
    def backward(ctx, g):
        z, weight, first, second, inner = ctx.saved_tensors
        of_x, of_dropped, _, _, of_first, of_second, _ = ctx.needs_input_grad
        g_A = g.reshape(len(first), -1, g.shape[-1])
        outer = torch.bmm(second.mT, g_A.mT).mul_(ctx.scale)
        dx = torch.mm(g.reshape(-1, g.shape[-1]), weight).view(ctx.shape) if of_x else None
        dz = torch.bmm(outer.mT, first).view(ctx.shape) if of_dropped else None
        if of_x and not ctx.apart:
            dx.view_as(z).baddbmm_(outer.mT, first)
        d_first = torch.bmm(outer, z) if of_first else None
        d_second = torch.bmm(inner, g_A).mul_(ctx.scale).mT if of_second else None
        return dx, dz, None, None, d_first, d_second, None


class _LoRA(StackedLayer):
    """peft's. Dropout is of the adapter's inputs."""

    FIRST, SECOND = "lora_A.default.weight", "lora_B.default.weight"

    @classmethod
    def refuses(cls, layer, own):
        plain = type(layer.base_layer) is nn.Linear and not layer.lora_variant and layer.lora_B["default"].bias is None
        if not plain or layer.merged or layer.active_adapters != ["default"] or {*own} - {cls.FIRST, cls.SECOND}:
            return "is more than a frozen linear layer beside its two factors"

    def __call__(self, x):
        layer, base = self.layer, self.layer.base_layer
        first, second = (
            self.own[name] if name in self.own else layer.get_parameter(name).expand(self.clients, -1, -1)
            for name in (self.FIRST, self.SECOND)
        )
        dropped = layer.lora_dropout["default"](x)
        dropped = None if dropped is x else dropped
        return _Adapted.apply(x, dropped, base.weight, base.bias, first, second, layer.scaling["default"])


class _VeRA(StackedLayer):
    """peft's, of whose two products over all samples only the scales differ."""

    FIRST, SECOND = "vera_lambda_d.default", "vera_lambda_b.default"

    @classmethod
    def refuses(cls, layer, own):
        if layer.merged or layer.active_adapters != ["default"] or {*own} - {cls.FIRST, cls.SECOND}:
            return "is more than a frozen layer beside its adapter"

    def __call__(self, x):
        layer, y = self.layer, self.layer.base_layer(x)
        d, b = (
            self.own[name].unsqueeze(1) if name in self.own else layer.get_parameter(name)
            for name in (self.FIRST, self.SECOND)
        )
        inner = F.linear(layer.vera_dropout["default"](x), layer.vera_A["default"][:, : layer.in_features])
        outer = F.linear(self.rows(inner) * d, layer.vera_B["default"][: layer.out_features])
        return torch.addcmul(self.rows(y), outer, b).view_as(y)


class _Norm(StackedLayer):
    """Normalised as all are, then scaled and shifted."""

    inner, after = 1, 0  # axes of a parameter, and of a sample behind them

    def normalised(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x):
        y = self.normalised(x)
        scale, shift = (
            None if t is None else t.reshape(*t.shape, *[1] * self.after) for t in map(self.tensor, ("weight", "bias"))
        )
        y_A = self.rows(y, self.inner + self.after)
        return (y_A * scale if shift is None else torch.addcmul(shift, y_A, scale)).view_as(y)


class _LayerNorm(_Norm):
    def normalised(self, x):
        self.inner = len(self.layer.normalized_shape)
        return F.layer_norm(x, self.layer.normalized_shape, None, None, self.layer.eps)


class _RMSNorm(_LayerNorm):
    def normalised(self, x):
        self.inner = len(self.layer.normalized_shape)
        return F.rms_norm(x, self.layer.normalized_shape, None, self.layer.eps)


class _GroupNorm(_Norm):
    def normalised(self, x):
        self.after = x.ndim - 2
        return F.group_norm(x, self.layer.num_groups, None, None, self.layer.eps)


class _Embedding(StackedLayer):
    @classmethod
    def refuses(cls, layer, own):
        if layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq:
            return "has max_norm, sparse or scale_grad_by_freq"

    def __call__(self, ids):
        table = self.own["weight"]
        ids_A = self.rows(ids, 0)
        y = table.gather(1, ids_A.unsqueeze(-1).expand(*ids_A.shape, table.shape[-1])).view(*ids.shape, -1)
        if self.layer.padding_idx is None:
            return y
        return torch.where((ids == self.layer.padding_idx).unsqueeze(-1), y.detach(), y)


class _Conv(StackedLayer):
    @classmethod
    def refuses(cls, layer, own):
        if layer.padding_mode != "zeros":
            return f"pads with {layer.padding_mode!r}"

    def __call__(self, x):
        layer, count = self.layer, self.clients
        weight, bias = self.tensor("weight"), self.tensor("bias")
        weight = weight.expand(count, 1, *layer.weight.shape).flatten(0, 2)
        bias = None if bias is None else bias.expand(count, 1, -1).flatten()
        x_A = x.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)  # (B, A channels, ...)
        convolve = F.conv1d if x.ndim == 3 else F.conv2d
        y = convolve(x_A, weight, bias, layer.stride, layer.padding, layer.dilation, count * layer.groups)
        return y.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)


STACKED_LAYERS: dict[str, type[StackedLayer]] = {
    "torch.nn.modules.linear.Linear": _Linear,
    "torch.nn.modules.normalization.LayerNorm": _LayerNorm,
    "torch.nn.modules.normalization.RMSNorm": _RMSNorm,
    "torch.nn.modules.normalization.GroupNorm": _GroupNorm,
    "torch.nn.modules.sparse.Embedding": _Embedding,
    "torch.nn.modules.conv.Conv1d": _Conv,
    "torch.nn.modules.conv.Conv2d": _Conv,
    "peft.tuners.lora.layer.Linear": _LoRA,
    "peft.tuners.vera.layer.Linear": _VeRA,
}


# -- the module -------------------------------------------------------------------------------------------------------
class StackedModule:
    """A module that takes the samples of several clients, each with tensors of its own; the names in `own` are theirs."""

    def __init__(self, module: nn.Module, own: Iterable[str]):
        """Raises `Unable`, which names a layer that cannot have them."""
        self.own = set(own)
        self.places: dict[str, tuple[StackedLayer, str]] = {}  # name of a tensor -> its layer's tenant, its name there
        self.repeated: dict[
            str, tuple[nn.Module, str]
        ] = {}  # name of a container's tensor -> the container, its name there
        self._made: dict[nn.Module, nn.Module | StackedLayer] = {}
        self.module = self._stand_in(module, "")
        self.tensors: Mapping[str, Tensor] = {}
        self.clients = 0

    def _stand_in(self, module: nn.Module, prefix: str) -> nn.Module | StackedLayer:
        if module in self._made:
            return self._made[module]
        inside = [name for name in self.own if name.startswith(prefix)]
        made: nn.Module | StackedLayer = module
        if inside:
            parts = {name: name.removeprefix(prefix) for name in inside}
            kind = STACKED_LAYERS.get(f"{type(module).__module__}.{type(module).__qualname__}")
            if kind is not None:
                why = kind.refuses(module, parts.values())
                if why:
                    raise Unable(f"{prefix.rstrip('.')} ({type(module).__name__}) {why}")
                made = kind(module)
                self.places |= {name: (made, part) for name, part in parts.items()}
            else:
                made = copy.copy(module)
                made._parameters, made._modules = dict(module._parameters), {}
                for name, part in parts.items():
                    if "." not in part:
                        del made._parameters[part]
                        self.repeated[name] = (made, part)
                for name, child in module._modules.items():
                    made._modules[name] = child and self._stand_in(child, f"{prefix}{name}.")
        self._made[module] = made
        return made

    def take(self, tensors: Mapping[str, Tensor], clients: int) -> None:
        """The tensors (A, *shape) of `own`, from now on."""
        self.tensors, self.clients = tensors, clients
        for name, (tenant, part) in self.places.items():
            tenant.clients, tenant.own[part] = clients, tensors[name]

    def __call__(self, x: Tensor) -> Tensor:
        """x (A B, ...), the samples of one client after those of another."""
        for name, (container, part) in self.repeated.items():
            one_of_each = self.tensors[name].repeat_interleave(len(x) // self.clients, 0)
            leading = one_of_each.ndim > 1 and one_of_each.shape[1] == 1  # an axis for samples is there already
            container.__dict__[part] = one_of_each.squeeze(1) if leading else one_of_each
        return self.module(x)


class Unable(ValueError):
    """A layer cannot have tensors of each client's own."""


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Without dropout."""
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)


def _probe(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (A B, ...) for the same samples x (B, ...) of A clients with different tensors: by the twin, by the module."""
    model = module_params(module)
    different = model.layout.empty(PROBE)
    for name, tensor in model.items():
        for client in range(PROBE):
            noise = torch.randn(tensor.shape, generator=random.torch_generator(client, name))
            different[name][client].copy_(tensor + 0.1 * noise)
    twin = StackedModule(module, model)
    twin.take(different, PROBE)
    own = [{name: different[name][client] for name in model} for client in range(PROBE)]
    apart = [torch.func.functional_call(module, tensors, (x,)) for tensors in own]
    return twin(torch.cat([x] * PROBE)), torch.cat(apart)


def saved_activations(module: nn.Module, x: Tensor) -> int:
    """Elements that the module keeps of a sample for the backward pass."""
    parameters, found = {p.data_ptr() for p in module.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            found[tensor.data_ptr()] = tensor
        return tensor

    with _still(module), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = module(x)
    assert outputs.requires_grad  # what was kept lives as long as they do
    return sum(tensor.numel() for tensor in found.values()) // len(x)


# -- the backend ------------------------------------------------------------------------------------------------------
class Flat:
    """Gradients for the models and methods that `covers` accepts; see the module."""

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task, x: Tensor) -> str | None:
        """`None` if clients can be laid flat, else why not. x: some inputs."""
        if overrides(algorithm, "objective"):
            return f"{type(algorithm).__name__} has its own objective"
        if len(x) < PROBE:
            return "there are too few samples to try it with"
        with _still(module), torch.no_grad():
            try:
                together, apart = _probe(module, x[:PROBE])
            except Unable as error:
                return str(error)
            except Exception as error:  # whatever a module does with more samples, or without a layer of its own
                return f"samples laid flat end in {type(error).__name__}: {error}"
        if together.shape != apart.shape or (together - apart).abs().max() > TOLERANCE * apart.abs().max():
            return "samples laid flat give other outputs than each client's alone"
        return None

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        self.task = chunk.task
        bind(chunk.module, local.row(0), chunk.initial)
        still = [name for name in local if name not in theta and (local[name] != local[name][:1]).any()]
        self.frozen = {name: local[name] for name in still}
        self.masks = Masks(chunk, index)
        self.twin = StackedModule(chunk.module.train(index is not None), [*theta, *still])
        self.views: dict[int, tuple[Params, dict[str, Tensor]]] = {}
        self.held: dict[str, Tensor] = {}

    def __call__(
        self, params: Params, batch: Mapping[str, Tensor], weights: Tensor, masks, at: StepContext, grad: Params
    ) -> Tensor:
        """Writes the gradients into `grad`; see `batched.Gradients`."""
        grads, losses = self._gradients(self._views(params), batch, weights, masks)
        torch._foreach_copy_([*self._views(grad).values()], grads)
        return losses

    def hold(self, theta: Params) -> None:
        """Take the parameters for `descend`, each contiguous (C, ...)."""
        self.held = {name: view.contiguous() for name, view in self._views(theta).items()}

    def release(self, theta: Params) -> None:
        """Write back what was held."""
        torch._foreach_copy_([*self._views(theta).values()], [*self.held.values()])

    def descend(self, batch: Mapping[str, Tensor], weights: Tensor, masks, lr: float) -> Tensor:
        """One step of plain gradient descent of the first A clients, w <- w - lr g."""
        held = {name: tensor[: len(weights)] for name, tensor in self.held.items()}
        grads, losses = self._gradients(held, batch, weights, masks)
        torch._foreach_add_([*held.values()], grads, alpha=-lr)
        return losses

    def _gradients(self, views: Mapping[str, Tensor], batch, weights, masks) -> tuple[tuple[Tensor, ...], Tensor]:
        """(gradients in the order of `views`, losses (A, B))."""
        count = len(weights)
        leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
        self.twin.take(leaves | {name: tensor[:count] for name, tensor in self.frozen.items()}, count)
        self.masks.noise.set([mask.flatten(0, 1) for mask in masks])
        flat = {name: array.flatten(0, 1) for name, array in batch.items()}
        losses = self.task.loss(self.twin(flat["x"]), flat).view_as(weights)
        return torch.autograd.grad((losses * weights).sum(), [*leaves.values()]), losses.detach()

    def _views(self, params: Params) -> dict[str, Tensor]:
        """The tensors of `params`; kept while the same clients are active."""
        views = self.views.get(id(params))
        if views is None or views[0] is not params:
            views = (params, {name: params[name] for name in params})
            self.views[id(params)] = views
        return views[1]
