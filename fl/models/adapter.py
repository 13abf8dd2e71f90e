"""Adapters: small trainable tensors added to a frozen model (LoRA and its variants).

    W x  ->  W x + s B (A x)          A (rank, in) random, B (out, rank) zero, s = alpha / rank

An `Adapter` is a frozen dataclass registered under "adapter": `model: {name: ..., adapter: {name: lora, rank: 8}}`. The
names of its tensors show their role: `first(names)` are the factors next to the inputs (A), `second(names)`
the others (B), and `head(names)` are all other trained tensors. A mark counts only as a whole part of a name:

>>> first(["0.lora_A.default.weight", "0.explora_A.weight"]), head(["0.explora_A.weight"])
(['0.lora_A.default.weight'], ['0.explora_A.weight'])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from fl.tensors import random
from fl.tensors.params import Layout, Params

FIRST = {"lora_A", "vera_lambda_d"}  # peft's names
SECOND = {"lora_B", "vera_lambda_b"}


class Adapter:
    """Base class of adapters."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Freeze the module, except for tensors that the adapter leaves trainable, and add the adapter's tensors."""
        raise NotImplementedError


def first(names: Iterable[str]) -> list[str]:
    """The names of first factors, next to the inputs (A)."""
    return [n for n in names if not FIRST.isdisjoint(n.split("."))]


def second(names: Iterable[str]) -> list[str]:
    """The names of second factors, next to the outputs (B)."""
    return [n for n in names if not SECOND.isdisjoint(n.split("."))]


def head(names: Iterable[str]) -> list[str]:
    """The names that belong to no adapter: trained tensors of the model, usually its head."""
    return [n for n in names if (FIRST | SECOND).isdisjoint(n.split("."))]


def layers(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Adapted layer -> (name of A, name of B), for LoRA's tensors."""
    names, pairs = set(names), {}
    for a in sorted(names):
        parts = a.split(".")
        if "lora_A" in parts:
            k = len(parts) - 1 - parts[::-1].index("lora_A")
            b = ".".join([*parts[:k], "lora_B", *parts[k + 1 :]])
            if b in names:
                pairs[".".join(parts[:k])] = (a, b)
    return pairs


def base_name(layer: str) -> str:
    """Name of the frozen weight of an adapted layer."""
    return f"{layer}.base_layer.weight".lstrip(".")


def scale(module: nn.Module, layer: str) -> float:
    """The scale s of an adapted layer."""
    adapted: Any = module.get_submodule(layer)  # a layer of peft
    return float(adapted.scaling["default"])


def product(first: Tensor, second: Tensor, scale: float = 1.0) -> Tensor:
    """s B A, (out, in), from A (r, in) and B (out, r): the change of the weight."""
    return scale * (second @ first)


# -- ranks: a client of rank r uses the first r rows of A and columns of B ----------------------------------------
def resized(params: Params, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """The tensors cut, or padded with zeros, to `shapes`."""
    entries, dtypes = params.layout.entries, params.layout.dtypes
    if all(entry.shape == shapes[name] for name, entry in entries.items()):
        return params
    out = Layout.of((n, shapes[n], dtypes[e.buffer]) for n, e in entries.items()).zeros(*params.batch)
    for name, entry in entries.items():
        block: tuple[Any, ...] = (..., *(slice(0, min(a, b)) for a, b in zip(entry.shape, shapes[name])))
        out[name][block].copy_(params[name][block])
    return out


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape."""
    return {name: entry.shape for name, entry in params.layout.entries.items()}


def at_rank(params: Params, rank: int) -> Params:
    """LoRA's factors A with `rank` rows and B with `rank` columns; other tensors unchanged."""
    wanted = shapes(params)
    for a, b in layers(params).values():
        wanted |= {a: (rank, wanted[a][1]), b: (wanted[b][0], rank)}
    return resized(params, wanted)


def redrawn(params: Params, draw: int) -> Params:
    """Fresh adapters: each B is zero, each A is uniform in +-1/sqrt(in), like peft's, drawn at an address with `draw`.

    Draw 0 leaves the factors A unchanged.
    """
    fresh = params.clone()
    for layer, (a, b) in layers(params).items():
        fresh[b].zero_()
        if draw:
            source = random.torch_generator(draw, layer)
            fresh[a].uniform_(-1, 1, generator=source).div_(fresh[a].shape[1] ** 0.5)
    return fresh


# -- changes of the frozen weights ------------------------------------------------------------------------------------
def patched(change: Params | None, patch: Params) -> Params:
    """Add a patch to a change of the layers' weights, LAYER.W (out, in). A change of None is zero.

    A layer's patch is LAYER.W, or the product of LAYER.B (out, k) and LAYER.A (k, in).
    """
    added: dict[str, Tensor] = {}
    for name in patch:
        layer, _, part = name.rpartition(".")
        if part != "B":
            added[f"{layer}.W"] = patch[name] if part == "W" else product(patch[name], patch[f"{layer}.B"])
    return Params.of(added) if change is None else change + Params.of(added)


def folded(frozen: Params, change: Params) -> Params:
    """Add a change LAYER.W (out, in) to the frozen weights of layers."""
    weights = {base_name(name.rpartition(".")[0]): change[name] for name in change}
    return frozen.replace({name: frozen[name] + weights[name] for name in weights})
