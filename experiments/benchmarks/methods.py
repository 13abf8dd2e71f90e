"""Speed of every method, and of settings of local training, as a share of FedAvg's, on the three benchmark models.

    python -m experiments.benchmarks.methods OUT [--models femnist_mlp softmax cnn_small] [--only NAME ...] [--turns 7]

Each strategy trains with its own client, and with the epochs, batch and learning rate of the model's configuration.
Settings, such as momentum, are FedAvg's (`SETTINGS`).
FedAvg and the method take turns, round by round, in one process with one thread. Rounds are whole rounds: cohort,
training, codecs, aggregation, commit, client states. Times are CPU seconds of the process, which depend little on what
else the machine does. The share is the median over turns of

    (CPU seconds per client of FedAvg) / (CPU seconds per client of the method in the same turn).

Beside it stand the plan, and share times g, where g is the number of samples that the method computes gradients of per
sample of FedAvg: 1 means that a gradient costs what it costs in FedAvg. g comes from the method's `workload`, which
virtual time uses, too. Gradients before training (`prepare_together`) are counted in the measured rounds instead;
`booked` in OUT/methods.json is g with those of `workload`. OUT/methods.json also has each turn, and the reason where a
method cannot train a model. Finished pairs are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl import Fit, LocalTraining, Params, Preparation, TrainingInputs, Tree, registry
from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation
from fl.simulation.workload import workload_of

FOLDER = Path(__file__).parent
# population and cohort: small enough that a turn takes seconds, large enough for chunks
SIZES = {
    "femnist_mlp": {"data.clients": 400, "cohort.size": 64},
    "softmax": {"data.clients": 4_000, "cohort.size": 1_000},
    "cnn_small": {"data.clients": 100, "cohort.size": 8},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"client.optimiser": {"name": "sgd", "momentum": 0.9}},
    "weight_decay": {"client.optimiser": {"name": "sgd", "weight_decay": 1e-4}},
    "clip": {"client.clip": 1.0},
    "FN": {"model.normalise": "feature", "model.bias": False},
    "LN": {"model.normalise": "layer", "model.bias": False},
    "dropout": {"model.dropout": 0.5},
}
OVERRIDES: dict[str, Any] = {
    "execution": {"executor": "serial", "workers": 1},
    "evaluation": {"every": 10**6, "server": False},
    "splits": {"val": 0.1, "test": 0.0},
    "rounds": 10**6,
}


def configuration(model: str, method: str) -> Config:
    """Return the model's configuration with a strategy, its own client, and what its `example_config` needs.

    Args:
        model: a key of `SIZES`.
        method: name of a strategy, or a key of `SETTINGS`.
    """
    settings = SETTINGS.get(method, {})
    strategy = "fedavg" if method in SETTINGS else method
    part = registry.lookup("strategy", strategy)
    client = registry.lookup("client", part.client)
    fields = {field.name for field in dataclasses.fields(client)} if dataclasses.is_dataclass(client) else set()
    training = {key: value for key, value in read(FOLDER / f"{model}.yaml", {})["client"].items() if key in fields}
    needs = {key: value for each in (part, client) for key, value in getattr(each, "example_config", {}).items()}
    parts = {"strategy": {"name": strategy}, "client": {"name": part.client, **training}}
    return resolve(read(FOLDER / f"{model}.yaml", {**OVERRIDES, **SIZES[model], **parts, **needs, **settings}))


class Run:
    """A run that takes one round at a time."""

    def __init__(self, config: Config, folder: Path):
        self.simulation = Simulation(config, folder)
        self.simulation.start_workers()
        self.simulation.before_rounds()

    def round(self) -> float:
        """Run and commit a round; return CPU seconds per client."""
        begin = time.process_time()
        row = self.simulation.one_round()
        self.simulation.commit()
        return (time.process_time() - begin) / row["cohort_size"]

    @property
    def examples(self) -> int:
        """Training samples of all clients together."""
        return int(self.simulation.run_setup.sizes(0).sum())

    @property
    def samples(self) -> int:
        """Samples that all clients together compute gradients of in round 1."""
        config, sizes = self.simulation.config, self.simulation.run_setup.sizes(0)
        return int(workload_of(config.client, sizes, np.zeros_like(sizes), 1, config.rounds, "train")[1].sum())

    @property
    def samples_before(self) -> int:
        """Those of them before training, as the method books them."""
        config, sizes = self.simulation.config, self.simulation.run_setup.sizes(0)
        return int(config.client.extra_samples(sizes, 1, config.rounds).sum())

    def close(self) -> None:
        """End the run."""
        self.simulation.__exit__(None, None, None)


@dataclass
class Count:
    """Samples of clients, and samples of the gradients that they take before training."""

    samples: int = 0
    gradients: int = 0


@dataclass
class Counted:
    """A preparation whose gradients are counted."""

    clients: Preparation
    counted: Count

    @property
    def sizes(self) -> np.ndarray:
        """Numbers of training samples of the clients."""
        return self.clients.sizes

    def fit(self, how: Fit, name: str, counts: np.ndarray, others: Params) -> tuple[Params, np.ndarray]:
        """Return the last z and the epochs."""
        found, epochs = self.clients.fit(how, name, counts, others)
        self.counted.gradients += int((counts * epochs).sum())
        return found, epochs


@contextlib.contextmanager
def counting(algorithm: type) -> Iterator[Count]:
    """Count the gradients that clients of an algorithm take before training, while the context lasts."""
    counted = Count()
    owner: Any = registry.definer(algorithm, "prepare_together")
    hook = vars(owner)["prepare_together"]

    def prepare_together(self: Any, clients: Preparation, inputs: TrainingInputs) -> Tree:
        counted.samples += int(clients.sizes.sum())
        return hook(self, Counted(clients, counted), inputs)

    if owner is not LocalTraining:
        owner.prepare_together = prepare_together
    try:
        yield counted
    finally:
        if owner is not LocalTraining:
            owner.prepare_together = hook


def measure(model: str, method: str, turns: int) -> dict[str, Any]:
    """Return the plan and the turns of a method, or the reason why the model cannot be trained by it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            runs = [Run(configuration(model, name), Path(folder) / str(i)) for i, name in enumerate(("fedavg", method))]
        except (ConfigError, ValueError) as error:
            return {"reason": str(error).splitlines()[0]}
        plan = runs[1].simulation.run_setup.plan.kind
        for run in runs:
            run.round()  # warms up
        kind = type(runs[1].simulation.config.client)
        with counting(kind) if issubclass(kind, LocalTraining) else contextlib.nullcontext(Count()) as counted:
            pairs = [[run.round() for run in runs] for _ in range(turns)]
        for run in runs:
            run.close()
        booked = gradients = runs[1].samples / runs[0].samples
        if counted.gradients:
            before = counted.gradients / (counted.samples * runs[0].samples / runs[0].examples)
            gradients = (runs[1].samples - runs[1].samples_before) / runs[0].samples + before
    ratios = [fedavg / own for fedavg, own in pairs]
    return {"plan": plan, "ratios": ratios, "gradients": gradients, "booked": booked}


def cells(found: dict[str, Any]) -> str:
    """Return the three cells of a method and a model."""
    if "reason" in found:
        return "cannot | |"
    share = statistics.median(found["ratios"])
    return f"`{found['plan']}` | {share:.2f} | {share * found['gradients']:.2f}"


def table(results: dict[str, dict[str, Any]], models: list[str]) -> str:
    """Return the table: a row for each strategy, three columns for each model."""
    lines = [
        "| method |" + "".join(f" {model} | share | share times g |" for model in models),
        "|---|" + "---|---:|---:|" * len(models),
    ]
    for method, found in results.items():
        lines.append(f"| `{method}` | " + " | ".join(cells(found[model]) for model in models) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the methods that are missing in OUT/methods.json, and print the table."""
    parser = argparse.ArgumentParser(description="Measure the speed of every method beside FedAvg.")
    parser.add_argument("out", type=Path, help="folder of methods.json")
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="strategies and settings. Default: all")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "methods.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    chosen = arguments.only or [*SETTINGS, *registry.names("strategy")]
    for method in chosen:
        for model in arguments.models:
            known = results.setdefault(method, {})
            if model not in known:
                known[model] = measure(model, method, arguments.turns)
                arguments.out.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1))
    print(table({name: results[name] for name in chosen}, arguments.models))


if __name__ == "__main__":
    main()
