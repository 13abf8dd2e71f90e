"""What the federated-LoRA methods share: their algebra on factors, and weights that change underneath.

    W = W0 + s B A,   A (r, in), B (out, r)        exact mean of the clients' adapters:  M = sum_i p_i B_i A_i   (out, in)

    stack       [B_1 .. B_K] [p_1 A_1; ..; p_K A_K] = M                        any ranks
    residual    E = M - Bbar Abar = sum_i p_i (B_i - Bbar) A_i                  what averaging A and B apart misses
    flex_svd    best approximation of M of rank r, as factors

A sum of products (`Pieces`) is kept per layer as stacked factors while they are smaller than the dense (out, in) matrix, and
as that matrix from then on, so that no accumulator grows with the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl.method.messages import Static
from fl.method.reduction import Meta, Reduction
from fl.models import adapter
from fl.models.adapter import product
from fl.tensors.params import Params, join

Weights = Literal["examples", "uniform"]
Piece = Tensor | tuple[Tensor, Tensor]  # (out, in), or (A (k, in), B (out, k))
Pieces = Mapping[str, Piece]  # by layer


# -- algebra of one layer ---------------------------------------------------------------------------------------------
def stack_factors(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A_i (r_i, in), B_i (out, r_i), p_i -> (A (sum r_i, in), B (out, sum r_i)) with B A = sum_i p_i B_i A_i."""
    return torch.cat([p * a for p, a in zip(weights, firsts)]), torch.cat(list(seconds), 1)


def dense(piece: Piece) -> Tensor:
    """(out, in)"""
    return product(*piece) if isinstance(piece, tuple) else piece


def smaller(piece: Piece) -> Piece:
    """Factors, unless the dense matrix has no more numbers."""
    if isinstance(piece, tuple) and piece[0].numel() + piece[1].numel() >= piece[0].shape[1] * piece[1].shape[0]:
        return product(*piece)
    return piece


def added(a: Piece, b: Piece) -> Piece:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return smaller((torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]], 1)))
    return dense(a) + dense(b)


def scaled(piece: Piece, factor: float) -> Piece:
    return (factor * piece[0], piece[1]) if isinstance(piece, tuple) else factor * piece


def residual(piece: Piece, first: Tensor, second: Tensor) -> Piece:
    """E = M - Bbar Abar of the sum of products M and the means Abar (r, in), Bbar (out, r). As factors it has those of M:
    sum_i p_i A_i = Abar, so that E = sum_i p_i (B_i - Bbar) A_i. All clients have rank r."""
    if isinstance(piece, tuple):
        return piece[0], piece[1] - second.repeat(1, len(piece[0]) // len(first))
    return piece - product(first, second)


def flex_svd(matrix: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(A (r, in), B (out, r)): s B A is the best approximation of `matrix` (out, in) of rank r, B = U_r S_r / s, A = V_r^T.
    Signs are fixed by the largest element of each row of A; ranks beyond min(out, in) are zeros."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = min(rank, len(s))
    sign = torch.sign(v[:k].gather(1, v[:k].abs().argmax(1, keepdim=True)))
    first, second = matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(len(matrix), rank)
    first[:k] = sign * v[:k]
    second[:, :k] = u[:, :k] * s[:k] * sign.T / scale
    return first, second


def fair_correction(error: Tensor, first: Tensor, lam: float) -> Tensor:
    """dB = E A^T (A A^T + lam I)^-1, (out, r): the minimum of ||E - dB A||^2 + lam ||dB||^2, of E (out, in), A (r, in)."""
    a = first.double()
    gram = a @ a.T + lam * torch.eye(len(a), dtype=torch.float64)
    return torch.linalg.solve(gram, a @ error.double().T).T.to(error.dtype)


def product_norm(first: Tensor, second: Tensor) -> Tensor:
    """||B A||_F = sqrt(sum (B^T B) * (A A^T)), without the product."""
    a, b = first.double(), second.double()
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()


# -- models and messages ----------------------------------------------------------------------------------------------
def groups(model: Params) -> dict[str, Params]:
    """A trained model as the groups "model", the adapters, and, if there is more, "head", the rest."""
    head = adapter.head(model)
    own = [name for name in model if name not in set(head)]
    return {"model": model.select(own)} | ({"head": model.select(head)} if head else {})


def check_adapted(model: Params, ranks: Sequence[int] = ()) -> None:
    """Every method here needs LoRA's factors, and the module built at the largest of the clients' ranks."""
    pairs = adapter.layers(model)
    if not pairs:
        raise ValueError("model.adapter: there is none with factors A and B; set lora or rslora")
    built = max(len(model[a]) for a, _ in pairs.values())
    if ranks and max(ranks) != built:
        raise ValueError(
            f"ranks: {tuple(ranks)} need the model built at the largest; set model.adapter.rank to {max(ranks)}"
        )


def check_ranks(ranks: Sequence[int]) -> None:
    if any(rank < 1 for rank in ranks):
        raise ValueError(f"ranks: {tuple(ranks)} has one below 1; leave it empty for the model's own rank")


def check_weights(weights: str) -> None:
    if weights not in ("examples", "uniform"):
        raise ValueError(f"weights: {weights!r} is not one of ['examples', 'uniform']")


def rank_of(ranks: Sequence[int], client: int) -> int:
    """Ranks go round the clients by id; who is no client (the server's evaluation) has the largest."""
    return ranks[client % len(ranks)] if client >= 0 else max(ranks)


@dataclass(frozen=True)
class FirstRanks:
    """The row of a broadcast that holds the first pairs of the group "pairs", as many as the client's rank."""

    ranks: Sequence[int]

    def __call__(self, client: int, shared: Mapping[str, Params]) -> Params:
        return adapter.at_rank(shared["pairs"], rank_of(self.ranks, client))


# -- sums of products -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pooled:
    """mean: of all tensors sent, where asked for; pieces: sum_i p_i B_i A_i by layer."""

    mean: Params | None
    pieces: Pieces


@dataclass(frozen=True)
class Products(Reduction):
    """Of updates of A and B from `start` (cut to a client's rank) the exact mean of the products B_i A_i, and the mean of the
    factors too where all have one rank."""

    start: Params
    weights: Weights = "examples"
    mean: bool = False
    linear: ClassVar[bool] = False

    def lift(self, value: Params, meta: Meta):
        weight = 1.0 if self.weights == "uniform" else float(meta.num_examples)
        local = adapter.resized(self.start, adapter.shapes(value)) + value
        pieces = {
            layer: smaller((weight * local[a], local[b].clone())) for layer, (a, b) in adapter.layers(local).items()
        }
        return (weight * local if self.mean else None), pieces, weight

    def merge(self, x, y):
        mean = None if x[0] is None else x[0] + y[0]
        return mean, {layer: added(piece, y[1][layer]) for layer, piece in x[1].items()}, x[2] + y[2]

    def finish(self, acc) -> Pooled | None:
        mean, pieces, weight = acc
        if not weight:
            return None
        pieces = {layer: scaled(piece, 1 / weight) for layer, piece in pieces.items()}
        return Pooled(None if mean is None else mean / weight, pieces)


# -- weights that change underneath -----------------------------------------------------------------------------------
def increment(pieces: Pieces, scales: Mapping[str, float]) -> Params:
    """What is added to layers' weights, s times each piece, as `adapter.folded` takes it; the smaller form of each is sent."""
    named = {}
    for layer, piece in pieces.items():
        piece = scaled(smaller(piece), scales[layer])
        named |= {f"{layer}.A": piece[0], f"{layer}.B": piece[1]} if isinstance(piece, tuple) else {f"{layer}.W": piece}
    return Params.of(named)


@dataclass(frozen=True)
class Base:
    """Frozen weights and what was added to them since the run began, so that whoever was away can catch up: a dense key frame
    and the increments after it. They are static groups ("base", "base.0", "base.1", ...), each counted when new to a client.
    Once the increments together are as large as the dense sum, that becomes the next key frame."""

    origin: Params  # the weights of adapted layers as the run began
    key: Static | None = None
    recent: tuple[Static, ...] = ()

    @staticmethod
    def of(model: Params, frozen: Params) -> Base:
        return Base(frozen.select([adapter.base_name(layer) for layer in adapter.layers(model)]))

    @property
    def static(self) -> dict[str, Static]:
        frames = {f"base.{slot}": frame for slot, frame in enumerate(self.recent)}
        return ({"base": self.key} if self.key else {}) | frames

    @property
    def weights(self) -> Params:
        return adapter.folded(self.origin, [frame.value for frame in self.static.values()])

    def plus(self, change: Params, round_: int) -> Base:
        recent = (*self.recent, Static(round_, change))
        if sum(frame.value.numel for frame in recent) < self.origin.numel:
            return replace(self, recent=recent)
        grown = replace(self, recent=recent).weights - self.origin
        key = {name.removesuffix("base_layer.weight") + "W": grown[name] for name in grown}
        return replace(self, key=Static(round_, Params.of(key)), recent=())


def scales(module: torch.nn.Module, model: Params) -> dict[str, float]:
    """s of every adapted layer."""
    return {layer: adapter.scale(module, layer) for layer in adapter.layers(model)}


def with_base(model: Params, base: Base) -> Params:
    """The model and the weights as they stand now, to evaluate and to save."""
    return join(model, base.weights)
