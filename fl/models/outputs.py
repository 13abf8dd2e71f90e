"""What a model returns: one tensor of outputs. Hugging Face's models return an object that holds it as `logits`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OutputsDoNotFit(ValueError):
    """The model returns what the task cannot use."""


def with_logits(module: nn.Module) -> nn.Module:
    """Have a module return `output.logits` where its output has this attribute; names of tensors stay."""
    if _take_logits not in module._forward_hooks.values():
        module.register_forward_hook(_take_logits)
    return module


def has_logits(output: Any) -> bool:
    """Whether a model's output is an object that holds the outputs as `logits`."""
    return not isinstance(output, Tensor) and isinstance(getattr(output, "logits", None), Tensor)


def _take_logits(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output.logits if has_logits(output) else output


def check_tensor(outputs: Any) -> None:
    """Raise `OutputsDoNotFit` if outputs are no tensor. Evaluations call `net(x)`; other calls may return a tuple."""
    if not isinstance(outputs, Tensor):
        raise OutputsDoNotFit(
            f"forward returns {described(outputs)}; it has to return one tensor of outputs (B, ...) when it is called "
            "with x alone, as evaluations do. A client algorithm's net(x, True), for example, may return more"
        )


def check_outputs(outputs: Any, wanted: int) -> None:
    """Raise `OutputsDoNotFit` if outputs are no tensor, or too few for the task."""
    check_tensor(outputs)
    if not outputs.is_floating_point():
        raise OutputsDoNotFit(f"forward returns {described(outputs)}; outputs have to be floating-point numbers")
    if outputs.ndim == 2 and outputs.shape[1] < wanted:
        raise OutputsDoNotFit(f"forward returns {described(outputs)}, but the task needs {wanted} outputs per sample")


def described(value: Any) -> str:
    """A value by its type and the shapes of its tensors."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(map(described, value))})"
    if isinstance(value, dict):
        return f"a {type(value).__name__} with {', '.join(f'{k}: {described(v)}' for k, v in value.items())}"
    return f"a {type(value).__name__}"


def sum_of_outputs(outputs: Any) -> Tensor:
    """The sum of all outputs of each sample, (B,): a stand-in for a loss that is not known."""
    outputs = outputs.logits if has_logits(outputs) else outputs
    tensors = [outputs] if isinstance(outputs, Tensor) else [o for o in outputs if isinstance(o, Tensor)]
    return torch.stack([tensor.float().reshape(len(tensor), -1).sum(1) for tensor in tensors]).sum(0)
