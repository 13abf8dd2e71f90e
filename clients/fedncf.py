"""FedNCF: a shared network scores a private user vector and a shared item row.    score(u, i) = MLP([p_u, q_i])

    MLP: (2 d) -> hidden layers with ReLU -> 1;    send the changes of Q and of the MLP, keep p_u

Perifanis, Efraimidis 2022, arXiv:2106.04405, after He et al. 2017 (NCF), arXiv:1708.05031.
Differs from the paper: the multi-layer perceptron alone, without the product path of NeuMF; no secure aggregation; all
users start from the same p_u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl import Extended, checks, register

from .recommendation import Recommendation, item_table


class Perceptron(nn.Module):
    """A user's vector and the layers that score it together with an item row.

    Args:
        dim: numbers in the vector and in a row.
        hidden: widths of the hidden layers.
        std: standard deviation of the vector's first values.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...], std: float):
        super().__init__()
        self.user = nn.Parameter(std * torch.randn(dim))
        layers: list[nn.Module] = []
        for a, b in zip((2 * dim, *hidden), hidden):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear((2 * dim, *hidden)[-1], 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the scores (...) of item rows (..., d)."""
        return self.network(torch.cat([self.user.expand_as(rows), rows], -1)).squeeze(-1)


class WithPerceptron(Extended):
    """A table of items, a user's vector and a network: ids (...) -> scores (...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (...) of ids (...)."""
        return self.added(self.original(x))


@register("client", "fedncf")
@dataclass(frozen=True, kw_only=True)
class FedNCF(Recommendation):
    """A shared network over a private user vector and shared item rows.

    Args:
        hidden: widths of the hidden layers, positive.
        user_std: standard deviation of the first values of the user's vector, at least 0.
    """

    hidden: tuple[int, ...] = (32, 16)
    user_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(user_std=self.user_std)
        checks.positive(hidden=self.hidden)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        added = Perceptron(item_table(module).embedding_dim, self.hidden, self.user_std)
        return WithPerceptron(module, "scorer", added)
