"""Gradient checkpointing: layers keep no activations for the backward pass, which computes them again.

The second pass of a layer uses the Dropout masks of the first one, so gradients are those without checkpointing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from fl.models.dropout import recorded_masks, replayed_masks


def mask_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second pass of a layer, for `torch.utils.checkpoint`."""
    masks: list[Any] = []
    return recorded_masks(masks), replayed_masks(masks)


def with_checkpointing(body: Any) -> None:
    """Have a Hugging Face model compute each of its layers twice in training, in place.

    Raises:
        ValueError: the architecture has no such layers.
    """
    if not getattr(body, "supports_gradient_checkpointing", False):
        raise ValueError(f"checkpointing: {type(body).__name__} does not support it; leave it out")
    # Dropout masks are ours, and no other layer draws, so the state of torch's generators need not be kept
    settings = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": mask_contexts}
    if hasattr(body, "activation_checkpointing_enable"):
        body.activation_checkpointing_enable(settings)
    else:  # before version 5.2 of transformers
        body.gradient_checkpointing_enable(settings)
