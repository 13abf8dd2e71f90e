"""Federated matrix factorisation: score(u, i) = p_u . q_i (+ b_u).    p_u and b_u stay with the user, q_i is shared

Ammad-ud-din, Ivannikova, Khan, Oyomno, Fu, Tan, Flanagan 2019 (FCF), arXiv:1901.09888; Chai, Wang, Chen, Yang 2019
(FedMF), arXiv:1906.05108.  Differs from the papers: local steps on samples of both kinds and logistic loss, in place of
one gradient of the squared error over all items (FCF), no encryption; all users start from the same p_u.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl import Extended, checks, register

from .recommendation import Recommendation, item_table


class UserVector(nn.Module):
    """A user's vector, and its bias if there is one.

    Args:
        dim: numbers in the vector.
        std: standard deviation of its first values.
        bias: whether there is a bias; it starts at 0.
    """

    def __init__(self, dim: int, std: float, bias: bool):
        super().__init__()
        self.user = nn.Parameter(std * torch.randn(dim))
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        """Return the scores (...) of item rows (..., d)."""
        scores = rows @ self.user
        return scores if self.bias is None else scores + self.bias


class WithUser(Extended):
    """A table of items and a user's vector: ids (...) -> scores (...)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (...) of ids (...)."""
        return self.added(self.original(x))


@register("client", "fedmf")
@dataclass(frozen=True, kw_only=True)
class FedMF(Recommendation):
    """Matrix factorisation with a private user vector.

    Args:
        bias: whether a user has a bias.
        user_std: standard deviation of the first values of the user's vector, at least 0.
    """

    bias: bool = False
    user_std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(user_std=self.user_std)

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithUser(module, "scorer", UserVector(item_table(module).embedding_dim, self.user_std, self.bias))
