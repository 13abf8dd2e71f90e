"""Check a part against the laws of its kind, on eight tiny clients in a temporary folder.

    check("my_rule.py:SignMean") -> [Finding("the_same_configuration_gives_the_same_bits", ok=True, detail=""), ...]

A law is a function of the part. It raises if it is broken and may return a remark. `LAWS` has the laws of each kind; a
strategy is checked with its own client, a client with the strategy that brings it.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from fl import registry
from fl.check import (
    adversary,
    after_reduction,
    augment,
    client,
    clipping,
    codec,
    cohort,
    data,
    labels,
    mechanism,
    model,
    partition,
    protocol,
    shift,
    strategy,
    task,
)
from fl.check.bench import Bench
from fl.check.finding import Finding, Law, try_law
from fl.check.target import example_arguments, find_part, requires
from fl.models.section import model_part

_ROOMS = {
    "strategy": strategy,
    "client": client,
    "codec": codec,
    "partition": partition,
    "shift": shift,
    "labels": labels,
    "cohort": cohort,
    "augment": augment,
    "adversary": adversary,
    "after_reduction": after_reduction,
    "mechanism": mechanism,
    "protocol": protocol,
    "clipping": clipping,
    "model": model,
    "task": task,
    "data": data,
}
LAWS: dict[str, list[Law]] = {kind: room.LAWS for kind, room in _ROOMS.items()}


def check(target: str, **arguments: Any) -> list[Finding]:
    """Check every law of the part that `target` names (see `find`), built with `arguments`."""
    kind, name = find(target)
    part = registry.lookup(kind, name)
    arguments = _with_examples(kind, part, arguments)
    missing = [module for module in getattr(part, "requires", ()) if importlib.util.find_spec(module) is None]
    if kind in ("data", "model") and requires(part, "path") and "path" not in arguments:
        missing.append("file or folder of the user's")
    if missing:
        return [Finding(law.__name__, True, f"not checked: there is no {missing[0]} here") for law in LAWS[kind]]
    if kind not in ("strategy", "client"):
        own_model = kind == "model" and not (isinstance(part, type) and hasattr(part, "build"))
        built = model.OwnModel(model_part(part, arguments)) if own_model else part(**arguments)
        return [try_law(law, built) for law in LAWS[kind]]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.of(kind, name, arguments, Path(folder))
        return [try_law(law, bench) for law in LAWS[kind]]


def bench_of(target: str, folder: Path) -> Bench:
    """Return the federation that a strategy or a client is checked on; its runs go to `folder`."""
    kind, name = find(target)
    return Bench.of(kind, name, _with_examples(kind, registry.lookup(kind, name), {}), folder)


def _with_examples(kind: str, part: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return `arguments`, with examples for those that the part requires."""
    return example_arguments(kind, part, getattr(_ROOMS[kind], "EXAMPLES", {})) | arguments


def find(target: str) -> tuple[str, str]:
    """(kind, name) of "kind:name", a registered name, path/file.py:Name or module:Name."""
    return find_part(target, list(LAWS))
