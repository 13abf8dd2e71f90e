"""Subspaces spanned by the inputs of layers. Continual learning keeps new updates out of the old tasks' subspaces.

    X (d, n)   inputs of a layer, one column per sample; for a convolution one column per sample and position: the patch
               in the order of channel, kernel row, kernel column
    U (d, k)   orthonormal basis of the protected subspace
    W (out, d) weight of the layer, as a matrix

If X lies in span(U) and D U = 0, then (W + D) X = W X. Everything here is a pure function of tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.tensors.params import match

Layer = nn.Linear | nn.Conv2d


# -- layers and their inputs -------------------------------------------------------------------------------------------
def layers(module: nn.Module, trained: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Return {name of weight: layer} for the linear and 2-d convolutional layers whose weights are in `trained`.

    The output layer of nn.MultiheadAttention is left out: its weight is read, but the layer is never called.
    """
    attention = {
        f"{name}.out_proj".lstrip(".") for name, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)
    }
    found = {
        f"{name}.weight".lstrip("."): layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and name not in attention
    }
    return {weight: layer for weight, layer in found.items() if weight in trained}


def protected(
    module: nn.Module, trained: Mapping[str, Tensor], patterns: Sequence[str] | None, head: Sequence[str]
) -> dict[str, int]:
    """Return {name of weight: d} for the layers to protect.

    Args:
        module: The model.
        trained: Its trained tensors by name.
        patterns: Glob patterns of weights to protect; None is all trained tensors of two or more dimensions.
        head: Glob patterns of weights that are never protected.

    Raises:
        ValueError: a weight cannot be protected, or none is left.
    """
    known = layers(module, trained)
    left = set(match(trained, head))
    wanted = [n for n in (trained if patterns is None else match(trained, patterns)) if n not in left]
    chosen = [name for name in wanted if name in known]
    others = [name for name in wanted if name not in known and trained[name].ndim > 1]
    if others:
        raise ValueError(
            f"protects: {[f'{name} ({_owner(module, name)})' for name in others]} cannot be protected, because only "
            "the inputs of linear and 2-d convolutional layers are seen; put them into `head` if they may change, "
            f"or name the weights to protect; those that can be protected are {list(known)}"
        )
    if not chosen:
        raise ValueError(
            f"protects: no weight is left to protect; the linear and convolutional weights are {list(known)}"
        )
    for name in chosen:
        _check_layer(name, known[name])
        twins = [n for n, p in module.named_parameters(remove_duplicate=False) if p is known[name].weight and n != name]
        if twins:
            raise ValueError(f"protects: {name} is also {twins}; only weights that one layer uses can be protected")
    return {name: known[name].weight[0].numel() for name in chosen}


def _check_layer(name: str, layer: Layer) -> None:
    """Require a linear layer, or a convolution with one group and zero padding."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise ValueError(
            f"protects: {name} belongs to a convolution with {layer.groups} groups, which see different inputs; "
            "only convolutions with one group can be protected, so name the other weights"
        )
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise ValueError(f"protects: {name} pads with {layer.padding_mode!r}; only zero padding can be protected")


def _owner(module: nn.Module, parameter: str) -> str:
    """Return the class of the module that a parameter belongs to."""
    return type(module.get_submodule(parameter.rpartition(".")[0])).__name__


def check_inputs_are_seen(module: nn.Module, weights: Sequence[str], x: Tensor) -> None:
    """Require that a forward pass of samples `x` calls the layers of all `weights`.

    Raises:
        ValueError: a layer is not called; it may be that `forward` reads its weight.
    """
    with torch.random.fork_rng(devices=()):
        called = {name for name, _ in inputs(copy.deepcopy(module), weights, iter([x]))}
    unseen = [name for name in weights if name not in called]
    if unseen:
        raise ValueError(
            f"protects: forward does not call the layers of {unseen}, so their inputs are never seen; call the layers "
            "(self.layer(x), not F.linear(x, self.layer.weight)), or put these weights into `head`"
        )


def columns(layer: Layer, x: Tensor) -> Tensor:
    """Return the matrix X (d, n) that a layer multiplies with its weight.

    `x` has shape (B, ..., in) for a linear layer and (B, in, h, w) for a convolution.

    >>> columns(nn.Conv2d(1, 1, 2), torch.arange(9.0).view(1, 1, 3, 3))[:, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, layer.kernel_size)]
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    padding = 0 if isinstance(layer.padding, str) else layer.padding
    patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # (B, d, positions)
    return patches.transpose(0, 1).reshape(patches.shape[1], -1)


def inputs(module: nn.Module, weights: Sequence[str], batches: Iterator[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name of weight, X (d, n)) for each layer and batch. The module runs in evaluation mode."""
    seen: list[tuple[str, Tensor]] = []

    def record_inputs(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, args: seen.append((name, columns(cast(Layer, layer), args[0])))

    named = {name: module.get_submodule(name.removesuffix("weight").rstrip(".")) for name in weights}
    hooks = [layer.register_forward_pre_hook(record_inputs(name)) for name, layer in named.items()]
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


# -- parts of a matrix inside and outside a subspace -------------------------------------------------------------------
def project(delta: Tensor, basis: Tensor) -> Tensor:
    """Remove the part of `delta` (*, out, ...) that lies in span(U), U (d, k): D - (D U) U^T. The last axes form d.

    >>> project(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]])).tolist()
    [[0.0, 4.0]]
    """
    flat = delta.reshape(-1, basis.shape[0])
    return (flat - (flat @ basis) @ basis.T).view(delta.shape)


def residual(x: Tensor, basis: Tensor | None) -> Tensor:
    """Return X (d, n) without its part in span(U): X - U U^T X."""
    return x if basis is None else x - basis @ (basis.T @ x)


def sketch(x: Tensor, basis: Tensor | None, g: Tensor) -> Tensor:
    """Return (I - U U^T) X G (d, m) with a Gaussian G (n, m). The sum over clients sketches all their inputs."""
    return residual(x, basis) @ g


def gram(x: Tensor, basis: Tensor | None) -> Tensor:
    """Return R R^T (d, d), R = (I - U U^T) X. The sum over clients is exact."""
    r = residual(x, basis)
    return r @ r.T


def packed(matrix: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix (d, d) row by row, as (d (d + 1) / 2,).

    >>> packed(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


def unpacked(triangle: Tensor) -> Tensor:
    """Invert `packed`.

    >>> unpacked(torch.tensor([1.0, 2.0, 3.0])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    d = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    upper = triangle.new_zeros(d, d)
    upper[tuple(torch.triu_indices(d, d))] = triangle
    return upper + upper.triu(1).T


# -- extending a basis by one task -------------------------------------------------------------------------------------
def threshold(ratio: float, eps: float) -> float:
    """Return tau = (ratio - (1 - eps)) / ratio, the share of the residual to keep so that eps of the whole is kept.

    `ratio` is ||R|| / ||X|| or its square. Without a basis it is 1, and tau = eps.

    >>> threshold(1.0, 0.95), threshold(0.5, 0.75), threshold(0.0, 0.95)
    (0.95, 0.5, 0.0)
    """
    return (ratio - (1 - eps)) / ratio if ratio > 0 else 0.0


def directions(energies: Tensor, tau: float, least: int, noise: float = 0.0) -> int:
    """Return the smallest k with (e_1 + ... + e_k) / sum(e) > tau.

    Args:
        energies: (d,), descending.
        tau: Share of the energy to keep. With `least` = 0, a tau <= 0 keeps no direction.
        least: Lower bound on k.
        noise: Directions with energies up to `noise` * e_1 are never counted.

    >>> directions(torch.tensor([6.0, 3.0, 1.0]), 0.8, least=1)
    2
    """
    total = float(energies.sum())
    if not total > 0 or (tau <= 0 and least == 0):
        return 0
    above = int((energies > noise * energies[0]).sum())
    shares = energies.cumsum(0) / total
    return min(max(int((shares <= tau).sum()) + 1, least), above)


def joined(basis: Tensor | None, vectors: Tensor) -> Tensor:
    """Return (d, k + j): the basis and the j vectors, made orthonormal to it and to each other. At most d columns.

    >>> joined(torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [4.0]])).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if basis is not None:
        vectors = vectors[:, : basis.shape[0] - basis.shape[1]]
    for _ in range(2):  # a second pass removes the rounding errors of the first
        vectors = torch.linalg.qr(residual(vectors, basis))[0]
    return vectors if basis is None else torch.cat([basis, vectors], 1)


def extend_basis_from_sketch(basis: Tensor | None, y: Tensor, tau: float, least: int = 1) -> Tensor | None:
    """Extend U (d, k) or None by left singular vectors of Y (d, m). Energies are squared singular values."""
    left, values, _ = torch.linalg.svd(y.double(), full_matrices=False)
    noise = (max(y.shape) * torch.finfo(y.dtype).eps) ** 2
    return _extended(basis, left, directions(values.square(), tau, least, noise), y.dtype)


def extend_basis_from_gram(basis: Tensor | None, matrix: Tensor, tau: float, least: int = 1) -> Tensor | None:
    """Extend U (d, k) or None by the leading eigenvectors of R R^T (d, d). Energies are the eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix.double())
    noise = len(matrix) * torch.finfo(matrix.dtype).eps
    energies = values.flip(0).clamp(min=0)
    return _extended(basis, vectors.flip(1), directions(energies, tau, least, noise), matrix.dtype)


def _extended(basis: Tensor | None, vectors: Tensor, count: int, dtype: torch.dtype) -> Tensor | None:
    if not count or (basis is not None and basis.shape[1] == basis.shape[0]):
        return basis
    new = joined(None if basis is None else basis.double(), vectors[:, :count])
    return new.to(dtype) if basis is None else torch.cat([basis, new[:, basis.shape[1] :].to(dtype)], 1)
