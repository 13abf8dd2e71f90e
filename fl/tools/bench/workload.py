"""A workload for all contestants: data, partition, model and cohorts of a configuration, in one folder.

workload.json   layers, lr, batch, ..., our configuration       x.npy, y.npy    samples, client by client
first.npz       the model before round 0                        offsets.npy     of c: x[offsets[c]:offsets[c + 1]]
clients.npy     cohorts, one after another                      ends.npy        end of each cohort in clients.npy

`python -m fl.tools.bench.workload NAME FOLDER WORKERS DEVICE` writes the folder. `fl bench --tree` calls it in another
checkout, whose configuration files may have other keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.method.optimiser import SGD
from fl.simulation.build import set_up_run
from fl.simulation.setup import RunSetup
from fl.system.flops import flops_per_sample

TREE = Path(fl.__file__).parent.parent
FOLDER = TREE / "experiments" / "benchmarks"
ROUNDS = 256  # rounds whose cohorts are drawn; they repeat after that
NEVER = 10**9

# no evaluation and no commit
OVERRIDES = {
    "rounds": NEVER,
    "evaluation": {"every": NEVER, "server": False},
    "checkpoint": {"every": NEVER, "best": False},
}


def find(workload: str) -> Path:
    """The YAML file of a workload: a name in `FOLDER`, or a path."""
    for path in (FOLDER / f"{workload}.yaml", Path(workload)):
        if path.is_file():
            return path
    known = sorted(["aggregation", *(p.stem for p in FOLDER.glob("*.yaml"))])
    raise ConfigError("workload", f"{workload!r} is not one of {known} (nor a YAML file)")


@dataclass(frozen=True, eq=False)
class Workload:
    """A configuration that contestants train.

    Args:
        path: its file; the file's name without suffix is the workload's name.
        raw: the configuration as read, with `OVERRIDES`.
        run_setup: its data, partition and model.
        device: cpu or cuda.
    """

    path: Path
    raw: dict[str, Any]
    run_setup: RunSetup
    device: str

    @classmethod
    def load(cls, path: Path, workers: int | None, device: str) -> Workload:
        """Read a YAML file; `workers` replaces the file's number of workers."""
        changes = {"execution.workers": workers} if workers else {}
        raw = read(path, OVERRIDES | changes | {"execution.device": device})
        config = resolve(raw)
        missing = {"epochs", "batch", "lr"} - {*vars(config.client)}
        if missing:
            raise ConfigError("client", f"has no {sorted(missing)}; contestants only know mini-batch gradient descent")
        _require_plain_training(config.client)
        if config.execution.workers is None:
            raise ConfigError("execution.workers", "missing; set it or `fl bench --workers`: the number of processes")
        return cls(path, raw, set_up_run(config), device)

    @property
    def name(self) -> str:
        """Name of its file, without suffix."""
        return self.path.stem

    @property
    def workers(self) -> int:
        """Number of processes of contestants that use several."""
        return self.run_setup.config.execution.workers or 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Training samples of each client, (N,)."""
        return self.run_setup.sizes(0)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations to train on one sample."""
        batch = {name: torch.from_numpy(array[:32]) for name, array in self.run_setup.dataset.train.items()}
        task = self.run_setup.periods[0].task
        return flops_per_sample(self.run_setup.module, batch["x"], lambda outputs: task.loss(outputs, batch).sum())

    def write(self, folder: Path) -> None:
        """Write the files that contestants read, see the module."""
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
        first: dict[str, Any] = {name: tensor.numpy() for name, tensor in self.run_setup.model.items()}
        np.savez(folder / "first.npz", **first)
        client: Any = config.client
        training = {"lr": client.lr, "batch": client.batch, "epochs": client.epochs or 1}
        facts = {"name": self.name, "layers": layers(self.run_setup.module), **training}
        facts |= {"device": self.device, "workers": self.workers, "config": self.raw}
        (folder / "workload.json").write_text(json.dumps(facts, default=float))


def _require_plain_training(client: Any) -> None:
    """Require epochs of gradient steps of one size on batches in order: contestants know nothing else.

    Raises:
        ConfigError: the client has another budget, optimiser, clipping or rule for last batches.
    """
    unknown = {
        "steps": client.steps is not None,
        "epochs": not float(client.epochs or 1).is_integer(),
        "lr": not isinstance(client.lr, (int, float)),
        "optimiser": client.optimiser != SGD(),
        "clip": client.clip is not None,
        "trains": client.trains is not None,
        "last_batch": client.last_batch not in (None, "keep"),
    }
    for key in unknown:
        if unknown[key]:
            raise ConfigError(f"client.{key}", f"{getattr(client, key)!r} is unknown to the contestants; leave it out")


def layers(module: nn.Module) -> list[list[Any]] | None:
    """[kind, numbers ...] of each layer; None unless the model is a stack of layers that contestants know."""
    if not isinstance(module, nn.Sequential):
        return None
    found = [layer for layer in map(_layer, module) if layer is not None]
    return found if len(found) == len(module) else None


def _layer(layer: nn.Module) -> list[Any] | None:
    if isinstance(layer, nn.Linear):
        return ["linear", layer.in_features, layer.out_features]
    if isinstance(layer, nn.Conv2d) and _has(layer, stride=1, padding=0, dilation=1) and layer.groups == 1:
        return ["conv", layer.in_channels, layer.out_channels, *{*layer.kernel_size}]
    if isinstance(layer, nn.MaxPool2d) and isinstance(layer.kernel_size, int) and layer.stride == layer.kernel_size:
        return ["pool", layer.kernel_size]
    return {nn.ReLU: ["relu"], nn.Flatten: ["flatten"]}.get(type(layer))


def _has(layer: nn.Conv2d, **wanted: int) -> bool:
    """Whether a convolution has these settings in both dimensions, and a square kernel."""
    found: Iterable[tuple[Any, int]] = ((getattr(layer, name), value) for name, value in wanted.items())
    return all(pair == (value, value) for pair, value in found) and len({*layer.kernel_size}) == 1


if __name__ == "__main__":
    name, folder, workers, device = sys.argv[1:]
    Workload.load(find(name), int(workers), device).write(Path(folder))
