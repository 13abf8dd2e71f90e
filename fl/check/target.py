"""Find the part that a target of `fl check` names, and the arguments to build it with."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from fl import registry
from fl.communication.codec import Codec
from fl.data.augment import Augment
from fl.errors import UnknownName
from fl.method.adversary import Adversary
from fl.method.after_reduction import AfterReduction
from fl.method.client import ClientAlgorithm
from fl.method.sampler import CohortSampler
from fl.method.strategy import Strategy
from fl.privacy.clipping import Clipping
from fl.privacy.mechanism import Mechanism
from fl.privacy.secure.protocol import SecureProtocol
from fl.tasks.task import Task

BASES: dict[type, str] = {
    Strategy: "strategy",
    ClientAlgorithm: "client",
    Codec: "codec",
    CohortSampler: "cohort",
    Augment: "augment",
    Adversary: "adversary",
    AfterReduction: "after_reduction",
    Mechanism: "mechanism",
    SecureProtocol: "protocol",
    Clipping: "clipping",
    Task: "task",
}
METHODS = {
    "split": "partition",
    "apply": "shift",
    "keep": "labels",
    "build": "model",
    "load": "data",
}  # of parts without a base class


def find_part(target: str, kinds: list[str]) -> tuple[str, str]:
    """(kind, name) of a target: "kind:name", a registered name, path/file.py:Name or module:Name.

    `kinds` are the kinds to search, in this order. A part that is not registered tells its kind by its base class or by
    the method that it defines.
    """
    kind, colon, name = target.partition(":")
    if colon and kind in kinds:
        return kind, name
    if colon:
        return _kind(registry.named(target), target, kinds), target
    for kind in kinds:
        if target in registry.names(kind):
            return kind, target
    known = {kind: registry.names(kind) for kind in kinds}
    raise UnknownName(f"{target!r} is not one of {known}, nor kind:name, path/to/file.py:Name or module:Name")


def _kind(part: Any, target: str, kinds: list[str]) -> str:
    bases = part.__mro__ if isinstance(part, type) else ()
    if nn.Module in bases or isinstance(part, nn.Module):
        return "model"
    found = [BASES[base] for base in bases if base in BASES]
    found += [kind for method, kind in METHODS.items() if hasattr(part, method)]
    if not found:
        methods = ", ".join(f"{method}()" for method in METHODS)
        raise UnknownName(
            f"{target!r} is none of {kinds}: derive it from one of {[base.__name__ for base in BASES]}, "
            f"or define one of {methods}"
        )
    return found[0]


def example_arguments(kind: str, part: Any, examples: dict[str, Any]) -> dict[str, Any]:
    """Arguments to build a part with: `examples` for its required fields, then those of its own `example_config`.

    `example_config` has dotted paths of a configuration; the part's own arguments are the entries below its kind.
    """
    arguments = {name: value for name, value in examples.items() if requires(part, name)}
    if kind in ("strategy", "client"):
        return arguments  # Bench.config merges the whole example_config
    own = getattr(part, "example_config", {})
    prefix = f"{kind}."
    return arguments | {path.removeprefix(prefix): value for path, value in own.items() if path.startswith(prefix)}


def requires(part: Any, name: str) -> bool:
    """Whether a part has a field of this name and no usable default for it."""
    fields = {f.name: f for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else {}
    unset = (dataclasses.MISSING, None)
    return name in fields and fields[name].default_factory is dataclasses.MISSING and fields[name].default in unset
