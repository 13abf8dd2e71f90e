"""Layers that run on the samples of many clients, with each client's own tensors stacked (A, *shape).

Linear       y_a = x_a W_a^T + b_a                     LoRA    y = W x + b of all,  y_a += s (x_a A_a^T) B_a^T
norms        y = norm(x) of all,  y_a = y_a w_a + b_a  VeRA    y = W x + b of all,  y_a += b_a * B (d_a * A x_a)
Embedding    y_a = E_a[ids_a]                          Conv    y_a = conv(x_a, W_a) + b_a, a group of channels each
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLayer:
    """A layer that runs on the samples of A clients, with each client's own tensors.

    layer: the module's layer, whose tensors serve all clients where `own` lacks them.
    own: tensors by name, (A, *shape).
    """

    def __init__(self, layer: nn.Module):
        self.layer: Any = layer  # attributes differ by the kind of layer
        self.clients = 0
        self.own: dict[str, Tensor] = {}

    @classmethod
    def obstacle(cls, layer: Any, own: Collection[str]) -> str | None:
        """Why clients cannot have their own tensors `own` of this layer, or `None`."""
        return None

    def __call__(self, x: Tensor) -> Tensor:
        """x (A B, ...): the samples of one client after those of another."""
        raise NotImplementedError

    def tensor(self, name: str) -> Tensor | None:
        """A tensor of each client, (A, 1, *shape), or of all clients, (*shape)."""
        return self.own[name].unsqueeze(1) if name in self.own else getattr(self.layer, name, None)

    def by_client(self, x: Tensor, inner: int = 1) -> Tensor:
        """x (A B, ..., last `inner` axes) as (A, product of the axes between, last axes)."""
        return x.reshape(self.clients, -1, *x.shape[x.ndim - inner :])


class _Linear(StackedLayer):
    def __call__(self, x: Tensor) -> Tensor:
        if "weight" not in self.own:
            shared = self.by_client(F.linear(x, self.layer.weight))
            return (shared + self.own["bias"].unsqueeze(1)).view(*x.shape[:-1], -1)
        bias, weight, x_A = self.tensor("bias"), self.own["weight"].mT, self.by_client(x)
        return (torch.bmm(x_A, weight) if bias is None else torch.baddbmm(bias, x_A, weight)).view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = W x + b of all,  y_a += s (z_a A_a^T) B_a^T,  where z is x after dropout; A (A, r, in), B (A, out, r).

    Intermediate results have the order (A, r, M), with few rows: on a CPU these thin products then take a half to a
    fifth of the time of the other order, and both additions to large arrays happen in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        first: Tensor,
        second: Tensor,
        scale: float,
    ) -> Tensor:
        clients = len(first)
        z = (x if dropped is None else dropped).reshape(clients, -1, x.shape[-1])
        y = F.linear(x, weight, bias)
        inner = torch.bmm(first, z.mT)
        y.view(clients, -1, y.shape[-1]).baddbmm_(inner.mT, second.mT, alpha=scale)
        ctx.save_for_backward(z, weight, first, second, inner)
        ctx.scale, ctx.shape, ctx.dropout = scale, x.shape, dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, first, second, inner = ctx.saved_tensors
        needs_x, needs_dropped, _, _, needs_first, needs_second, _ = ctx.needs_input_grad
        g_A = g.reshape(len(first), -1, g.shape[-1])
        outer = torch.bmm(second.mT, g_A.mT).mul_(ctx.scale)
        dx = torch.mm(g.reshape(-1, g.shape[-1]), weight).view(ctx.shape) if needs_x else None
        dz = torch.bmm(outer.mT, first).view(ctx.shape) if needs_dropped else None
        if dx is not None and not ctx.dropout:
            dx.view_as(z).baddbmm_(outer.mT, first)
        d_first = torch.bmm(outer, z) if needs_first else None
        d_second = torch.bmm(inner, g_A).mul_(ctx.scale).mT if needs_second else None
        return dx, dz, None, None, d_first, d_second, None


class _LoRA(StackedLayer):
    """peft's LoRA layer; its Dropout applies to the adapter's inputs."""

    FIRST, SECOND = "lora_A.default.weight", "lora_B.default.weight"

    @classmethod
    def obstacle(cls, layer: Any, own: Collection[str]) -> str | None:
        plain = type(layer.base_layer) is nn.Linear and not layer.lora_variant and layer.lora_B["default"].bias is None
        if not plain or layer.merged or layer.active_adapters != ["default"] or {*own} - {cls.FIRST, cls.SECOND}:
            return "is more than a frozen linear layer with two factors"
        return None

    def __call__(self, x: Tensor) -> Tensor:
        layer, base = self.layer, self.layer.base_layer
        first, second = (
            self.own[name] if name in self.own else layer.get_parameter(name).expand(self.clients, -1, -1)
            for name in (self.FIRST, self.SECOND)
        )
        dropped = layer.lora_dropout["default"](x)
        dropped = None if dropped is x else dropped
        return _Adapted.apply(x, dropped, base.weight, base.bias, first, second, layer.scaling["default"])


class _VeRA(StackedLayer):
    """peft's VeRA layer: both products run over all samples, only the scales differ between clients."""

    FIRST, SECOND = "vera_lambda_d.default", "vera_lambda_b.default"

    @classmethod
    def obstacle(cls, layer: Any, own: Collection[str]) -> str | None:
        if layer.merged or layer.active_adapters != ["default"] or {*own} - {cls.FIRST, cls.SECOND}:
            return "is more than a frozen layer with an adapter"
        return None

    def __call__(self, x: Tensor) -> Tensor:
        layer, y = self.layer, self.layer.base_layer(x)
        d, b = (
            self.own[name].unsqueeze(1) if name in self.own else layer.get_parameter(name)
            for name in (self.FIRST, self.SECOND)
        )
        inner = F.linear(layer.vera_dropout["default"](x), layer.vera_A["default"][:, : layer.in_features])
        outer = F.linear(self.by_client(inner) * d, layer.vera_B["default"][: layer.out_features])
        return torch.addcmul(self.by_client(y), outer, b).view_as(y)


class _Norm(StackedLayer):
    """Normalise all samples together, then scale and shift them client by client.

    inner: axes of a parameter.   after: axes of a sample after those.
    """

    inner, after = 1, 0

    def normalised(self, x: Tensor) -> Tensor:
        """x without scale and shift."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        y = self.normalised(x)
        scale, shift = (
            None if t is None else t.reshape(*t.shape, *[1] * self.after) for t in map(self.tensor, ("weight", "bias"))
        )
        assert scale is not None  # a norm without parameters is not stacked
        y_A = self.by_client(y, self.inner + self.after)
        return (y_A * scale if shift is None else torch.addcmul(shift, y_A, scale)).view_as(y)


class _LayerNorm(_Norm):
    def normalised(self, x: Tensor) -> Tensor:
        self.inner = len(self.layer.normalized_shape)
        return F.layer_norm(x, self.layer.normalized_shape, None, None, self.layer.eps)


class _RMSNorm(_LayerNorm):
    def normalised(self, x: Tensor) -> Tensor:
        self.inner = len(self.layer.normalized_shape)
        return F.rms_norm(x, self.layer.normalized_shape, None, self.layer.eps)


class _GroupNorm(_Norm):
    def normalised(self, x: Tensor) -> Tensor:
        self.after = x.ndim - 2
        return F.group_norm(x, self.layer.num_groups, None, None, self.layer.eps)


class _Embedding(StackedLayer):
    @classmethod
    def obstacle(cls, layer: Any, own: Collection[str]) -> str | None:
        if layer.max_norm is not None or layer.sparse or layer.scale_grad_by_freq:
            return "has max_norm, sparse or scale_grad_by_freq"
        return None

    def __call__(self, ids: Tensor) -> Tensor:
        table = self.own["weight"]
        ids_A = self.by_client(ids, 0)
        y = table.gather(1, ids_A.unsqueeze(-1).expand(*ids_A.shape, table.shape[-1])).view(*ids.shape, -1)
        if self.layer.padding_idx is None:
            return y
        return torch.where((ids == self.layer.padding_idx).unsqueeze(-1), y.detach(), y)


class _Conv(StackedLayer):
    @classmethod
    def obstacle(cls, layer: Any, own: Collection[str]) -> str | None:
        if layer.padding_mode != "zeros":
            return f"pads with {layer.padding_mode!r}"
        return None

    def __call__(self, x: Tensor) -> Tensor:
        layer, count = self.layer, self.clients
        weight, bias = self.tensor("weight"), self.tensor("bias")
        assert weight is not None
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
