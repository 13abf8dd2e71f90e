"""A small transformer over ids, from scratch.

    h = E[ids] + P;   n times:  h <- h + drop(attend(norm(h))),  h <- h + drop(W_2 gelu(W_1 norm(h)));   W norm(h) + b

Vaswani et al. 2017, arXiv:1706.03762, with the norms before each part (Xiong et al. 2020, arXiv:2002.04745), learned positions and GELU.
Parameters: V d + L d + n (4 d^2 + 2 d f + 9 d + f) + 2 d + (d + 1) K, for V ids, L places, width d, n layers, feed-forward f, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fl.models.nn import Dropout
from fl.registry import register


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d / heads) + bias) v for each head, then a linear layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.inputs, self.output = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        b, places, width = h.shape
        q, k, v = self.inputs(h).view(b, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (width // self.heads) ** -0.5 + bias).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).reshape(b, places, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, forward: int, dropout: float):
        super().__init__()
        self.before_attention, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.before_forward = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, forward), nn.Linear(forward, width)
        self.drop_attention, self.drop_forward = (Dropout(dropout) if dropout else nn.Identity() for _ in range(2))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        h = h + self.drop_attention(self.attention(self.before_attention(h), bias))
        return h + self.drop_forward(self.down(nn.functional.gelu(self.up(self.before_forward(h)))))


class IdTransformer(nn.Module):
    """See the module."""

    hidden: Tensor

    def __init__(self, config: Transformer, places: int, outputs: int):
        super().__init__()
        c = config
        self.predicts, self.padding = c.predicts, c.padding
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        self.positions = nn.Parameter(0.02 * torch.randn(places, c.width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.forward, c.dropout) for _ in range(c.layers))
        self.norm, self.head = nn.LayerNorm(c.width), nn.Linear(c.width, outputs)
        future = torch.ones(places, places).triu(1) if c.causal else torch.zeros(places, places)
        self.register_buffer("hidden", future.bool(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.hidden
        known = torch.ones_like(ids, dtype=torch.bool) if self.padding is None else ids != self.padding
        # finite, so that a text of nothing but padding stays finite
        bias = torch.where(hidden | ~known[:, None, None, :], -1e9, 0.0)
        h = self.embedding(ids.long()) + self.positions
        for layer in self.layers:
            h = layer(h, bias)
        h = self.norm(h)
        if self.predicts == "all":
            return self.head(h)
        weights = known.to(h.dtype).unsqueeze(-1)
        return self.head((h * weights).sum(1) / weights.sum(1).clamp(min=1))


@register("model", "transformer")
@dataclass(frozen=True, kw_only=True)
class Transformer:
    """`predicts`: one answer from the mean over places (classification), or one at each (language_modelling). `causal`: a place sees none
    after it (default: if it predicts at all places). `padding`: the id that is no token, neither attended to nor in the mean."""

    vocabulary: int = 80
    width: int = 64
    layers: int = 2
    heads: int = 4
    forward: int = 256
    dropout: float = 0.0
    predicts: Literal["mean", "all"] = "mean"
    causal: bool | None = None
    padding: int | None = None

    def __post_init__(self):
        if self.predicts not in ("mean", "all"):
            raise ValueError(f"predicts: {self.predicts!r} is not one of ['mean', 'all']")
        for name in ("vocabulary", "width", "layers", "heads", "forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width {self.width}; take a number that does")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.causal is None:
            object.__setattr__(self, "causal", self.predicts == "all")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"model: transformer takes ids (length,), a sample is {tuple(shape)}")
        return IdTransformer(self, shape[0], outputs)
