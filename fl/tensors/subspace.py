"""Subspaces that the inputs of layers span, for methods that keep new updates out of what old tasks use.

    X (d, n)   inputs of a layer, a column per sample (for a convolution per sample and position: its patch, in the order of
               channel, kernel row, kernel column)
    U (d, k)   orthonormal basis of the part of the inputs that is protected
    W (out, d) weight of the layer, as a matrix

If X lies in span(U) and D U = 0, then (W + D) X = W X. Everything here is a pure function of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.tensors.params import match

Layer = nn.Linear | nn.Conv2d


# -- layers and their inputs --------------------------------------------------------------------------------------------
def layers(module: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Name of a trained weight -> its layer, of all linear and 2-d convolutional ones."""
    found = {
        f"{name}.weight".lstrip("."): layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    return {weight: layer for weight, layer in found.items() if weight in trained}


def protected(
    module: nn.Module, trained: Mapping[str, Tensor], patterns: Sequence[str] | None, head: Sequence[str]
) -> dict[str, int]:
    """Name of weight -> d, of the layers whose weights match `patterns` (None: all) and not `head`."""
    known = layers(module, trained)
    chosen = list(known) if patterns is None else match(known, patterns)
    left = set(match(known, head))
    chosen = [name for name in chosen if name not in left]
    if not chosen:
        raise ValueError(f"protects: no weight is left to protect; the linear and convolutional ones are {list(known)}")
    for name in chosen:
        layer = known[name]
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise ValueError(
                f"protects: {name} is of a convolution in {layer.groups} groups, whose groups see different inputs; "
                "only ungrouped ones can be protected, name the others"
            )
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(f"protects: {name} pads with {layer.padding_mode!r}; only zeros can be protected")
    return {name: known[name].weight[0].numel() for name in chosen}


def columns(layer: Layer, x: Tensor) -> Tensor:
    """(d, n): what a layer multiplies its weight with, of inputs x (B, ..., in) or, for a convolution, (B, in, h, w)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size)]
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    padding = 0 if isinstance(layer.padding, str) else layer.padding
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (B, d, positions)
    return patches.transpose(0, 1).reshape(patches.shape[1], -1)


def inputs(module: nn.Module, weights: Sequence[str], batches: Iterator[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name of weight, X (d, n)) for each layer and batch, as the module in evaluation mode sees them."""
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str):
        return lambda layer, given: seen.append((name, columns(layer, given[0])))

    named = {name: module.get_submodule(name.removesuffix("weight").rstrip(".")) for name in weights}
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in named.items()]
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch)
                yield from seen
                seen.clear()
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()


# -- what of a matrix lies in a subspace ---------------------------------------------------------------------------------
def project(delta: Tensor, basis: Tensor) -> Tensor:
    """delta (*, out, ...) without its part in span(U), U (d, k): D - (D U) U^T; the axes after `out` make up d."""
    flat = delta.reshape(-1, basis.shape[0])
    return (flat - (flat @ basis) @ basis.T).view(delta.shape)


def residual(x: Tensor, basis: Tensor | None) -> Tensor:
    """(d, n): X without its part in span(U)."""
    return x if basis is None else x - basis @ (basis.T @ x)


def sketch(x: Tensor, basis: Tensor | None, g: Tensor) -> Tensor:
    """(d, m): (I - U U^T) X G, with G (n, m) Gaussian; sums over clients sketch the inputs of all."""
    return residual(x, basis) @ g


def gram(x: Tensor, basis: Tensor | None) -> Tensor:
    """(d, d): R R^T, R = (I - U U^T) X; sums over clients are exact."""
    r = residual(x, basis)
    return r @ r.T


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric (d, d), row by row: (d (d + 1) / 2,)."""
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def unpacked(triangle: Tensor) -> Tensor:
    """The inverse of `packed`."""
    d = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    upper = triangle.new_zeros(d, d)
    upper[tuple(torch.triu_indices(d, d))] = triangle
    return upper + upper.triu(1).T


# -- the basis of a task more --------------------------------------------------------------------------------------------
def threshold(ratio: float, eps: float) -> float:
    """tau = (ratio - (1 - eps)) / ratio: the share of the residual to keep so that eps of the whole is kept.

    ratio: ||R|| / ||X|| or its square, 1 without a basis, where tau = eps."""
    return (ratio - (1 - eps)) / ratio if ratio > 0 else 0.0


def directions(energies: Tensor, tau: float, least: int, noise: float = 0.0) -> int:
    """The smallest k with (e_1 + ... + e_k) / sum(e) > tau, energies (d,) descending: at least `least` and at most as many as
    are more than `noise` * e_1. With `least` 0, a tau <= 0 asks for none."""
    total = float(energies.sum())
    if not total > 0 or (tau <= 0 and least == 0):
        return 0
    above = int((energies > noise * energies[0]).sum())
    shares = energies.cumsum(0) / total
    return min(max(int((shares <= tau).sum()) + 1, least), above)


def joined(basis: Tensor | None, vectors: Tensor) -> Tensor:
    """(d, k + j): the basis as it is and the j vectors, made orthonormal to it and to each other; no more than d in all."""
    if basis is not None:
        vectors = vectors[:, : basis.shape[0] - basis.shape[1]]
    for _ in range(2):  # once leaves what cancellation left
        vectors = torch.linalg.qr(residual(vectors, basis))[0]
    return vectors if basis is None else torch.cat([basis, vectors], 1)


def extend_basis_from_sketch(basis: Tensor | None, y: Tensor, tau: float, least: int = 1) -> Tensor | None:
    """U (d, k) or None, Y (d, m) -> U with the left singular vectors of Y that are due, energies their squared values."""
    left, values, _ = torch.linalg.svd(y.double(), full_matrices=False)
    noise = (max(y.shape) * torch.finfo(y.dtype).eps) ** 2
    return _extended(basis, left, directions(values.square(), tau, least, noise), y.dtype)


def extend_basis_from_gram(basis: Tensor | None, matrix: Tensor, tau: float, least: int = 1) -> Tensor | None:
    """U (d, k) or None, R R^T (d, d) -> U with the eigenvectors that are due."""
    values, vectors = torch.linalg.eigh(matrix.double())
    noise = len(matrix) * torch.finfo(matrix.dtype).eps
    energies = values.flip(0).clamp(min=0)
    return _extended(basis, vectors.flip(1), directions(energies, tau, least, noise), matrix.dtype)


def _extended(basis: Tensor | None, vectors: Tensor, count: int, dtype: torch.dtype) -> Tensor | None:
    if not count or (basis is not None and basis.shape[1] == basis.shape[0]):
        return basis
    new = joined(None if basis is None else basis.double(), vectors[:, :count])
    return new.to(dtype) if basis is None else torch.cat([basis, new[:, basis.shape[1] :].to(dtype)], 1)
