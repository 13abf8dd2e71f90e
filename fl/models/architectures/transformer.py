"""A small transformer over ids, trained from scratch.

    h = E[ids] + P;   n times:  h <- h + drop(attend(norm(h))),  h <- h + drop(W_2 gelu(W_1 norm(h)));   W norm(h) + b

Vaswani et al. 2017, arXiv:1706.03762, with norms before attention and feed-forward parts (Xiong et al. 2020,
arXiv:2002.04745), learned positions and GELU. Parameters: V d + L d + n (4 d^2 + 2 d f + 9 d + f) + 2 d + (d + 1) K,
for V ids, L positions, width d, n layers, feed-forward width f, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fl.checks import at_least, one_of, within
from fl.models.dropout import Dropout
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
    """Attention and a feed-forward part, each after a norm and added to its inputs."""

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
    """The module of `Transformer`; `places` is the length of a sample."""

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
        # -1e9 and not -inf: a text of padding only stays finite
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
    """A transformer over ids.

    Args:
        vocabulary: number of ids, 0 to vocabulary - 1.
        width: width of the hidden states, a multiple of `heads`.
        layers: number of layers.
        heads: attention heads of each layer.
        forward: width of the feed-forward parts.
        dropout: probability of Dropout after attention and feed-forward parts, in [0, 1).
        predicts: mean (one answer from the mean over positions, for classification) or all (an answer at each position,
            for language_modelling).
        causal: whether a position attends to earlier positions only. Default: yes if `predicts` is all.
        padding: the id that fills short texts; it is neither attended to nor part of the mean. Default: none.
    """

    vocabulary: int = 80
    width: int = 64
    layers: int = 2
    heads: int = 4
    forward: int = 256
    dropout: float = 0.0
    predicts: Literal["mean", "all"] = "mean"
    causal: bool | None = None
    padding: int | None = None

    def __post_init__(self) -> None:
        one_of(("mean", "all"), predicts=self.predicts)
        at_least(1, vocabulary=self.vocabulary, width=self.width, layers=self.layers)
        at_least(1, heads=self.heads, forward=self.forward)
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width {self.width}")
        within("[0, 1)", dropout=self.dropout)
        if self.causal is None:
            object.__setattr__(self, "causal", self.predicts == "all")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"model: transformer takes ids (length,), a sample is {tuple(shape)}")
        return IdTransformer(self, shape[0], outputs)
