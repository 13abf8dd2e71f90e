"""A workload for all contestants: what a configuration makes of data, partition, model and cohorts, in one folder.

workload.json   layers, lr, batch, ..., our configuration       x.npy, y.npy         samples, client by client
first.npz       the model before round 0                        offsets.npy          client c owns x[offsets[c]:offsets[c + 1]]
clients.npy     cohorts, one after another                      ends.npy             where each ends
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fl
from fl.config.config import read, resolve
from fl.errors import ConfigError
from fl.simulation.setup import RunSetup, set_up_run
from fl.system.flops import flops_per_sample

FOLDER = Path(fl.__file__).parent.parent / "experiments" / "benchmarks"
ROUNDS = 256  # whose cohorts are drawn; then the first comes again
NEVER = 10**9

# what is not measured
OVERRIDES = {
    "rounds": NEVER,
    "evaluation": {"every": NEVER, "server": False},
    "checkpoint": {"every": NEVER, "best": False},
}


def find(workload: str) -> Path:
    """The YAML file of a workload."""
    for path in (FOLDER / f"{workload}.yaml", Path(workload)):
        if path.is_file():
            return path
    known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    raise ConfigError("workload", f"{workload!r} is not one of {known} (nor a YAML file)")


@dataclass(frozen=True, eq=False)
class Workload:
    name: str
    raw: dict[str, Any]
    run_setup: RunSetup
    device: str

    @classmethod
    def of(cls, path: Path, workers: int | None, device: str) -> Workload:
        """The one in a file, with the file's workers or others."""
        asked = {"execution.workers": workers} if workers else {}
        raw = read(path, OVERRIDES | asked | {"execution.device": device})
        config = resolve(raw)
        unlike = {"epochs", "batch", "lr"} - {name for name in vars(config.client)}
        if unlike:
            raise ConfigError("client", f"has no {sorted(unlike)}; contestants know mini-batch gradient descent only")
        if config.execution.workers is None:
            raise ConfigError("execution.workers", "missing; `fl bench --workers` says how many processes are compared")
        return cls(path.stem, raw, set_up_run(config), device)

    @property
    def workers(self) -> int:
        return self.run_setup.config.execution.workers or 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N,): samples of each client."""
        return self.run_setup.sizes(0)

    @cached_property
    def flops(self) -> float:
        """To train on one sample."""
        batch = {name: torch.from_numpy(array[:32]) for name, array in self.run_setup.dataset.train.items()}
        task = self.run_setup.periods[0].task
        return flops_per_sample(self.run_setup.module, batch["x"], lambda outputs: task.loss(outputs, batch).sum())

    def write(self, folder: Path) -> None:
        """For the contestants."""
        config, partition = self.run_setup.config, self.run_setup.periods[0].partition
        begins, sizes = partition.train_slices()
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = partition.indices[np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], sizes)]
        for name in "xy":
            array = self.run_setup.dataset.train[name]
            whole = len(rows) == len(array) and bool((rows == np.arange(len(rows))).all())
            np.save(folder / f"{name}.npy", array if whole else array[rows])
        cohorts = [config.cohort.sample(None, r, config.seed, sizes)[1] for r in range(ROUNDS)]
        np.save(folder / "offsets.npy", offsets)
        np.save(folder / "clients.npy", np.concatenate(cohorts))
        np.save(folder / "ends.npy", np.cumsum([len(cohort) for cohort in cohorts]))
        np.savez(folder / "first.npz", **{name: tensor.numpy() for name, tensor in self.run_setup.model.items()})
        client = config.client
        told = {"name": self.name, "layers": layers(self.run_setup.module), "lr": client.lr, "batch": client.batch}
        told |= {"epochs": client.epochs, "device": self.device, "workers": self.workers, "config": self.raw}
        (folder / "workload.json").write_text(json.dumps(told, default=float))


def layers(module: nn.Module) -> list[list[Any]] | None:
    """[name, numbers ...] of each layer; `None` for a model that is no stack of those that contestants know."""
    if not isinstance(module, nn.Sequential):
        return None
    named = list(map(_named, module))
    return None if None in named else named  # type: ignore[return-value]


def _named(layer: nn.Module) -> list[Any] | None:
    if isinstance(layer, nn.Linear):
        return ["linear", layer.in_features, layer.out_features]
    if isinstance(layer, nn.Conv2d) and _is(layer, stride=1, padding=0, dilation=1) and layer.groups == 1:
        return ["conv", layer.in_channels, layer.out_channels, *{*layer.kernel_size}]
    if isinstance(layer, nn.MaxPool2d) and isinstance(layer.kernel_size, int) and layer.stride == layer.kernel_size:
        return ["pool", layer.kernel_size]
    return {nn.ReLU: ["relu"], nn.Flatten: ["flatten"]}.get(type(layer))


def _is(layer: nn.Conv2d, **wanted: int) -> bool:
    found: Iterable[tuple[Any, int]] = ((getattr(layer, name), value) for name, value in wanted.items())
    return all(pair == (value, value) for pair, value in found) and len({*layer.kernel_size}) == 1
