"""Algebra of the federated-LoRA methods on low-rank factors, and base weights that change during a run.

    W = W0 + s B A,   A (r, in), B (out, r)      exact mean of the clients' adapters:  M = sum_i p_i B_i A_i   (out, in)

    stack       [B_1 .. B_K] [p_1 A_1; ..; p_K A_K] = M                        any ranks
    residual    E = M - Bbar Abar = sum_i p_i (B_i - Bbar) A_i                 the error of averaging A and B separately
    flex_svd    best approximation of M of rank r, as factors

A sum of products (`Pieces`) is kept per layer as stacked factors while they are smaller than the dense (out, in)
matrix, then as that matrix, so no accumulator grows with the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl import Meta, Params, Reduction, Static, Tree, adapter, checks, join, product

Weights = Literal["examples", "uniform"]
Piece = Tensor | tuple[Tensor, Tensor]  # (out, in), or (A (k, in), B (out, k))
Pieces = Mapping[str, Piece]  # by layer
ProductsSum = tuple[Params | None, Pieces, float]  # sums of weighted factors, of weighted products, of weights


# -- algebra of one layer ---------------------------------------------------------------------------------------------
def stack_factors(
    firsts: Sequence[Tensor], seconds: Sequence[Tensor], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Stack factors so that B A = sum_i p_i B_i A_i.

    A_i (r_i, in), B_i (out, r_i), p_i -> A (sum r_i, in), B (out, sum r_i)
    """
    return torch.cat([p * a for p, a in zip(weights, firsts)]), torch.cat(list(seconds), 1)


def dense(piece: Piece) -> Tensor:
    """Return a piece as a matrix (out, in)."""
    return product(*piece) if isinstance(piece, tuple) else piece


def smaller(piece: Piece) -> Piece:
    """Return the dense matrix if the factors have at least as many numbers; else the piece itself."""
    if isinstance(piece, tuple) and piece[0].numel() + piece[1].numel() >= piece[0].shape[1] * piece[1].shape[0]:
        return product(*piece)
    return piece


def added(a: Piece, b: Piece) -> Piece:
    """Return the sum of two products, as factors while they are smaller."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return smaller((torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]], 1)))
    return dense(a) + dense(b)


def scaled(piece: Piece, factor: float) -> Piece:
    """Return factor times a piece."""
    return (factor * piece[0], piece[1]) if isinstance(piece, tuple) else factor * piece


def residual(piece: Piece, first: Tensor, second: Tensor) -> Piece:
    """Return E = M - Bbar Abar, from the sum of products M and the means Abar (r, in), Bbar (out, r).

    All clients have rank r. The factors of E are those of M with B_i - Bbar: sum_i p_i A_i = Abar, so
    E = sum_i p_i (B_i - Bbar) A_i.
    """
    if isinstance(piece, tuple):
        return piece[0], piece[1] - second.repeat(1, len(piece[0]) // len(first))
    return piece - product(first, second)


def flex_svd(matrix: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return (A (r, in), B (out, r)) such that s B A is the best approximation of `matrix` (out, in) of rank r.

    B = U_r S_r / s, A = V_r^T. The largest element of each row of A is positive; pairs beyond min(out, in) are zeros.
    """
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = min(rank, len(s))
    sign = torch.sign(v[:k].gather(1, v[:k].abs().argmax(1, keepdim=True)))
    first, second = matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(len(matrix), rank)
    first[:k] = sign * v[:k]
    second[:, :k] = u[:, :k] * s[:k] * sign.T / scale
    return first, second


def fair_correction(error: Tensor, first: Tensor, lam: float) -> Tensor:
    """Return dB = E A^T (A A^T + lam I)^-1, (out, r), from E (out, in) and A (r, in).

    It minimises ||E - dB A||^2 + lam ||dB||^2.
    """
    a = first.double()
    gram = a @ a.T + lam * torch.eye(len(a), dtype=torch.float64)
    return torch.linalg.solve(gram, a @ error.double().T).T.to(error.dtype)


def product_norm(first: Tensor, second: Tensor) -> Tensor:
    """Return ||B A||_F = sqrt(sum (B^T B) * (A A^T)) without computing the product."""
    a, b = first.double(), second.double()
    return ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt()


# -- models and messages ----------------------------------------------------------------------------------------------
def groups(model: Params) -> dict[str, Params]:
    """Split a trained model into the groups "model" (the adapters) and "head" (all other tensors, if there are any)."""
    head = adapter.head(model)
    adapters = [name for name in model if name not in set(head)]
    return {"model": model.select(adapters)} | ({"head": model.select(head)} if head else {})


def check_adapted(model: Params, ranks: Sequence[int] = (), products: bool = False) -> None:
    """Require a model with LoRA factors, built at the largest of the clients' ranks.

    With `products` the strategy adds products B A to the weights, so the change of a weight has to be s B A.
    """
    pairs = adapter.layers(model)
    if not pairs:
        raise ValueError("model.adapter: there is none with factors A and B; set lora, rslora or dora")
    if products and any("lora_magnitude_vector" in name.split(".") for name in model):
        raise ValueError("model.adapter: the change of a weight under dora is not a product B A; set lora or rslora")
    built = max(len(model[a]) for a, _ in pairs.values())
    if ranks and max(ranks) != built:
        raise ValueError(
            f"ranks: {tuple(ranks)} need a model built at the largest rank; set model.adapter.rank to {max(ranks)}"
        )


def check_ranks(ranks: Sequence[int]) -> None:
    """Require ranks of at least 1."""
    if any(rank < 1 for rank in ranks):
        raise ValueError(f"ranks: {tuple(ranks)} has one below 1; leave it empty for the model's rank")


def check_weights(weights: str) -> None:
    """Require `examples` or `uniform`."""
    checks.one_of(("examples", "uniform"), weights=weights)


def rank_of(ranks: Sequence[int], client: int) -> int:
    """Return the client's rank: ranks repeat over the ids. An id below 0 (the server's evaluation) has the largest
    rank."""
    return ranks[client % len(ranks)] if client >= 0 else max(ranks)


@dataclass(frozen=True)
class FirstRanks:
    """Row of a broadcast: the first r pairs of the group "pairs", r being the client's rank."""

    ranks: Sequence[int]

    def __call__(self, client: int, shared: Mapping[str, Params], state: Tree) -> Params:
        return adapter.at_rank(shared["pairs"], rank_of(self.ranks, client))


# -- sums of products -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pooled:
    """Result of `Products`.

    Args:
        mean: the mean of all tensors that were sent, if it was asked for.
        pieces: sum_i p_i B_i A_i by layer.
    """

    mean: Params | None
    pieces: Pieces


@dataclass(frozen=True)
class Products(Reduction):
    """The exact mean of the products B_i A_i, and optionally the mean of the factors.

    Args:
        start: the factors that the updates of A and B were measured from, cut to each client's rank.
        weights: weights of the mean.
        mean: also average the factors; all clients need the same rank.
    """

    start: Params
    weights: Weights = "examples"
    mean: bool = False
    linear: ClassVar[bool] = False

    def lift(self, value: Params, meta: Meta) -> ProductsSum:
        weight = 1.0 if self.weights == "uniform" else float(meta.num_examples)
        local = adapter.resized(self.start, adapter.shapes(value)) + value
        pieces = {
            layer: smaller((weight * local[a], local[b].clone())) for layer, (a, b) in adapter.layers(local).items()
        }
        return (weight * local if self.mean else None), pieces, weight

    def merge(self, a: ProductsSum, b: ProductsSum) -> ProductsSum:
        mean = None if a[0] is None or b[0] is None else a[0] + b[0]
        return mean, {layer: added(piece, b[1][layer]) for layer, piece in a[1].items()}, a[2] + b[2]

    def finish(self, acc: ProductsSum) -> Pooled | None:
        mean, pieces, weight = acc
        if not weight:
            return None
        pieces = {layer: scaled(piece, 1 / weight) for layer, piece in pieces.items()}
        return Pooled(None if mean is None else mean / weight, pieces)


# -- base weights that change -----------------------------------------------------------------------------------------
def increment(pieces: Pieces, scales: Mapping[str, float]) -> Params:
    """Return s times each piece as an increment of the layers' weights, for `adapter.patched`, in its smaller form."""
    named: dict[str, Tensor] = {}
    for layer, piece in pieces.items():
        piece = scaled(smaller(piece), scales[layer])
        named |= {f"{layer}.A": piece[0], f"{layer}.B": piece[1]} if isinstance(piece, tuple) else {f"{layer}.W": piece}
    return Params.of(named)


def adapted_weights(model: Params, frozen: Params) -> Params:
    """Return the frozen weights of the adapted layers, for a strategy that adds products B A to them.

    Raises:
        ValueError: the weights are quantised, so nothing can be added to them.
    """
    weights = frozen.select([adapter.base_name(layer) for layer in adapter.layers(model)])
    if not all(weights[name].is_floating_point() for name in weights):
        raise ValueError(
            "model.bits: this strategy adds products B A to the base, whose weights are quantised; leave bits out, "
            "or take fedit, ffa_lora, rolora, fedsa_lora, lora_fair, flexlora or hetlora"
        )
    return weights


@dataclass(frozen=True)
class Base:
    """Frozen weights and their change since the start of the run, as the static group "base".

    A client that holds an earlier change receives the increments since then as patches. The newest increments
    are kept while their total size is below that of the change.

    Args:
        origin: the initial weights of the adapted layers.
        change: the sum of all increments, LAYER.W (out, in); None before the first one.
    """

    origin: Params
    change: Static | None = None

    @staticmethod
    def of(model: Params, frozen: Params) -> Base:
        """Return the base at the start of a run."""
        return Base(adapted_weights(model, frozen))

    @property
    def static(self) -> dict[str, Static]:
        """The static groups of a broadcast."""
        return {} if self.change is None else {"base": self.change}

    @property
    def weights(self) -> Params:
        """The present weights of the adapted layers."""
        return self.origin if self.change is None else adapter.folded(self.origin, self.change.value)

    def plus(self, increment: Params, round_: int) -> Base:
        """Return the base with one more increment, of round `round_`."""
        last = self.change or Static(-1, None)
        value = adapter.patched(last.value, increment)
        patches = {**last.patches, last.version: increment}
        while sum(patch.numel for patch in patches.values()) >= value.numel:
            del patches[min(patches)]
        return replace(self, change=Static(round_, value, patches))


def scales(module: torch.nn.Module, model: Params) -> dict[str, float]:
    """Return the scale s of each adapted layer."""
    return {layer: adapter.scale(module, layer) for layer in adapter.layers(model)}


def with_base(model: Params, base: Base) -> Params:
    """Return the model with the present base weights, to evaluate and to save."""
    return join(model, base.weights)
