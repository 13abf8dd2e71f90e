"""The experiments of this repository, shortened to a few rounds on little data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.regression.case import BEFORE, EXPERIMENTS, Case

SERIAL = {"execution.executor": "serial", "execution.workers": 1}
LORA_STRATEGIES = (
    *("fedsa_lora", "fedit", "ffa_lora", "rolora", "flora", "flexlora"),
    *("fedex_lora", "hetlora", "lora_fair", "feddpa_lora", "local"),
)
STREAM_STRATEGIES: dict[str, dict[str, Any]] = {
    "fot": {},
    "fot_gram": {"strategy.gpse": "gram", "strategy.residual_ratio": "energy"},
    "fedavg": {"strategy": {"name": "fedavg"}},
    "fedprox": {"strategy": {"name": "fedprox"}},
    "fedewc": {"strategy": {"name": "fedewc", "lam": 30}},
    "fedlwf": {"strategy": {"name": "fedlwf"}},
    "fedgpm": {"strategy": {"name": "fedgpm", "eps": 0.94}},
}


def cases() -> Iterator[Case]:
    """Yield all runs of this file."""
    yield from _streams()
    yield from _adapters()
    yield from _reconnaissance()
    yield from _reptile()
    yield from _others()
    yield from _benchmarks()


def _case(name: str, file: str, overrides: dict[str, Any], *data: str, **more: Any) -> Case:
    """Return a run of the YAML file experiments/`file`, serial on one core."""
    return Case(name, EXPERIMENTS / file, {**overrides, **SERIAL}, data=data, **more)


def _streams() -> Iterator[Case]:
    """Yield runs of FOT and the methods that it is compared with, on task streams."""
    digits = {
        "stream.tasks": 2,
        "stream.rounds": 2,
        "client.epochs": 1,
        "evaluation.every": 1,
        "model.hidden": [20, 20],
    }
    mnist = digits | {"data.train": 600, "data.test": 200}
    for name, strategy in STREAM_STRATEGIES.items():
        yield _case(f"fot/permuted_digits/{name}", "fot/permuted_digits.yaml", digits | strategy)
        yield _case(f"fot/split_mnist/{name}", "fot/split_mnist.yaml", mnist | strategy, "mnist")
    yield _case("fot/permuted_mnist/fot", "fot/permuted_mnist.yaml", mnist, "mnist")
    heads = {"stream.head": "per_task", "strategy.head": ["5.weight"]}
    yield _case("fot/split_mnist/heads", "fot/split_mnist.yaml", mnist | heads, "mnist")


def _adapters() -> Iterator[Case]:
    """Yield runs of LoRA methods and of FLASC, which sends sparse adapters."""
    short = {"rounds": 2, "evaluation.every": 1, "client.steps": 3}
    for strategy in LORA_STRATEGIES:
        change = {} if strategy == "fedsa_lora" else {"strategy": {"name": strategy}}
        yield _case(f"fedsa_lora/digits/{strategy}", "fedsa_lora/digits.yaml", short | change)
    text = {
        "rounds": 1,
        "evaluation.every": 1,
        "client.steps": 1,
        "data.train": 200,
        "data.length": 8,
        "cohort.size": 2,
    }
    text |= {"partition.min_size": 5, "partition.clients": 5}
    needs = {"packages": ("transformers",)}
    yield _case("fedsa_lora/sst2", "fedsa_lora/sst2.yaml", text, "sst2", **needs)
    yield _case("fedsa_lora/ag_news", "fedsa_lora/ag_news.yaml", text, "ag_news", **needs)
    sparse = {"rounds": 3, "evaluation.every": 1, "checkpoint.every": 2}
    yield _case("flasc/digits/flasc", "flasc/digits.yaml", sparse)
    fixed = {"strategy": {"name": "flasc_fixed", "down": 0.25, "up": 0.25, "lr": 0.01}}
    yield _case("flasc/digits/flasc_fixed", "flasc/digits.yaml", sparse | fixed)
    yield _case("flasc/digits/dense", "flasc/digits.yaml", sparse | {"strategy.down": 1.0, "strategy.up": 1.0})
    yield _case("flasc/digits/decay", "flasc/digits.yaml", sparse | {"strategy.decay": 0.5})


def _reconnaissance() -> Iterator[Case]:
    """Yield runs of Federated Reconnaissance, and runs that train a head on the encoder of an earlier run."""
    short = {"stream.tasks": 3, "model.width": 4, "data.field": 20}
    few = short | {"strategy.episodes": 2, "strategy.ways": 3, "strategy.shots": 2, "strategy.queries": 2}
    folder = "reconnaissance/"
    omniglot = _case("reconnaissance/omniglot", f"{folder}omniglot.yaml", few, "omniglot")
    yield omniglot
    yield _case("reconnaissance/untrained", f"{folder}untrained.yaml", short, "omniglot")
    again = few | {"stream.tasks": 2, "stream.classes": 2}
    yield _case("reconnaissance/clients", f"{folder}clients.yaml", again, "omniglot")
    for name in ("head", "head_together", "sequential", "retrain"):
        after = short | {"model.encoder": BEFORE, "client.epochs": 1}
        if name in ("sequential", "retrain"):
            after |= {"stream.tasks": 2}
        yield _case(f"reconnaissance/{name}", f"{folder}{name}.yaml", after, "omniglot", before=omniglot)


def _reptile() -> Iterator[Case]:
    """Yield runs of TinyReptile and the methods that it is compared with."""
    short = {"rounds": 3, "data.clients": 40, "splits.clients": 8, "evaluation.every": 3, "checkpoint.every": 2}
    uniform = {"strategy": {"name": "fedavg", "weights": "uniform"}, "cohort.size": 5}
    variants: dict[str, dict[str, Any]] = {
        "tiny_reptile": {},
        "fedavg_full": {**uniform, "client.batch": "full", "client.steps": 8},
        "fedavg_single": {**uniform, "client.batch": 1},
        "reptile": {"strategy": {"name": "reptile"}, "client.batch": "full", "client.steps": 8},
        "tiny_metafed": {"strategy": {"name": "tiny_metafed", "local": ["5.*"], "share": 0.5}},
    }
    for name, change in variants.items():
        yield _case(f"tiny_reptile/sine/{name}", "tiny_reptile/sine.yaml", short | change)
    characters = short | {"data.clients": 10, "data.held_out": 4, "splits.clients": 4}
    yield _case("tiny_reptile/omniglot", "tiny_reptile/omniglot.yaml", characters, "omniglot")


def _others() -> Iterator[Case]:
    """Yield runs of the experiments on codecs, devices and published data sets."""
    quick = {"rounds": 2, "evaluation.every": 1}
    little = quick | {"data.train": 800, "data.test": 200}
    yield _case("quickstart", "quickstart.yaml", {"rounds": 3})
    fewer = little | {"partition.min_size": 5, "model.hidden": [20]}
    yield _case("codecs/mnist", "codecs/mnist.yaml", fewer, "mnist")
    chain = {"codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.01}}]}}
    yield _case("codecs/mnist/top_k", "codecs/mnist.yaml", fewer | chain, "mnist")
    yield _case("codecs/noniid", "codecs/noniid.yaml", little, "mnist")
    yield _case("codecs/vote", "codecs/vote.yaml", little, "mnist")
    late: dict[str, dict[str, Any]] = {
        "all": {},
        "needed": {"server": {"name": "sync", "needed": 6}},
        "fedbuff": {"strategy": {"name": "fedbuff"}, "server": {"name": "buffered", "concurrency": 8, "buffer": 3}},
    }
    some = little | {"rounds": 3, "partition.clients": 30, "partition.min_size": 5, "cohort.size": 8}
    for name, change in late.items():
        yield _case(f"asynchronous/mnist/{name}", "asynchronous/mnist.yaml", some | change, "mnist")
    stragglers: dict[str, dict[str, Any]] = {
        "waits": {},
        "deadline": {"server": {"name": "sync", "deadline_seconds": 0.3}},
        "partial": {"server": {"name": "sync", "deadline_seconds": 0.3, "partial": True}},
        "fedprox": {
            "server": {"name": "sync", "deadline_seconds": 0.3, "partial": True},
            "strategy": {"name": "fedprox"},
            "client.mu": 0.1,
        },
    }
    slow = little | {"partition.clients": 40, "client.epochs": 5}
    for name, change in stragglers.items():
        yield _case(f"stragglers/mnist/{name}", "stragglers/mnist.yaml", slow | change, "mnist")
    pooled = {"rounds": 1, "splits.per_class": 2, "client.epochs": 1, "cohort.fraction": 0.15, "evaluation.clients": 3}
    yield _case("pfllib_mnist", "pfllib_mnist/mnist.yaml", pooled, "mnist")
    colour = little | {"data.train": 300, "data.test": 50, "partition.clients": 6, "partition.min_size": 5}
    colour |= {"cohort.size": 2}
    yield _case("cifar10", "cifar10/cifar10.yaml", colour, "cifar10")
    plays = quick | {"data.clients": 6, "data.max_samples": 20, "model.hidden": 16, "cohort.size": 3, "data.length": 20}
    yield _case("shakespeare", "shakespeare/shakespeare.yaml", plays, "shakespeare")


def _benchmarks() -> Iterator[Case]:
    """Yield runs of the workloads of `fl bench`."""
    quick = {"rounds": 2, "splits.val": 0.1}
    sizes: dict[str, dict[str, Any]] = {
        "cnn_pfl": {"data.clients": 4, "cohort.size": 2, "data.samples": 10},
        "cnn_small": {"data.clients": 4, "cohort.size": 2, "data.samples": 20},
        "femnist_mlp": {"data.clients": 12, "cohort.size": 6},
        "lora": {"data.clients": 6, "cohort.size": 3, "data.samples": 10, "model.width": 16, "model.forward": 32},
        "softmax": {"data.clients": 200, "cohort.size": 50},
    }
    for name, size in sizes.items():
        yield _case(f"benchmarks/{name}", f"benchmarks/{name}.yaml", quick | size)
