"""Features of texts from a frozen, pre-trained encoder, computed once and kept in the user's cache.

    token ids (N, L) -> mean over the tokens of the last hidden states (N, D) -> divided by their norms

A file of the cache has the SHA-256 of the encoder's weights and of the ids in its name.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl.models.architectures.encoder import Encoder
from fl.models.pretrained import model_folder

BATCH = 64  # texts in one forward pass


def text_features(ids: np.ndarray, encoder: str) -> np.ndarray:
    """Return features of unit length, float32 (N, D), from the cache if they are there.

    Args:
        ids: token ids (N, L) of the encoder's tokenizer, filled with its padding id.
        encoder: `minilm`, or the folder of a pre-trained encoder.
    """
    path = cache_folder() / f"{_digest(ids, model_folder(encoder))}.npy"
    if not path.is_file():
        _store(path, computed(ids, encoder))
    return np.load(path)


def cache_folder() -> Path:
    """Return the folder of stored features: `fl/features` in XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fl" / "features"


def computed(ids: np.ndarray, encoder: str) -> np.ndarray:
    """Return the features that the encoder computes, without the cache."""
    module = Encoder(weights=encoder).build(ids.shape[1:], 1).eval()
    module.head = nn.Identity()
    x = torch.from_numpy(np.ascontiguousarray(ids))
    with torch.inference_mode():
        parts = [module(x[a : a + BATCH]) for a in range(0, len(x), BATCH)]
        return nn.functional.normalize(torch.cat(parts)).numpy()


def _digest(ids: np.ndarray, folder: Path) -> str:
    sha = hashlib.sha256(f"{ids.dtype} {ids.shape}".encode())
    sha.update(np.ascontiguousarray(ids).data)
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".bin")):
        sha.update(_file_digest(file, file.stat().st_mtime_ns))
    return sha.hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(file: Path, changed: int) -> bytes:
    """Return the SHA-256 of a file; a process reads it again only if it was changed (nanoseconds)."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _store(path: Path, features: np.ndarray) -> None:
    """Write a file of the cache in one step, so that other processes see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        np.save(part, features)
    os.replace(part.name, path)
