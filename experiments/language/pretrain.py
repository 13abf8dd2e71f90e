"""Train a small causal language model on public text of the data folder: python -m experiments.language.pretrain OUT.

2.2 million parameters: 4 layers of width 192, 2,048 tokens of a byte-level BPE, both made here. The default of 500
steps of 16 rows of 128 tokens takes about ten minutes on one core. OUT is a folder of Hugging Face's format, for
`model: {name: causal, path: OUT}`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.language.corpus import pretraining_texts
from fl.tensors import random

VOCABULARY, LENGTH, BATCH, RATE = 2048, 128, 16, 3e-3
END = "<|end|>"


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Return a byte-level BPE tokenizer of transformers."""
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(BPE())
    tokens.pre_tokenizer, tokens.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    tokens.train_from_iterator(
        texts, BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=END)


def make_model(width: int = 192) -> Any:
    """Return the model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def pretrain(folder: Path, steps: int) -> float:
    """Train the model and save it with its tokenizer; return the mean loss of the last steps, in nats per token."""
    texts = pretraining_texts()
    tokenizer = make_tokenizer(texts)
    ids = [token for text in tokenizer(texts)["input_ids"] for token in (*text, 0)]
    stream = torch.tensor(ids, dtype=torch.int32)
    model, losses, start = make_model(), [], time.perf_counter()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(steps):
        warmth = min(1.0, (step + 1) / 50)
        for group in optimiser.param_groups:
            group["lr"] = RATE * warmth * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        at = random.hash64("pretrain", step, torch.arange(BATCH).numpy()) % (len(stream) - LENGTH - 1)
        rows = torch.stack([stream[int(a) : int(a) + LENGTH + 1] for a in at]).long()
        scores = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1}: loss {sum(losses[-50:]) / 50:.3f}, {seconds:.0f} s", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    """Read the command line, and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pretrain(arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
