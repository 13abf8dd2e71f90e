"""All parts and sections of a configuration except strategies, most of them in a few runs of FedAvg."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.regression import fl_names
from experiments.regression.case import BEFORE, FOLDER, Case
from experiments.regression.strategies import BATCHED, FEDERATION, MOMENTUM, TRAINING

PARTS = "experiments.regression.parts:"
DIGITS: dict[str, Any] = {
    "seed": 0,
    "rounds": 3,
    "data": {"name": "digits", "test": 0.2},
    "partition": {"name": "dirichlet", "clients": 10, "alpha": 0.5, "min_size": 10},
    "splits": {"val": 0.1, "test": 0.2},
    "model": {"name": "mlp", "hidden": [16]},
    "cohort": {"name": "uniform", "size": 4},
    "strategy": {"name": "fedavg"},
    "client": {"epochs": 1, "batch": 16, "lr": 0.2},
    "execution": {"executor": "serial", "workers": 1},
}
NOISE: dict[str, Any] = {**FEDERATION, "strategy": {"name": "fedavg"}, "client": TRAINING}
NATURAL = {"partition": {"name": "natural"}, "cohort": {"name": "uniform", "size": 3}}
IMAGES = NOISE | {"data": {**NOISE["data"], "shape": [3, 8, 8]}}
PICTURES = NOISE | {"data": f"{PARTS}pictures", "cohort": {"size": 3}, "model": {"name": "cnn_tiny"}}
TOKENS = NOISE | {"data": {**NOISE["data"], "shape": [8], "vocabulary": 20}}
DEVICES: dict[str, Any] = {"ms_per_sample": 4, "up_mbps": 0.5, "down_mbps": 2, "latency_ms": 20}
POSITIONS = ("packed", "elias_fano", "golomb", "elias_gamma", "auto")  # codes for the positions of sparse entries
WATTS: dict[str, Any] = {"compute_watts": 3, "radio_watts": 1}
LOGNORMAL: dict[str, Any] = {"name": "lognormal", "sigma": 1.0, **DEVICES, **WATTS}


def cases() -> Iterator[Case]:
    """Yield all runs of this file."""
    for group in (
        _servers,
        _systems,
        _codecs,
        _partitions,
        _streams,
        _data,
        _models,
        _training,
        _evaluations,
        _executions,
    ):
        yield from group()


def _variants(group: str, config: dict[str, Any], variants: dict[str, dict[str, Any]], **more: Any) -> Iterator[Case]:
    """Yield a run of `config` for each of the named changes."""
    for name, overrides in variants.items():
        yield Case(f"{group}/{name}", config, overrides, **more)


# -- servers, devices -------------------------------------------------------------------------------------------------
def _servers() -> Iterator[Case]:
    """Yield runs of synchronous and asynchronous servers, with strategies that suit them."""
    servers: dict[str, dict[str, Any]] = {
        "sync": {"name": "sync"},
        "deadline": {"name": "sync", "deadline_seconds": 0.8},
        "needed": {"name": "sync", "needed": 3},
        "partial": {"name": "sync", "deadline_seconds": 0.8, "partial": True},
        "async": {"name": "async", "concurrency": 4},
        "buffered": {"name": "buffered", "concurrency": 6, "buffer": 3},
        "stale": {"name": "buffered", "concurrency": 6, "buffer": 2, "max_staleness": 1},
        "tiered": {"name": "tiered", "tiers": 2, "clients": 2},
    }
    system = {"system": {"devices": LOGNORMAL, "jitter": 0.2}}
    for strategy in ("fedavg", "fedasync", "fedbuff", "fedat", "scaffold", "fedadam", "ditto"):
        config = DIGITS | system | {"rounds": 4, "strategy": {"name": strategy}}
        for name, server in servers.items():
            yield Case(f"server/{strategy}/{name}", config, {"server": server})
    late = DIGITS | system | {"rounds": 4, "server": servers["buffered"]}
    rules: dict[str, dict[str, Any]] = {
        rule: {
            "strategy": {"name": "fedbuff", "staleness": rule, "server_optimiser": {"name": "momentum", "beta": 0.5}}
        }
        for rule in ("constant", "hinge")
    }
    yield from _variants("server/fedbuff/staleness", late, rules)
    codec = {"codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.1}}], "down": ["fp16"]}}
    yield from _variants("server/buffered_with", late, {"codec": codec, "dropout": {"system.dropout": 0.3}})
    yield Case("server/buffered_resumed", late, how="resume")


def _systems() -> Iterator[Case]:
    """Yield runs of device models, availability, dropout, jitter, memory limits and stopping by simulated time."""
    classes = {"phone": {"share": 0.7, "sigma": 0.5, **DEVICES}, "laptop": {"share": 0.3, "ms_per_sample": 1}}
    devices: dict[str, dict[str, Any]] = {
        "identical": {"name": "identical", **DEVICES},
        "lognormal": LOGNORMAL,
        "pareto": {"name": "pareto", "alpha": 1.5, **DEVICES},
        "classes": {"name": "classes", "classes": classes},
        "trace": {"name": "trace", "path": f"{FOLDER}/devices.json"},
    }
    for name, fleet in devices.items():
        yield Case(f"devices/{name}", DIGITS, {"system": {"devices": fleet}}, writes="traces")
    present: dict[str, dict[str, Any]] = {
        "always": {},
        "bernoulli": {"p": 0.6, "seconds": 2.0},
        "diurnal": {"p": 0.5, "amplitude": 0.4, "seconds": 2.0, "day": 60.0},
        "trace": {"path": f"{FOLDER}/availability.json"},
    }
    for name, arguments in present.items():
        system = {"devices": LOGNORMAL, "availability": {"name": name, **arguments}}
        yield Case(f"availability/{name}", DIGITS, {"system": system}, writes="traces")
    small = {"devices": {**LOGNORMAL, "memory_mb": 10}, "memory_mb": 8}
    flops = {"devices": {"name": "lognormal", "gflops": 0.01, "sigma": 0.5}, "compute": "flops"}
    kinds = {"dropout": {"devices": LOGNORMAL, "dropout": 0.4}, "jitter": {"devices": LOGNORMAL, "jitter": 0.5}}
    variants = {name: {"system": system} for name, system in (kinds | {"memory": small, "flops": flops}).items()}
    yield from _variants("system", DIGITS, variants)
    timed = {"system": {"devices": LOGNORMAL}, "rounds": 20, "stop.simulated_seconds": 3}
    yield Case("system/stop_by_time", DIGITS, timed)


# -- communication ----------------------------------------------------------------------------------------------------
def _codecs() -> Iterator[Case]:
    """Yield runs of each registered codec, up and down, and of chains of codecs."""
    arguments: dict[str, dict[str, Any]] = {
        "count_sketch": {"ratio": 0.5},
        "random_k": {"ratio": 0.25},
        "top_k": {"ratio": 0.25},
        "threshold": {"value": 0.01},
        "low_rank": {"rank": 2},
    }
    follows: dict[str, list[Any]] = {"error_feedback": [{"top_k": {"ratio": 0.1}}], "delta": ["bf16"]}
    for codec in fl_names.names("codec"):
        chain = [{codec: arguments.get(codec, {})}, *follows.get(codec, [])]
        yield Case(f"codec/{codec}", DIGITS, {"codec": {"up": chain}})
        yield Case(f"codec/{codec}/down", DIGITS, {"codec": {"down": chain}})
    for name, chain in _chains().items():
        yield Case(f"codec/chain/{name}", DIGITS, {"codec": {"up": chain}})
    both = {"codec": {"up": ["delta", {"quantise": {"bits": 4}}], "down": ["delta", {"top_k": {"ratio": 0.3}}]}}
    for strategy in ("fedavg", "scaffold", "fedproto", "ifca", "hierarchical", "gossip"):
        change = {"strategy": {"name": strategy}}
        if strategy == "gossip":
            change |= {"cohort.size": 10}
        yield Case(f"codec/both/{strategy}", DIGITS, both | change)
    yield Case("codec/resumed", DIGITS, both | {"codec.up": _chains()["top_k"]}, how="resume")


def _chains() -> dict[str, list[Any]]:
    """Return chains of several codecs, and codecs with arguments that are not the default."""
    return {
        "top_k": ["error_feedback", {"top_k": {"ratio": 0.05}}, {"quantise": {"bits": 8}}],
        **{f"top_k_{how}": [{"top_k": {"ratio": 0.05, "positions": how}}] for how in POSITIONS},
        "low_rank": ["error_feedback", {"low_rank": {"rank": 1}}],
        "sign": ["error_feedback", "sign"],
        "sketch": ["error_feedback", {"count_sketch": {"ratio": 0.3, "rows": 3}}],
        "hadamard": ["hadamard", {"quantise": {"bits": 4}}],
        "packed": [{"quantise": {"bits": 8}}, "zstd"],
        "nearest": [{"quantise": {"bits": 3, "mode": "nearest", "bucket": 64}}],
        "eden": [{"eden": {"bits": 2}}],
        "block_float": [{"block_float": {"bits": 5, "block": 16}}],
        "relative": [{"threshold": {"value": 0.1, "relative": True}}],
    }


# -- partitions -------------------------------------------------------------------------------------------------------
def _partitions() -> Iterator[Case]:
    """Yield runs of each partition, sampler, adversary, part after the reduction and shift."""
    ten = {"clients": 10}
    partitions: dict[str, dict[str, Any]] = {
        "dirichlet": {"alpha": 0.3, **ten},
        "extended_dirichlet": {"classes": 3, "alpha": 0.5, **ten},
        "file": {"lists": [list(range(30 * c, 30 * c + 25)) for c in range(10)]},
        "flwr": {"partitioner": "flwr_datasets.partitioner:IidPartitioner", "arguments": {"num_partitions": 10}},
        "iid": ten,
        "inner_dirichlet": {"sizes": [60 + 10 * c for c in range(10)], "alpha": 0.5},
        "pathological": {"num_classes_per_partition": 2, **ten},
        "pfllib": {"alpha": 0.5, **ten},
        "quantity": ten,
        "shards": {"num_shards_per_partition": 2, **ten},
    }
    for name in fl_names.names("partition"):
        if name in partitions:
            packages = ("flwr_datasets",) if name == "flwr" else ()
            own_test = {"splits.test": 0.0} if name == "pfllib" else {}
            overrides = {"partition": {"name": name, **partitions[name]}} | own_test
            yield Case(f"partition/{name}", _without("partition"), overrides, packages=packages)
    variants: dict[str, dict[str, Any]] = {
        "balanced": {"name": "dirichlet", "alpha": 0.3, "balanced": True, **ten},
        "power_law": {"name": "quantity", "law": "power_law", **ten},
        "deterministic": {
            "name": "pathological",
            "num_classes_per_partition": 2,
            "class_assignment_mode": "deterministic",
            **ten,
        },
        "another_seed": {"name": "iid", "seed": 3, **ten},
    }
    yield from _variants(
        "partition", _without("partition"), {name: {"partition": change} for name, change in variants.items()}
    )
    stored = {"partition": {"name": "file", "path": f"{FOLDER}/shares.npz"}, "splits.test": 0.0}
    yield Case("partition/stored", _without("partition"), stored, writes="shares")
    yield Case("partition/natural", NOISE)
    samplers: dict[str, dict[str, Any]] = {
        "cyclic": {"size": 4},
        "fixed": {"clients": [1, 3, 7]},
        "oort": {"size": 4},
        "poisson": {"rate": 0.4},
        "power_of_choice": {"size": 3, "candidates": 6},
        "rpow": {"size": 3, "candidates": 6},
        "uniform": {"size": 4},
        "weighted": {"size": 4},
    }
    for name in fl_names.names("cohort"):
        yield Case(f"sampler/{name}", _without("cohort"), {"cohort": {"name": name, **samplers.get(name, {})}})
    yield Case("sampler/fraction", _without("cohort"), {"cohort": {"fraction": 0.5}})
    for name in fl_names.names("adversary"):
        yield Case(f"adversary/{name}", DIGITS, {"adversary": {"name": name, "share": 0.4}})
    for name in fl_names.names("after_reduction"):
        yield Case(f"after_reduction/{name}", DIGITS, {"after_reduction": [{"name": name, "std": 0.01}]})
    shifts = {"relabel": {"classes": 3}, "noise": {"random_order": True}, "rotate": {"degrees": 30}}
    for name in fl_names.names("shift"):
        yield Case(f"shift/{name}", PICTURES, {"shift": {"name": name, **shifts.get(name, {})}})
    yield Case("shift/relabel/digits", DIGITS, {"shift": {"name": "relabel", "classes": 5}})
    yield Case("shift/rotate/angles", DIGITS, {"shift": {"name": "rotate", "angles": [0, 90, 180]}})


def _without(*keys: str) -> dict[str, Any]:
    """Return the digits configuration without some sections."""
    return {key: value for key, value in DIGITS.items() if key not in keys}


def _streams() -> Iterator[Case]:
    """Yield runs of each task stream, with strategies for continual learning and others."""
    config = _without("rounds")
    streams: dict[str, dict[str, Any]] = {
        "permuted": {"name": "permuted", "tasks": 2, "rounds": 2},
        "classes_shared": {"name": "classes", "tasks": 2, "rounds": 2, "head": "shared"},
        "classes_per_task": {"name": "classes", "tasks": 2, "rounds": 2, "head": "per_task"},
        "classes_joint": {"name": "classes", "tasks": 2, "rounds": 2, "head": "joint", "order": "seeded"},
        "missions": {"name": "missions", "tasks": 2, "rounds": 1, "clients": 4, "classes": 1},
    }
    for strategy in ("fedavg", "fedewc", "fedlwf", "fedgpm", "fot", "scaffold"):
        changes = {name: {"stream": stream, "strategy": {"name": strategy}} for name, stream in streams.items()}
        yield from _variants(f"stream/{strategy}", config | {"partition": {"name": "iid", "clients": 10}}, changes)
    by_domain = {key: value for key, value in PICTURES.items() if key != "rounds"}
    domains = {"stream": {"name": "domains", "tasks": 2, "rounds": 2, "by": "domain"}}
    yield Case("stream/fedavg/domains", by_domain, domains)
    yield Case("stream/fot/domains", by_domain, domains | {"strategy": {"name": "fot"}})
    kept = streams["missions"] | {"keep": True, "together": True}
    yield Case("stream/fedavg/missions_kept", config, {"stream": kept})
    yield Case("stream/resumed", config, {"stream": streams["permuted"], "strategy": {"name": "fot"}}, how="resume")


def _data() -> Iterator[Case]:
    """Yield runs of each data set, the options of data, augmentations and tasks."""
    rows = {"train": 200, "test": 50}
    sets: dict[str, tuple[dict[str, Any], str]] = {
        "adult": ({}, "tabular"),
        "ag_news": ({"train": 200, "test": 50, "length": 8}, "ag_news"),
        "cifar10": (rows, "cifar10"),
        "cifar100": (rows | {"labels": "coarse"}, "cifar100"),
        "credit_default": ({}, "tabular"),
        "heart_disease": ({}, "tabular"),
        "letter": ({}, "tabular"),
        "mnist": (rows, "mnist"),
        "omniglot": ({"field": 20}, "omniglot"),
        "shakespeare": ({"clients": 6, "max_samples": 20, "length": 10}, "shakespeare"),
        "sst2": ({"train": 200, "length": 8}, "sst2"),
        "usps": (rows, "usps"),
    }
    tokens = ("ag_news", "shakespeare", "sst2")
    text = {"model": {"name": "char_gru", "vocabulary": 40000, "embedding": 4, "hidden": 8, "layers": 1}}
    for name, (arguments, folder) in sets.items():
        change = {"model": {"name": "softmax"}, "partition": {"name": "iid", "clients": 20}, "cohort.size": 3}
        change |= {"data": {"name": name, **arguments}, "rounds": 2, "evaluation.clients": 3}
        if name in tokens:
            change |= text
        yield Case(f"data/{name}", _without("model"), change, data=(folder,))
    drawn = {"synthetic": {"clients": 5, "test": 0.2}, "noise": {"clients": 5}}
    for name, arguments in drawn.items():
        yield Case(f"data/{name}", DIGITS | NATURAL, {"data": {"name": name, **arguments}})
    two = {"name": "domains", "sets": ["digits", {"name": "noise", "shape": [1, 4, 4]}], "side": 8, "clients": 3}
    yield Case("data/domains", DIGITS | NATURAL, {"data": two})
    files = {
        "archive": {"data": f"{FOLDER}/data.npz"},
        "mapped": {"data": {"name": "mapped", "path": FOLDER}},
        "leaf": {"data": {"name": "leaf", "path": FOLDER, "kind": "table"}, "splits.test": 0.0},
    }
    for name, change in files.items():
        yield Case(f"data/{name}", DIGITS | NATURAL, change, writes=name)
    changes = {"normalise": {"data.normalise": True}, "long_tail": {"data.long_tail": 5.0}}
    changes |= {"per_class": {"splits.per_class": 4}, "pooled": {"splits.pooled": True, "cohort": {"size": 1}}}
    yield from _variants("data", DIGITS, changes)
    augments = {"crop": {"padding": 1}}
    for name in fl_names.names("augment"):
        for plan in ("loop", "flat", "vmap"):
            change = {"data.augment": [{"name": name, **augments.get(name, {})}], "execution.plan": plan}
            yield Case(f"augment/{name}/{plan}", IMAGES, change | {"model": {"name": "cnn_tiny"}})
    yield from _tasks()


def _tasks() -> Iterator[Case]:
    """Yield runs of language modelling, regression and multilabel classification, under each plan."""
    sine = {"data": {"name": "sine", "clients": 8, "samples": 20}, "task": "regression"}
    labels = {"data": f"{PARTS}signs", "task": "multilabel", "cohort": {"size": 3}}
    words = {"data": f"{PARTS}counting", "task": "language_modelling", "cohort": {"size": 3}}
    gru = {"name": "char_gru", "vocabulary": 7, "embedding": 4, "hidden": 8, "layers": 1, "predicts": "all"}
    attention = {"name": "transformer", "vocabulary": 7, "width": 8, "layers": 1, "heads": 2, "forward": 16}
    attention |= {"predicts": "all"}
    for plan in ("auto", "loop", *BATCHED):
        yield Case(f"task/regression/{plan}", NOISE, sine | {"execution.plan": plan})
        yield Case(f"task/multilabel/{plan}", NOISE, labels | {"execution.plan": plan})
        yield Case(f"task/language_modelling/{plan}", NOISE, words | {"model": attention, "execution.plan": plan})
    yield Case("task/language_modelling/gru", NOISE, words | {"model": gru})
    for strategy in ("scaffold", "ditto", "fedprox", "fedrep"):
        change = {"strategy": {"name": strategy}}
        yield Case(f"task/regression/{strategy}", NOISE, sine | change)
        yield Case(f"task/multilabel/{strategy}", NOISE, labels | change)
        yield Case(f"task/language_modelling/{strategy}", NOISE, words | {"model": attention} | change)


# -- models and training ----------------------------------------------------------------------------------------------
def _models() -> Iterator[Case]:
    """Yield runs of each model that needs no download, of BatchNorm, adapters and frozen parameters."""
    small: dict[str, tuple[dict[str, Any], list[int]]] = {
        "cnn_fedavg": ({}, [1, 28, 28]),
        "cnn_leaf": ({}, [1, 28, 28]),
        "cnn_pfl": ({}, [3, 16, 16]),
        "cnn_pfllib": ({}, [1, 28, 28]),
        "cnn_small": ({}, [3, 16, 16]),
        "cnn_tiny": ({}, [1, 8, 8]),
        "conv4": ({"width": 8, "norm": "group", "head": True}, [1, 16, 16]),
        "mlp": ({"hidden": [8, 8], "activation": "tanh", "dropout": 0.2}, [6]),
        "resnet18": ({"width": 4}, [3, 8, 8]),
        "resnet8": ({"width": 4}, [3, 8, 8]),
        "softmax": ({}, [6]),
    }
    few = {"rounds": 2, "data.clients": 3, "data.samples": 12, "cohort": {"size": 2}, "client.epochs": 1}
    for name, (arguments, shape) in small.items():
        large = name in ("cnn_fedavg", "cnn_leaf", "cnn_pfllib")  # several megabytes: one plan is enough
        for plan in ("auto",) if large else ("auto", "loop", "flat", "vmap"):
            change = {"data.shape": shape, "model": {"name": name, **arguments}, "execution.plan": plan}
            yield Case(f"model/{name}/{plan}", NOISE, few | change)
    attention = {"vocabulary": 20, "width": 8, "layers": 1, "heads": 2, "forward": 16}
    for name, arguments in (
        ("char_gru", {"vocabulary": 20, "hidden": 8}),
        ("char_lstm", {"vocabulary": 20, "hidden": 8}),
        ("transformer", attention),
    ):
        for plan in ("auto", "loop", "flat", "vmap"):
            change = {"model": {"name": name, **arguments}, "execution.plan": plan}
            yield Case(f"model/{name}/{plan}", TOKENS, change)
    yield from _norms()
    yield from _adapters(attention)
    yield from _fused(attention)
    frozen = {"freeze": {"model.freeze": ["1.*"]}, "trains": {"client.trains": ["3.*"]}}
    for plan in ("loop", *BATCHED):
        yield from _variants(f"frozen/{plan}", DIGITS, {n: c | {"execution.plan": plan} for n, c in frozen.items()})
    yield Case("model/init", DIGITS, {"model.init": BEFORE}, before=Case("before", DIGITS))


def _norms() -> Iterator[Case]:
    """Yield runs of each treatment of BatchNorm's running statistics."""
    for whose in ("averaged", "local", "batch"):
        for strategy in ("fedavg", "fedbn", "scaffold"):
            change = {"strategy": {"name": strategy}, "model": {"name": f"{PARTS}normalised", "batch_norm": whose}}
            if whose == "local":
                change |= {"evaluation.server": False}
            yield Case(f"batch_norm/{whose}/{strategy}", DIGITS, change)
    resnet = {"model": {"name": "resnet8", "norm": "batch", "width": 4, "batch_norm": "averaged"}}
    yield Case("batch_norm/resnet8", IMAGES, resnet | {"rounds": 2, "client.epochs": 1})


def _adapters(attention: dict[str, Any]) -> Iterator[Case]:
    """Yield runs of each adapter, on a perceptron and on a transformer."""
    for adapter in fl_names.names("adapter"):
        for strategy in ("fedavg", "fedit", "scaffold", "local"):
            change = {"strategy": {"name": strategy}, "model.adapter": {"name": adapter, "rank": 2}, "client.lr": 0.02}
            yield Case(f"adapter/{adapter}/{strategy}", DIGITS, change)
        for plan in ("loop", "flat", "vmap"):
            model = {"name": "transformer", **attention, "adapter": {"name": adapter, "rank": 2, "trains": ["head.*"]}}
            yield Case(f"adapter/{adapter}/transformer/{plan}", TOKENS, {"model": model, "execution.plan": plan})
    loose = {
        "model.adapter": {"name": "lora", "rank": 2, "dropout": 0.2},
        "strategy": {"name": "fedit"},
        "client.lr": 0.02,
    }
    yield Case("adapter/lora/dropout", DIGITS, loose)


def _fused(attention: dict[str, Any]) -> Iterator[Case]:
    """Yield runs of a transformer with LoRA that machine code trains; it takes widths that are multiples of 16."""
    lora = {"name": "lora", "rank": 2, "trains": ["head.*"]}
    config = TOKENS | {"model": {"name": "transformer", **attention, "width": 32, "adapter": lora}}
    strategies = ("fedavg", "fedprox", "scaffold", "fedit", "fedsa_lora", "ffa_lora")
    changes: dict[str, dict[str, Any]] = {name: {"strategy": {"name": name}} for name in strategies}
    changes |= {
        "rslora": {"model.adapter.name": "rslora"},
        "causal": {"model.causal": True},
        "momentum_clip": MOMENTUM,
        "adam": {"client.optimiser": "adam", "client.lr": 0.01},
        "full_batch": {"client.batch": "full"},
        "chunk_2": {"execution.chunk": 2},
    }
    for name, change in changes.items():
        yield Case(f"fused/{name}", config, change | {"execution.plan": "fused"})


def _training() -> Iterator[Case]:
    """Yield runs of learning-rate schedules, optimisers, training budgets, clipping, and server rules."""
    schedules: dict[str, dict[str, Any]] = {
        "cosine": {"schedule": "cosine"},
        "linear": {"schedule": "linear", "warmup": 2},
        "step": {"schedule": "step", "every": 2, "factor": 0.5},
        "constant": {"schedule": "constant", "warmup": 2},
        "cosine_by_step": {"schedule": "cosine", "by": "step", "over": 8},
        "step_by_step": {"schedule": "step", "by": "step", "every": 2, "factor": 0.5, "warmup": 3},
    }
    for name, schedule in schedules.items():
        for plan in ("loop", *BATCHED):
            change = {"client.lr": {"start": 0.2, **schedule}, "execution.plan": plan}
            yield Case(f"schedule/{name}/{plan}", DIGITS, change)
    optimisers: dict[str, dict[str, Any]] = {
        "nesterov": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        "decay": {"name": "sgd", "weight_decay": 0.01},
        "adam": {"name": "adam", "weight_decay": 0.01},
        "rmsprop": {"name": "torch", "cls": "RMSprop", "options": {"alpha": 0.9}},
    }
    for name, optimiser in optimisers.items():
        for plan in ("loop", *BATCHED):
            change = {"client.optimiser": optimiser, "client.lr": 0.02, "execution.plan": plan}
            yield Case(f"optimiser/{name}/{plan}", DIGITS, change)
    budgets: dict[str, dict[str, Any]] = {
        "steps": {"client.steps": 5, "client.epochs": None},
        "full": {"client.batch": "full"},
    }
    budgets |= {
        "clip": {"client.clip": 0.5},
        "uniform": {"strategy.weights": "uniform"},
        "server_lr": {"strategy.lr": 0.5},
    }
    yield from _variants("training", DIGITS, budgets)
    for side in ("client", "server"):
        yield Case(f"clip/{side}", DIGITS, {"transforms": [{"name": "clip", "bound": 0.2, "side": side}]})
        change = {"transforms": [{"name": "clip", "bound": 0.2, "side": side}], "strategy": {"name": "scaffold"}}
        yield Case(f"clip/{side}/scaffold", DIGITS, change)
    yield from _variants("strategy", DIGITS, _rules())


def _rules() -> dict[str, dict[str, Any]]:
    """Return overrides for strategies with arguments that are not the default."""
    rules: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "median": ({}, {}),
        "trimmed_mean": ({"beta": 0.25}, {}),
        "ifca": ({"clusters": 3}, {}),
        "fedproto": ({}, {"lam": 0.5}),
        "fedproto_head": ({"name": "fedproto"}, {"predict": "head"}),
        "moon": ({}, {"mu": 0.5, "temperature": 1.0}),
        "scaffold": ({"lr": 0.8}, {"option": 1}),
        "fedavgm": ({"beta": 0.5}, {}),
        "apfl": ({}, {"adaptive": True}),
        "per_fedavg": ({}, {"kind": "hf"}),
        "fedbabu": ({}, {"tune": "head"}),
        "fedexp": ({"average": True}, {}),
        "fednova": ({}, {"mu": 0.1}),
        "q_fedavg": ({}, {"q": 1.0}),
        "reptile": ({"schedule": "constant", "alpha": 0.5}, {"samples": 10}),
        "hierarchical": ({"edges": 3, "edge_rounds": 2}, {}),
        "hierarchical_uniform": ({"name": "hierarchical", "edges": 2, "weights": "uniform"}, {}),
        "fedrep": ({}, {"head_epochs": 2}),
        "fedala": ({}, {"first_epochs": 3, "layers": ["3.*"]}),
        "lg_fedavg": ({}, {}),
    }
    changes: dict[str, dict[str, Any]] = {}
    for name, (strategy, client) in rules.items():
        changes[name] = {"strategy": {"name": name, **strategy}} | {f"client.{key}": v for key, v in client.items()}
    for graph in ("ring", "torus", "random_regular", "complete"):
        for order in ("mix_train", "together"):
            gossip = {"strategy": {"name": "gossip", "graph": graph}, "cohort.size": 10}
            changes[f"gossip/{graph}/{order}"] = gossip | {"client.order": order}
    return changes


# -- evaluation and execution -----------------------------------------------------------------------------------------
def _evaluations() -> Iterator[Case]:
    """Yield runs of evaluation settings, stopping rules and baselines."""
    adapt = {"name": "sgd", "batch": "full", "steps": 3, "lr": 0.1}
    evaluations: dict[str, dict[str, Any]] = {
        "every": {"every": 2},
        "some": {"clients": 3},
        "nobody": {"clients": 0},
        "no_server": {"server": False},
        "trained": {"stage": "trained"},
        "adapted": {"stage": "adapted", "adapt": adapt, "shots": 10},
        "select_test": {"select": "eval/loss"},
        "select_train": {"select": "train/loss"},
    }
    yield from _variants("evaluation", DIGITS, {name: {"evaluation": change} for name, change in evaluations.items()})
    held: dict[str, Any] = {"splits": {"val": 0.0, "test": 0.5, "clients": 3}, "cohort": {"size": 3}}
    yield Case("evaluation/held_out", DIGITS, held | {"evaluation": {"clients": "held_out"}})
    adapted = {"evaluation": {"clients": "held_out", "stage": "adapted", "adapt": adapt}}
    yield Case("evaluation/held_out_adapted", DIGITS, held | adapted)
    stops: dict[str, dict[str, Any]] = {
        "target": {"rounds": 20, "stop.target": {"val/accuracy": 0.5}},
        "patience": {"rounds": 20, "client.lr": 2.0, "stop.patience": 2, "evaluation.select": "eval/loss"},
        "commits": {"rounds": 4, "checkpoint": {"every": 3, "best": False}},
    }
    yield from _variants("stop", DIGITS, stops)
    baselines = ["local", "centralised", "finetune", "majority"]
    for strategy in ("fedavg", "scaffold", "fedper", "fedprox"):
        yield Case(f"baselines/{strategy}", DIGITS, {"strategy": {"name": strategy}, "baselines": baselines})
    yield Case("baselines/steps", DIGITS, {"client.steps": 3, "client.epochs": None, "baselines": baselines})
    momentum = {"client.optimiser": {"name": "sgd", "momentum": 0.9}}
    yield Case("baselines/momentum", DIGITS, momentum | {"baselines": baselines})


def _executions() -> Iterator[Case]:
    """Yield runs of plans, chunks, threads, the Ray and Flower executors, and a resumed run."""
    for plan in ("auto", "loop", *BATCHED):
        yield Case(f"execution/{plan}", DIGITS, {"execution.plan": plan})
    for chunk in (1, 2, 8):
        for plan in BATCHED:
            yield Case(f"execution/chunk_{chunk}/{plan}", DIGITS, {"execution.plan": plan, "execution.chunk": chunk})
    image = {"model": {"name": "cnn_tiny"}, "execution.plan": "loop"}
    details: dict[str, dict[str, Any]] = {
        **{f"layout_{kind}": {"execution.memory_format": kind} for kind in ("contiguous", "channels_last", "compiled")},
        "micro_batch": {"execution.micro_batch": 3},
        "bf16": {"execution.precision": "bf16"},
    }
    for name, change in details.items():
        yield Case(f"execution/{name}", IMAGES | {"rounds": 2}, image | change)
    yield Case("execution/bf16/flat", DIGITS, {"execution.precision": "bf16", "execution.plan": "flat"})
    threads = {"execution.workers": 2, "execution.plan": "compiled", "execution.chunk": 1}
    yield Case("execution/threads", DIGITS, threads)
    yield Case("execution/seed", DIGITS, {"seed": 7})
    scaffold = DIGITS | {
        "strategy": {"name": "scaffold"},
        "codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.1}}]},
    }
    ray = {"execution.executor": "ray", "execution.workers": 2}
    yield Case("executor/serial", scaffold)
    yield Case("executor/resumed", scaffold, how="resume")
    yield Case("executor/ray", scaffold, ray, packages=("ray",))
    three = DIGITS | {
        "partition": {"name": "iid", "clients": 3},
        "cohort": {"fraction": 1.0},
        "strategy": {"name": "scaffold"},
        "execution": {**DIGITS["execution"], "plan": "loop"},  # Flower's nodes use this plan
    }
    yield Case("executor/flower", three, how="flower", packages=("flwr",))
    yield Case("executor/flower_serial", three)
