"""How a configuration asks for a part: NAME, `{name: NAME, arguments}`, or `{NAME: {arguments}}` alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from fl import registry
from fl.data.folder import DATA_FILES
from fl.errors import ConfigError, UnknownName
from fl.kinds import KINDS, Kind


@dataclass(frozen=True, eq=False)
class PartReference:
    """The words by which a configuration asked for a built part; `Config.to_dict` writes them down again.

    Args:
        name: a registered name, or the reference to the user's own code or data file.
        part: the part that was built.
        arguments: the arguments of a user's function. None for a part whose fields are its arguments.
    """

    name: str
    part: Any
    arguments: Mapping[str, Any] | None = None

    def describes(self, part: Any) -> bool:
        """Whether `part` is the built part, or a changed copy of it (`dataclasses.replace`) that has its own fields."""
        return part is self.part or (self.arguments is None and type(part) is type(self.part))


def find(kind: Kind, name: str, path: str) -> Any:
    """The part with this name, or a `ConfigError` at `path`. A data file is read by the data part for files."""
    if name.startswith("object:"):
        raise ConfigError(
            path,
            f"{name.partition(':')[2]} was given as a Python object, which config.yaml cannot hold; put it in a file, "
            f"name it path/to/file.py:Name, and run again",
        )
    try:
        return registry.lookup(kind.name, "file" if kind.name == "data" and name.endswith(DATA_FILES) else name)
    except UnknownName as error:
        raise ConfigError(path, str(error)) from None


def named(kind: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    """Any way to ask for a part as `{name: NAME, arguments}`. A mapping that names no part is only copied.

    >>> named("codec", "sign"), named("codec", {"top_k": {"ratio": 0.1}})
    ({'name': 'sign'}, {'name': 'top_k', 'ratio': 0.1})
    """
    if isinstance(value, str):
        return {"name": value}
    if len(value) == 1 and "name" not in value:
        ((name, arguments),) = value.items()
        # the user's own code is not loaded here, because a configuration is also read without being run
        if (
            isinstance(arguments, Mapping)
            and isinstance(name, str)
            and (":" in name or registry.is_registered(kind, name))
        ):
            return {"name": name, **arguments}
    return dict(value)


def holds_data(values: Mapping[str, Any]) -> bool:
    """Whether a mapping is data given in Python (`{"x": ..., "y": ...}`, `{"train": ...}`), not a part by its name.

    >>> holds_data({"train": 5000}), holds_data({"x": [[1.0]], "y": [0]}), holds_data({"name": "mnist", "train": 500})
    (False, True, False)
    """
    plain = (str, int, float, NoneType)
    if "name" in values:
        return False
    of_yaml = all(isinstance(value, (*plain, list, tuple, Mapping)) for value in values.values())
    return not of_yaml or any(not isinstance(values[key], plain) for key in ("x", "train") if key in values)


def with_name(values: Mapping[str, Any], default: str) -> dict[str, Any]:
    """The arguments of a part, with the name `default` if they name no part.

    >>> with_name({"momentum": 0.9}, "sgd"), with_name({"adm": {"lr": 0.1}}, "sgd")  # {NAME: {...}} names a part
    ({'name': 'sgd', 'momentum': 0.9}, {'adm': {'lr': 0.1}})
    """
    names_part = "name" in values or (len(values) == 1 and isinstance(next(iter(values.values())), Mapping))
    return dict(values) if names_part else {"name": default, **values}


MODELS = ("path", "weights", "tokenizer", "encoder")  # keys whose values may be folders of pretrained models


def anchor(node: Any, folder: Path) -> None:
    """Make references to the user's files and models absolute, in place, if they exist relative to `folder`."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        if isinstance(node[key], str):
            model = key in MODELS and (folder / node[key] / "config.json").is_file()
            node[key] = str((folder / node[key]).resolve()) if model else anchored(node[key], folder)
        else:
            anchor(node[key], folder)


def anchored(reference: str, folder: Path) -> str:
    """Make the path of `path.py:Name` or of a data file absolute, if the file exists in `folder`."""
    if reference.endswith((*DATA_FILES, ".jsonl", ".gguf")) and (folder / reference).is_file():
        return str((folder / reference).resolve())
    where, colon, name = reference.rpartition(":")
    if re.fullmatch(r"[^:]+\.py", where) and (folder / where).is_file():
        return str((folder / where).resolve()) + colon + name
    return reference


_KEYS = {"name", *(kind.key.rpartition(".")[2] for kind in KINDS.values())}  # whose values name parts


def references_to_code(node: Any, key: str = "") -> list[str]:
    """Return the user's files and modules that a configuration names, in order. Nothing is loaded.

    >>> references_to_code({"strategy": {"name": "/home/me/rule.py:Mine", "lr": 1.0}, "codec": {"up": ["mine:Codec"]}})
    ['/home/me/rule.py', 'mine']
    """
    if isinstance(node, str):
        where, _, name = node.rpartition(":")
        named = where != "object" and (where.endswith(".py") or (key in _KEYS and re.fullmatch(r"[\w.]+", where)))
        return [where] if named and name.isidentifier() else []
    children: list[tuple[str, Any]] = []
    if isinstance(node, Mapping):
        children = [(str(k), v) for k, v in node.items()]
        children += [("name", k) for k, v in node.items() if isinstance(k, str) and isinstance(v, Mapping)]
    elif isinstance(node, list):
        children = [(key, v) for v in node]
    return list(dict.fromkeys(found for k, child in children for found in references_to_code(child, k)))
