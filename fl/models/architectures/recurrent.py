"""Recurrent networks over characters or other ids.

    ids (B, L) -> embedding (V x d) -> layers of LSTM or GRU (h) -> W h + b: last position (B, K) or all (B, L, K)

The usual model for the next character of Shakespeare: d = 8, two LSTM layers of h = 256 (McMahan et al. 2017,
arXiv:1602.05629; Caldas et al. 2018, LEAF, arXiv:1812.01097). With V = K = 80 and one bias per gate it has 80 * 8 +
4 * 256 * (8 + 256 + 1) + 4 * 256 * (2 * 256 + 1) + 256 * 80 + 80 = 817,872 parameters (V = 82: 818,402; V = 90:
820,522). Here V = K = 80 gives 819,920, because PyTorch's layers have two biases per gate, which are added: 2 * 4 * 256
more. Initial weights are uniform in +-1 / sqrt(h). The layers are PyTorch's fused ones and train client by client in
the loop; on a CPU this is faster than cells of plain products under vmap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from fl.checks import at_least, one_of
from fl.registry import register


class Recurrent(nn.Module):
    """An embedding, recurrent layers and a linear head."""

    def __init__(self, embedding: nn.Embedding, layers: nn.RNNBase, head: nn.Linear, predicts: Literal["last", "all"]):
        super().__init__()
        self.embedding, self.layers, self.head, self.predicts = embedding, layers, head, predicts

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.layers(self.embedding(ids.long()))
        return self.head(hidden[:, -1] if self.predicts == "last" else hidden)


@dataclass(frozen=True, kw_only=True)
class _Char:
    """The arguments that both models have."""

    predicts: Literal["last", "all"] = "last"
    vocabulary: int = 80
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    cell: ClassVar[type[nn.LSTM | nn.GRU]]
    registered_as: ClassVar[str]

    def __post_init__(self) -> None:
        one_of(("last", "all"), predicts=self.predicts)
        at_least(1, vocabulary=self.vocabulary, embedding=self.embedding, hidden=self.hidden, layers=self.layers)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1:
            raise ValueError(f"model: {self.registered_as} takes ids (length,), a sample is {tuple(shape)}")
        embedding = nn.Embedding(self.vocabulary, self.embedding)
        layers = self.cell(self.embedding, self.hidden, self.layers, batch_first=True)
        return Recurrent(embedding, layers, nn.Linear(self.hidden, outputs), self.predicts)


@register("model", "char_lstm")
@dataclass(frozen=True, kw_only=True)
class CharLSTM(_Char):
    """LSTM layers over characters or other ids.

    Args:
        predicts: last (one answer, at the last position, for classification) or all (an answer at each position, for
            language_modelling).
        vocabulary: number of ids, 0 to vocabulary - 1; 80 for the characters of shakespeare and leaf.
        embedding: width of the embedding.
        hidden: width of the recurrent layers.
        layers: number of recurrent layers.
    """

    cell = nn.LSTM


@register("model", "char_gru")
@dataclass(frozen=True, kw_only=True)
class CharGRU(_Char):
    """GRU layers over characters or other ids.

    Args:
        predicts: last (one answer, at the last position, for classification) or all (an answer at each position, for
            language_modelling).
        vocabulary: number of ids, 0 to vocabulary - 1; 80 for the characters of shakespeare and leaf.
        embedding: width of the embedding.
        hidden: width of the recurrent layers.
        layers: number of recurrent layers.
    """

    cell = nn.GRU
