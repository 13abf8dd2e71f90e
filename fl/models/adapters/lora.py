"""LoRA, rsLoRA, DoRA and VeRA for the linear layers of any module, built with peft.

    lora      W + alpha/r B A            A, B trained       Hu et al. 2021, arXiv:2106.09685
    rslora    W + alpha/sqrt(r) B A      the same           Kalajdzievski 2023, arXiv:2312.03732
    dora      m (W + alpha/r B A) / |W + alpha/r B A|    A, B, m trained    Liu et al. 2024, arXiv:2402.09353
    vera      W + diag(b) B diag(d) A    b, d trained       Kopiczko, Blankevoort, Asano 2023, arXiv:2310.11454

Initial values: A random (Kaiming-uniform), B and b zero. VeRA's A and B are random, frozen and shared by all layers.
DoRA's m (out,) starts as |W|, the norm of each row of W. Strategies treat m as part of the head.
The layer `out_proj` of nn.MultiheadAttention cannot be adapted: attention reads its weight and never calls it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fl.checks import at_least
from fl.errors import did_you_mean
from fl.models.adapter import Adapter
from fl.registry import register
from fl.tensors.params import match


def uncalled(module: nn.Module) -> set[str]:
    """Return the names of layers whose weights are read by their parent, which never calls them."""
    return {
        f"{name}.out_proj".lstrip(".") for name, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)
    }


def matching(names: Iterable[str], target: str) -> list[str]:
    """Return the names that equal `target` or end with it.

    >>> matching(["0.query", "0.my_query", "query"], "query")
    ['0.query', 'query']
    """
    return [name for name in names if f".{name}".endswith(f".{target}")]


def output_layer(module: nn.Module) -> nn.Module | None:
    """Return the layer that turns hidden states into scores of tokens; None for modules that are no language model."""
    body: Any = getattr(module, "body", None)
    return body.get_output_embeddings() if hasattr(body, "get_output_embeddings") else None


def without_fast_path(module: nn.Module) -> None:
    """Have encoder layers call their children in evaluation, too; torch's fast path reads base weights alone."""
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0  # one of the conditions of the fast path


@dataclass(frozen=True, kw_only=True)
class _Peft(Adapter):
    """Arguments of all adapters.

    Args:
        rank: rank r of the added matrices, at least 1.
        targets: names, or ends of names, of the layers to adapt. Default: every nn.Linear outside `trains` that its
            module calls; of a causal language model the layers that peft chooses for its architecture, such as q_proj
            and v_proj. "all-linear" stands for every nn.Linear, without a language model's output layer.
        trains: glob patterns of the model's own parameters that stay trainable, such as a head.
    """

    rank: int = 8
    targets: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)

    def wrap(self, module: nn.Module) -> nn.Module:
        from peft import get_peft_model  # seconds to import

        own = match((n for n, _ in module.named_parameters()), self.trains)
        added = vars(module).get("extension")  # parts that a method adds are trained whole, without an adapter
        own += [n for n, p in module.named_parameters() if added and n.startswith(f"{added}.") and p.requires_grad]
        kept = {name.rpartition(".")[0] for name in own}
        layers = dict(module.named_modules())
        unused = uncalled(module)
        called = [name for name in layers if name not in unused]
        output = output_layer(module)
        linear = [
            name
            for name in called
            if isinstance(layers[name], nn.Linear) and name not in kept and layers[name] is not output
        ]
        wanted = self.targets or getattr(module, "adapter_targets", ())
        if "all-linear" in wanted:
            wanted = ()
        for target in wanted:
            if not matching(layers, target):
                ends = [*layers, *(name.rpartition(".")[2] for name in layers)]
                raise ValueError(
                    f"targets: {target!r} is not a layer of the model; its linear layers are {linear}."
                    f"{did_you_mean(target, ends)}"
                )
            if not matching(called, target):
                raise ValueError(
                    f"targets: {target!r} belongs to nn.MultiheadAttention, which reads its weight and never calls it, "
                    f"so an adapter has no effect; the linear layers that are called are {linear}"
                )
        targets = [name for target in wanted for name in matching(called, target)] or linear
        if not targets:
            raise ValueError("adapter: the model has no linear layer outside `trains` to adapt; name `targets`")
        without_fast_path(module)
        if getattr(self, "dropout", 0.0) and hasattr(module, "keeps_padding"):
            vars(module)["keeps_padding"] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns about settings for other uses
            try:
                adapted = get_peft_model(module, self._config("|".join(map(re.escape, targets))))
            except ValueError as error:
                if "is not supported" not in str(error):
                    raise
                raise ValueError(f"targets: {error} The linear layers of the model are {linear}") from error
            module = adapted.base_model.model  # without peft's wrapper, so that names stay
        for name, parameter in module.named_parameters():
            if name in own:
                parameter.requires_grad_(True)
        return module

    def _config(self, targets: str) -> Any:
        """peft's configuration; `targets` is a regular expression that matches the whole names of the layers."""
        raise NotImplementedError


@register("adapter", "lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(_Peft):
    """W + alpha/r B A.

    Args:
        alpha: scale of the change; the change is alpha/r B A.
        dropout: probability of Dropout on the adapter's inputs in training, in [0, 1).
    """

    alpha: float = 16.0
    dropout: float = 0.0

    def _config(self, targets: str) -> Any:
        from peft import LoraConfig

        alpha: Any = self.alpha  # peft takes floats, but declares an int
        return LoraConfig(r=self.rank, lora_alpha=alpha, lora_dropout=self.dropout, target_modules=targets)


@register("adapter", "rslora")
@dataclass(frozen=True, kw_only=True)
class RsLoRA(LoRA):
    """W + alpha/sqrt(r) B A: with this scale the size of gradients does not depend on the rank.

    Args:
        alpha: scale of the change; the change is alpha/sqrt(r) B A.
    """

    def _config(self, targets: str) -> Any:
        config = super()._config(targets)
        config.use_rslora = True
        return config


@register("adapter", "dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(LoRA):
    """m (W + alpha/r B A) / |W + alpha/r B A|, row by row: the adapter changes directions, and m (out,) the lengths."""

    def _config(self, targets: str) -> Any:
        config = super()._config(targets)
        config.use_dora = True
        return config


@register("adapter", "vera")
@dataclass(frozen=True, kw_only=True)
class VeRA(_Peft):
    """W + diag(b) B diag(d) A, with trained d (r,) and b (out,); b starts at zero.

    Args:
        d_initial: initial value of d.
        seed: seed of the frozen A and B.
    """

    d_initial: float = 0.1
    seed: int = 0

    def _config(self, targets: str) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            r=self.rank,
            target_modules=targets,
            d_initial=self.d_initial,
            projection_prng_key=self.seed,
            save_projection=False,
        )
