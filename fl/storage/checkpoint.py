"""Checkpoints: a tree of values as safetensors + JSON, replaced atomically.

    <name>-<round>.safetensors    the tensors            <name>.json    the structure, and the name of the tensors' file

The JSON file is the commit. It is renamed into place last, so a reader finds either the old or the new checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from fl.storage import files
from fl.tensors.serialise import flatten, unflatten
from fl.tensors.trees import Tree


def save(folder: Path, name: str, tree: Tree, round_: int) -> None:
    """Write `tree` as the checkpoint `name` and delete the older one."""
    folder.mkdir(parents=True, exist_ok=True)
    skeleton, tensors = flatten(tree)
    file = f"{name}-{round_:06d}.safetensors"
    with files.replacing(folder / file) as part:  # safetensors refuses shared memory
        save_file({f"{i:05d}": t.contiguous().clone() for i, t in enumerate(tensors)}, part)
    record = {"tensors": file, "round": round_, "skeleton": skeleton}
    files.write_file(folder / f"{name}.json", json.dumps(record))
    for old in folder.glob(f"{name}-*.safetensors"):
        if old.name != file:
            files.remove(old)


def load(folder: Path, name: str, plain: bool = False) -> Tree:
    """Read the checkpoint `name`; `plain` as in `unflatten`. A `FileNotFoundError` if there is none."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: no round was committed in this folder")
    record = json.loads(path.read_text())
    tensors = load_file(folder / record["tensors"])
    # clone: memory allocated by torch is aligned, and alignment changes the last bits of results
    return unflatten(record["skeleton"], [tensors[key].clone() for key in sorted(tensors)], plain)
