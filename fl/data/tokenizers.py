"""Tokenizers of pretrained language models."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from fl.models.pretrained import pretrained

SAVE = "Save the model's tokenizer there: tokenizer.save_pretrained(FOLDER)"


@functools.lru_cache(maxsize=4)
def load_tokenizer(name: str, key: str = "tokenizer") -> Any:
    """Return the tokenizer of a pretrained model, of transformers. No code of the folder is executed.

    Args:
        name: a folder, a .gguf file, or a name in `fl.models.pretrained.PACKAGED`.
        key: name of the setting, for errors.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded: all files are in the folder
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    place = pretrained(name, key)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place.folder, **place.source, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the Rust part raises plain Exceptions
        reason = f"{type(error).__name__}: {error}"
        if "trust_remote_code" in reason:
            reason = "it needs Python code of its own, which is not executed"
        raise ValueError(f"{key}: the tokenizer of {name!r} cannot be loaded: {reason}. {SAVE}") from error
    if not tokenizer.vocab_size:  # transformers makes one without tokens if the files are missing
        raise ValueError(f"{key}: {name!r} has no tokenizer. {SAVE}")
    return tokenizer


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, without tokens that the tokenizer adds."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []


def beginning(tokenizer: Any) -> list[int]:
    """Return the token that the tokenizer writes before a text: [id], or [] if it writes none."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def ending(tokenizer: Any, name: str) -> int:
    """Return the id of the token that ends an answer. `name` is the tokenizer's name, for the error."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer: {name!r} names no token for the end of a text; set eos_token in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)
