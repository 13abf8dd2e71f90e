"""Recurrent networks over characters or other ids.

    ids (B, L) -> embedding (V x d) -> layers of LSTM or GRU (h) -> W h + b,  at the last place (B, K) or at all (B, L, K)

The usual model of Shakespeare's next character: d = 8, two LSTM layers of h = 256 (McMahan et al. 2017, arXiv:1602.05629; Caldas et al.
2018, LEAF, arXiv:1812.01097). Parameters with V = K = 80, gates of one bias: 80 * 8 + 4 * 256 * (8 + 256 + 1) + 4 * 256 * (2 * 256 + 1)
+ 256 * 80 + 80 = 817,872 (V = 82: 818,402; V = 90: 820,522). Here V = K = 80 gives 819,920: PyTorch's layers have two biases for each
gate, whose sum alone matters, 2 * 4 * 256 more; they also begin uniform in +-1 / sqrt(h).
`vocabulary`: ids 0..V-1 are known (80: the characters of shakespeare and leaf). `predicts`: from the last place alone (classification), or
from all (language_modelling). The layers are PyTorch's fused ones, trained client by client in the loop: on CPU faster than cells of plain products under vmap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from fl.registry import register


class Recurrent(nn.Module):
    """See the module."""

    def __init__(self, embedding: nn.Embedding, layers: nn.RNNBase, head: nn.Linear, predicts: Literal["last", "all"]):
        super().__init__()
        self.embedding, self.layers, self.head, self.predicts = embedding, layers, head, predicts

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.layers(self.embedding(ids.long()))
        return self.head(hidden[:, -1] if self.predicts == "last" else hidden)


@dataclass(frozen=True, kw_only=True)
class _Char:
    predicts: Literal["last", "all"] = "last"
    vocabulary: int = 80
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    cell: ClassVar[type[nn.LSTM | nn.GRU]]
    registered_as: ClassVar[str]

    def __post_init__(self):
        if self.predicts not in ("last", "all"):
            raise ValueError(f"predicts: {self.predicts!r} is not one of ['last', 'all']")
        for name in ("vocabulary", "embedding", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"model: {self.registered_as} takes ids (length,), a sample is {tuple(shape)}")
        embedding = nn.Embedding(self.vocabulary, self.embedding)
        layers = self.cell(self.embedding, self.hidden, self.layers, batch_first=True)
        return Recurrent(embedding, layers, nn.Linear(self.hidden, outputs), self.predicts)


@register("model", "char_lstm")
@dataclass(frozen=True, kw_only=True)
class CharLSTM(_Char):
    """Layers of LSTM over characters or other ids."""

    cell = nn.LSTM


@register("model", "char_gru")
@dataclass(frozen=True, kw_only=True)
class CharGRU(_Char):
    """Layers of GRU over characters or other ids."""

    cell = nn.GRU
