"""The kinds of parts that a configuration is made of: one table.

A part is a strategy, a codec, a model, ...: an object that a configuration asks for by name. This table is the only
place that knows which kinds there are. Classes are written `module:Class`, so that importing the table costs nothing.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One kind of parts. A kind is named like its configuration key; `fl list` and error messages use the name.

    Args:
        name: the kind, as in `@register(name, ...)` and `fl list name`.
        packages: modules and packages in which registered names are looked up. The first one may have a dict
            `DEFAULTS`, kind -> name of the part that is used when the configuration names none.
        base: base class or protocol of the parts, as `module:Class`. A field of this type holds such a part.
        key: where a configuration holds parts of this kind, as a dotted path. Other places are possible.
        section: a dataclass, as `module:Class`, with a field `part` and options that are written beside the part's own
            arguments; "" if the kind has none.
    """

    name: str
    packages: tuple[str, ...]
    base: str
    key: str
    section: str = ""

    @property
    def base_class(self) -> type:
        """The class that `base` refers to."""
        return _class(self.base)

    @property
    def section_class(self) -> type | None:
        """The class that `section` refers to, or None."""
        return _class(self.section) if self.section else None

    @property
    def top_level(self) -> bool:
        """Whether the part stands directly under a top-level key of a configuration."""
        return "." not in self.key

    def default(self) -> str:
        """Name of the part that is used when the configuration names none, or "".

        >>> KINDS["optimiser"].default()
        ''
        """
        return getattr(importlib.import_module(self.packages[0]), "DEFAULTS", {}).get(self.name, "")


@functools.cache
def _class(reference: str) -> type:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


# fmt: off
KINDS: dict[str, Kind] = {kind.name: kind for kind in (
    Kind("strategy", ("fl.strategies",), "fl.method.strategy:Strategy", "strategy"),
    Kind("client", ("fl.clients",), "fl.method.client:ClientAlgorithm", "client"),
    Kind("partition", ("fl.partitions",), "fl.data.partitioner:Partitioner", "partition"),
    Kind("stream", ("fl.partitions",), "fl.data.stream:Stream", "stream"),
    Kind("shift", ("fl.partitions",), "fl.data.shift:Shift", "shift"),
    Kind("labels", ("fl.partitions.labels",), "fl.data.labels:Labels", "labels"),
    Kind("baseline", ("fl.strategies.baselines",), "fl.method.baseline:Baseline", "baselines"),
    Kind("adapter", ("fl.models.adapters",), "fl.models.adapter:Adapter", "model.adapter"),
    Kind("data", ("fl.data.sets",), "fl.data.dataset:Loader", "data", "fl.data.section:Data"),
    Kind("augment", ("fl.data.augment", "fl.data.randaugment"), "fl.data.augment:Augment", "data.augment"),
    Kind("model", ("fl.models.architectures",), "fl.models.section:Architecture", "model", "fl.models.section:Model"),
    Kind("task", ("fl.tasks",), "fl.tasks.task:Task", "task"),
    Kind("codec", ("fl.communication.codecs",), "fl.communication.codec:Codec", "codec.up"),
    Kind("transform", ("fl.privacy",), "fl.method.transform:Transform", "transforms"),
    Kind("after_reduction", ("fl.privacy",), "fl.method.after_reduction:AfterReduction", "after_reduction"),
    Kind("protocol", ("fl.privacy.secure",), "fl.privacy.secure.protocol:SecureProtocol",
         "secure_aggregation.protocol"),
    Kind("mechanism", ("fl.privacy",), "fl.privacy.mechanism:Mechanism", "privacy.mechanism"),
    Kind("clipping", ("fl.privacy",), "fl.privacy.clipping:Clipping", "privacy.clipping"),
    Kind("cohort", ("fl.method.sampler", "fl.method.min_separation", "fl.method.power_of_choice", "fl.method.oort"),
         "fl.method.sampler:CohortSampler", "cohort"),
    Kind("adversary", ("fl.method.adversary",), "fl.method.adversary:Adversary", "adversary"),
    Kind("optimiser", ("fl.method.optimiser",), "fl.method.optimiser:Optimiser", "client.optimiser"),
    Kind("server_optimiser", ("fl.method.server_optimiser",), "fl.method.server_optimiser:ServerOptimiser",
         "strategy.server_optimiser"),
    Kind("devices", ("fl.system.devices", "fl.system.device_trace"), "fl.system.devices:DeviceModel", "system.devices"),
    Kind("availability", ("fl.system.availability", "fl.system.availability_trace"),
         "fl.system.availability:Availability", "system.availability"),
    Kind("tracker", ("fl.tracking.trackers",), "fl.tracking.callback:Callback", "tracking"),
    Kind("server", ("fl.system.synchronous", "fl.system.asynchronous"), "fl.system.server_mode:ServerMode", "server"),
)}
# fmt: on


@functools.cache
def _by_class() -> dict[Any, Kind]:
    found: dict[Any, Kind] = {}
    for kind in KINDS.values():
        found[kind.base_class] = kind
        if kind.section_class is not None:
            found[kind.section_class] = kind
    return found


def kind_of(annotation: Any) -> Kind | None:
    """The kind whose base class or section class this annotation is, or None."""
    return _by_class().get(annotation) if isinstance(annotation, type) else None
