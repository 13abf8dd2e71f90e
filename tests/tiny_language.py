"""Tiny causal language models and instructions for tests: a folder with random weights and a tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = "what colour has the sky sea grass snow rose blue green white red answer : say two words night is dark".split()
ANSWERS = {"sky": "blue", "sea": "blue", "grass": "green", "snow": "white", "rose": "red", "night": "dark"}
TEMPLATE = "{instruction} {input} answer :"


def save_model(folder: Path, kind: str = "llama", width: int = 32, seed: int = 0) -> str:
    """Save a model of two layers and its tokenizer in a folder; return its path."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokens = Tokenizer(WordLevel(unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    tokens.train_from_iterator([" ".join(WORDS)], WordLevelTrainer(special_tokens=["<unk>", "<end>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}say {{ m['content'] }} {% endfor %}answer :"
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "llama":
            sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
            config = LlamaConfig(
                vocab_size=len(fast),
                hidden_size=width,
                intermediate_size=2 * width,
                max_position_embeddings=64,
                **sizes,
            )
            model = LlamaForCausalLM(config)
        else:
            config = GPT2Config(
                vocab_size=len(fast), n_embd=width, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
            )
            model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return str(folder)


def rows(count: int = 24, clients: int = 4) -> list[dict[str, str]]:
    """Return instructions: the colours of things. Each third answer has two words more."""
    things = list(ANSWERS)
    found = []
    for i in range(count):
        thing = things[(i * 5 + i // 6) % len(things)]
        answer = ANSWERS[thing] if i % 3 else f"the {thing} is {ANSWERS[thing]}"
        row = {"instruction": "what colour has the", "input": thing, "output": answer}
        found.append({**row, "client": f"c{i % clients}", "topic": thing})
    return found


def save_rows(path: Path, found: list[dict[str, str]]) -> str:
    """Write a .jsonl file; return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def config(folder: str, train: str, test: str, **changes: object) -> dict[str, object]:
    """Return the configuration of a short run with LoRA; `changes` by dotted path."""
    made: dict[str, object] = {
        "rounds": 2,
        "seed": 3,
        "data": {
            "name": "instructions",
            "path": train,
            "test": test,
            "tokenizer": folder,
            "length": 16,
            "clients": "client",
            "template": TEMPLATE,
        },
        "partition": "natural",
        "task": {"name": "instruct", "samples": 2, "samples_every": 2, "tokenizer": folder, "max_new_tokens": 5},
        "model": {"name": "causal", "path": folder, "adapter": {"name": "lora", "rank": 2, "alpha": 4}},
        "cohort": {"size": 3},
        "strategy": "fedit",
        "client": {"batch": 4, "lr": 0.5},
        "execution": {"executor": "serial"},
    }
    for path, value in changes.items():
        at = made
        *above, last = path.split(".")
        for key in above:
            if not isinstance(at.get(key), dict):
                at[key] = {"name": at[key]} if key in at else {}
            at = at[key]  # type: ignore[assignment]  # a mapping, made above
        at[last] = value
    return made
