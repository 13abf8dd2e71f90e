"""A resumed run continues to the same bits only if nothing has changed since it began.

environment.json of the run directory records the configuration, digests of the data, the partition, the first model and
the user's source files, and versions of packages. A resumed run compares them with the present ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fl import origins, registry
from fl.config.digest import FREE_TO_CHANGE
from fl.config.references import references_to_code
from fl.errors import ConfigError, dotted
from fl.models.client_models import ClientModel
from fl.simulation.setup import RunSetup
from fl.storage.run import RunDirectory, machine
from fl.tensors.serialise import digest

FREE = {"rounds", "checkpoint.best"} | FREE_TO_CHANGE
PACKAGES = ("fl", "torch", "numpy", "numba")  # those that compute
DIGESTS = {"data_sha256": "the data", "partition_sha256": "the partition", "model_sha256": "the first model"}
log = logging.getLogger(__name__)
Facts = dict[str, Any]


def describe(folder: RunDirectory, run_setup: RunSetup) -> None:
    """Record what results depend on, at the beginning of a run."""
    sources = _sources(run_setup)
    folder.describe(_facts(run_setup, sources), sources)


def require_unchanged(folder: RunDirectory, run_setup: RunSetup, round_: int, changed: bool) -> None:
    """Compare a resumed run with its beginning.

    Args:
        folder: the run directory.
        run_setup: the present set-up of the run.
        round_: the round at which the run continues.
        changed: resume with other results; the changes are recorded in environment.json.

    Raises:
        ConfigError: something that results depend on has changed.
    """
    before, differences = _compared(folder.path, {**machine(), **_facts(run_setup, {})})
    if not differences:
        return
    told = "; ".join(differences)
    if not changed:
        raise ConfigError(
            "",
            f"{folder.path} has changed since the run began: {told}. Undo this to get the same bits, or resume with "
            "--changed (fl.resume(..., changed=True)) to get others",
        )
    log.warning("resume with changes, so the bits are not those of an uninterrupted run: %s", told)
    sources = _sources(run_setup)
    history = [*before.get("changes", ()), {"round": round_, "changes": differences}]
    folder.describe(_facts(run_setup, sources) | {"changes": history}, sources)


def changes_of_inputs(directory: Path, now: Facts) -> list[str]:
    """Return what has changed, in words, since the run in `directory` began, beside its configuration.

    Args:
        directory: the run directory.
        now: content of environment.json of the present set-up.
    """
    before, differences = _compared(directory, now)
    configured = set(_of_configs(before.get("config", {}), now["config"], ""))
    return [difference for difference in differences if difference not in configured]


def _compared(directory: Path, now: Facts) -> tuple[Facts, list[str]]:
    """Return what a run recorded at its beginning, and the differences from `now` in words."""
    try:
        before = json.loads((directory / "environment.json").read_text())
    except (OSError, ValueError) as error:
        return {}, [f"environment.json cannot be read ({error})"]
    return before, _differences(before, now)


def _facts(run_setup: RunSetup, sources: Mapping[str, str]) -> Facts:
    """Return what environment.json records beside the machine."""
    partition = hashlib.sha256()
    for period in run_setup.periods:
        for array in (period.partition.indices, period.partition.offsets):
            partition.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    tensors = {name: tensor for model in run_setup.models for name, tensor in _tensors(model).items()}
    if run_setup.by_client is not None:
        tensors["by_client"] = torch.from_numpy(run_setup.by_client.assigned)
    return {
        "clients": run_setup.trainable,
        "plan": asdict(run_setup.plan),
        "config": json.loads(json.dumps(run_setup.config.to_dict())),  # tuples become lists
        "data_sha256": run_setup.dataset.digest(),
        "partition_sha256": partition.hexdigest(),
        "model_sha256": digest(tensors),
        "code": {path: _sha256(text) for path, text in sources.items()},
    }


def _tensors(model: ClientModel) -> dict[str, torch.Tensor]:
    """Return a model's first tensors by name; the name of its architecture comes first, if it has one."""
    of_all = {**model.initial.frozen, **model.initial.trained}
    return {dotted(model.name, name): tensor for name, tensor in of_all.items()}


def _sources(run_setup: RunSetup) -> dict[str, str]:
    """Return the user's source files that the configuration names, and those that they import: path -> text."""
    named = references_to_code(run_setup.config.to_dict())
    modules = [registry.module_name(Path(name)) if name.endswith(".py") else name for name in named]
    folders = {Path(name).parent for name in named if name.endswith(".py")}
    beside = {path: text for path, text in registry.sources().values() if Path(path).parent in folders}
    return origins.source_files(modules) | beside


def _differences(before: Facts, now: Facts) -> list[str]:
    """Return what differs from the beginning, in words."""
    found = _of_configs(before.get("config", {}), now["config"], "")
    for key, name in DIGESTS.items():
        if before.get(key) != now[key]:
            found.append(f"{name} (SHA-256 {str(before.get(key))[:12]}, now {now[key][:12]})")
    for path, sha in before.get("code", {}).items():
        file = Path(path)
        if not file.is_file():
            found.append(f"{path} is gone")
        elif _sha256(file.read_text(errors="replace")) != sha:
            found.append(f"{path} (the old text is in code/)")
    for name in PACKAGES:
        old, new = before.get("packages", {}).get(name), now["packages"][name]
        if old != new:
            found.append(f"{name} {new}, was {old}")
    return found


def _of_configs(before: Any, now: Any, path: str) -> list[str]:
    """Return the differences of two configurations of plain values."""
    if path in FREE:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [d for key in keys for d in _of_configs(before.get(key), now.get(key), dotted(path, key))]
    return [] if before == now or before != before else [f"{path}: {now!r}, was {before!r}"]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
