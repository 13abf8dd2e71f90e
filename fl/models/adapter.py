"""Adapters: small trainable tensors beside a frozen model (LoRA and its kin).

    W x  ->  W x + s B (A x)          A (rank, in) random, B (out, rank) zero, s = alpha / rank

An `Adapter` is a frozen dataclass registered under "adapter", used as `model: {name: ..., adapter: {name: lora, rank: 8}}`. The
names of what it adds say which half a tensor is: `first(names)` is the half next to the inputs (A), `second(names)` the other
(B), `head(names)` whatever else is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from fl.tensors import random
from fl.tensors.params import Layout, Params

FIRST = ("lora_A.", "vera_lambda_d.")  # as peft names them
SECOND = ("lora_B.", "vera_lambda_b.")


class Adapter:
    """Base of adapters."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with all it had frozen, but for what the adapter lets train, and the adapter's tensors added."""
        raise NotImplementedError


def first(names: Iterable[str]) -> list[str]:
    return [n for n in names if any(mark in n for mark in FIRST)]


def second(names: Iterable[str]) -> list[str]:
    return [n for n in names if any(mark in n for mark in SECOND)]


def head(names: Iterable[str]) -> list[str]:
    return [n for n in names if not any(mark in n for mark in FIRST + SECOND)]


def layers(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Adapted layer -> (name of A, name of B), of LoRA's tensors."""
    names = set(names)
    pairs = {
        n.split("lora_A.")[0].rstrip("."): (n, n.replace("lora_A.", "lora_B.")) for n in sorted(names) if "lora_A." in n
    }
    return {layer: pair for layer, pair in pairs.items() if pair[1] in names}


def base_name(layer: str) -> str:
    """The frozen weight that a layer's adapter stands beside."""
    return f"{layer}.base_layer.weight".lstrip(".")


def scale(module: nn.Module, layer: str) -> float:
    """s of an adapted layer."""
    return float(module.get_submodule(layer).scaling["default"])


def product(first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
    """s B A, (out, in), of A (r, in) and B (out, r): what an adapter adds to its weight."""
    return scale * (second @ first)


# -- ranks: a client of rank r works in the first r rows of A and columns of B ----------------------------------------
def resized(params: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """The tensors cut, or filled up with zeros, to `shapes`."""
    entries, dtypes = params.layout.entries, params.layout.dtypes
    if all(entry.shape == shapes[name] for name, entry in entries.items()):
        return params
    out = Layout.of((n, shapes[n], dtypes[e.buffer]) for n, e in entries.items()).zeros(*params.batch)
    for name, entry in entries.items():
        block = (..., *(slice(0, min(a, b)) for a, b in zip(entry.shape, shapes[name])))
        out[name][block].copy_(params[name][block])
    return out


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in params.layout.entries.items()}


def at_rank(params: Params, rank: int) -> Params:
    """LoRA's A's with `rank` rows, its B's with `rank` columns; the rest as it is."""
    wanted = shapes(params)
    for a, b in layers(params).values():
        wanted |= {a: (rank, wanted[a][1]), b: (wanted[b][0], rank)}
    return resized(params, wanted)


def redrawn(params: Params, draw: int) -> Params:
    """Adapters begun anew: each A uniform in +-1/sqrt(in), as peft draws it, from a stream by `draw`; each B zero.
    Draw 0 leaves the A's as they are."""
    fresh = params.clone()
    for layer, (a, b) in layers(params).items():
        fresh[b].zero_()
        if draw:
            source = random.torch_generator(draw, layer)
            fresh[a].uniform_(-1, 1, generator=source).div_(fresh[a].shape[1] ** 0.5)
    return fresh


# -- changes of the frozen weights ------------------------------------------------------------------------------------
def folded(frozen: Params, increments: Iterable[Params]) -> Params:
    """Frozen tensors with `increments` added to layers' weights: of a layer either LAYER.W (out, in), or LAYER.A (k, in) and
    LAYER.B (out, k), whose product it is."""
    weights = {}
    for increment in increments:
        for name in increment:
            layer, _, part = name.rpartition(".")
            if part == "B":
                continue
            change = increment[name] if part == "W" else product(increment[name], increment[f"{layer}.B"])
            weight = base_name(layer)
            weights[weight] = (weights[weight] if weight in weights else frozen[weight]) + change
    return frozen.replace(weights)
