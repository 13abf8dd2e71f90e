"""Adapters: small trainable tensors beside a frozen model (LoRA and its kin).

    W x  ->  W x + s B (A x)          A (rank, in) random, B (out, rank) zero, s = alpha / rank

An `Adapter` is a frozen dataclass registered under "adapter", used as `model: {name: ..., adapter: {name: lora, rank: 8}}`. The
names of what it adds say which half a tensor is: `first(names)` is the half next to the inputs (A), `second(names)` the other
(B), `head(names)` whatever else is trained.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

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
