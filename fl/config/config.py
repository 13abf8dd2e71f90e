"""The configuration of a run: YAML keys are the argument names of frozen dataclasses, and no class reads YAML.

    read(source, overrides) -> dict      fl/config/reading.py: `extends`, then overrides
    resolve(dict)           -> Config    builds and checks every part; Config.to_dict() is the inverse

A mistake is a `ConfigError` that says where it is, what is wrong, what is allowed, and what was probably meant.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl.checks import at_least, not_negative
from fl.communication.chain import Chain
from fl.communication.codec import Codec
from fl.communication.section import Codecs
from fl.config.building import Builder
from fl.config.dumping import to_plain
from fl.config.fields import NOT_A_KEY, fields_of
from fl.config.references import PartReference, anchored, named, with_name
from fl.config.sections import Evaluation, Stop
from fl.data.labels import Labels
from fl.data.partitioner import Partitioner
from fl.data.section import Data
from fl.data.shift import Shift
from fl.data.splits import Splits
from fl.data.stream import Stream
from fl.errors import ConfigError
from fl.execution.section import Execution
from fl.kinds import KINDS
from fl.method.adversary import Adversary
from fl.method.after_reduction import AfterReduction
from fl.method.baseline import Baseline
from fl.method.client import ClientAlgorithm
from fl.method.sampler import CohortSampler
from fl.method.strategy import Strategy
from fl.method.transform import Transform
from fl.models.section import Model
from fl.privacy.section import Privacy
from fl.privacy.secure.section import SecureAggregation
from fl.storage.section import Checkpoint
from fl.system.asynchronous import Asynchronous
from fl.system.section import System
from fl.system.server_mode import ServerMode
from fl.system.synchronous import Synchronous
from fl.tasks.task import Task
from fl.tracking.callback import Callback


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run whose parts are built and checked.

    Args:
        seed: seed of all randomness of the run, 0 or more.
        rounds: number of rounds, 1 or more. A `stream` determines it; then leave it out.
        data: the data set, with options for all data sets beside its own.
        partition: gives training rows to clients, or columns to parties.
        stream: a sequence of learning problems; None: one problem.
        shift: changes each client's samples in its own way; None: no change.
        labels: which training rows keep their labels; None: all.
        splits: fractions of rows, and number of clients, that are held out of training.
        model: the model, with options for all models beside its own.
        task: loss, outputs and metrics.
        cohort: chooses the clients of each round.
        strategy: the server rule.
        client: the client algorithm (local training). By default the strategy chooses it.
        adversary: clients that send other updates than they trained; None: all are honest.
        transforms: change updates before encoding and before the sum, in this order.
        after_reduction: changes reduced values before the strategy sees them, in this order.
        secure_aggregation: the server learns sums of updates only; None: it sees each update.
        privacy: differential privacy: sampler, clipping, noise and accountant as one object; None: no privacy. It
            takes the place of `cohort`.
        codec: how messages are encoded in each direction.
        system: the clients' devices, networks and availability; None: no virtual time.
        server: when the server steps: in synchronous rounds, or asynchronously. All but plain synchronous rounds need
            `system`.
        evaluation: when, and on which clients, the model is evaluated.
        execution: where and how client work is computed.
        checkpoint: when the run is written to disk.
        stop: conditions that end the run before its last round; the first one that holds ends it.
        tracking: what follows the run: trackers, or your own callbacks, in this order.
        baselines: methods that the run is compared with, on the same splits and for the same work.
        references: how the parts were asked for, by dotted path; not a key of a configuration.
    """

    seed: int = 0
    rounds: int = 10
    data: Data
    partition: Partitioner
    stream: Stream | None = None
    shift: Shift | None = None
    labels: Labels | None = None
    splits: Splits = field(default_factory=Splits)
    model: Model
    task: Task
    cohort: CohortSampler
    strategy: Strategy
    client: ClientAlgorithm
    adversary: Adversary | None = None
    transforms: tuple[Transform, ...] = ()
    after_reduction: tuple[AfterReduction, ...] = ()
    secure_aggregation: SecureAggregation | None = None
    privacy: Privacy | None = None
    codec: Codecs = field(default_factory=Codecs)
    system: System | None = None
    server: ServerMode = field(default_factory=Synchronous)
    evaluation: Evaluation = field(default_factory=Evaluation)
    execution: Execution = field(default_factory=Execution)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    stop: Stop = field(default_factory=Stop)
    tracking: tuple[Callback, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    references: Mapping[str, PartReference] = field(default_factory=dict, repr=False, compare=False, metadata=NOT_A_KEY)

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds)
        not_negative(seed=self.seed)
        if self.system is None and self.server != Synchronous():
            raise ConfigError("system", "missing; `server` needs system.devices to know when clients finish")
        if self.system is None and self.stop.simulated_seconds is not None:
            raise ConfigError("stop.simulated_seconds", "no virtual time passes; give clients devices with `system`")

        for i, tracker in enumerate(self.tracking):
            if tracker in self.tracking[:i]:
                first = self.tracking.index(tracker)
                raise ConfigError(f"tracking[{i}]", f"the same as tracking[{first}]; it would write everything twice")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `resolve` takes back, with every default written out."""
        own_cohort = self.privacy is None or self.privacy.sampling is None
        names = [name for name in fields_of(Config) if name != "cohort" or own_cohort]
        return {name: to_plain(getattr(self, name), name, self.references) for name in names}

    @property
    def up(self) -> Codec:
        """The codec of updates, from clients to the server."""
        return _chain(self.codec.up)

    @property
    def down(self) -> Codec:
        """The codec of broadcasts, from the server to clients."""
        return _chain(self.codec.down)


def resolve(config: Mapping[str, Any]) -> Config:
    """Build and check every part of a configuration of plain values, or of parts that are built already."""
    config = dict(config)
    builder = Builder(Config, config)
    builder.check_keys(Config, config, "", beside=("extends",))
    if "server" in config:
        config["server"] = builder.part(KINDS["server"], _or_default("server", config["server"]), "server")
    if config.get("privacy") is not None:
        _set_privacy(builder, config)
    if isinstance(config.get("server"), Asynchronous):  # the virtual clock chooses the clients
        config.setdefault("cohort", {"size": 1})
    for key in ("data", "model", "strategy", "cohort"):
        if key not in config:
            raise ConfigError(key, "missing; a run needs data, model, strategy and cohort")
    for key in ("task", "partition", "cohort"):
        config[key] = _or_default(key, config.get(key, KINDS[key].default()))
    config["strategy"] = builder.part(KINDS["strategy"], config["strategy"], "strategy")
    config["client"] = _client(config["strategy"], config.get("client", {}))
    if config.get("stream") is not None:
        _set_rounds(config, builder.part(KINDS["stream"], config["stream"], "stream"))
    return dataclasses.replace(builder.section(Config, config, ""), references=builder.references)


def _or_default(key: str, value: Any) -> Any:
    """A mapping that names no part, with the name of the kind's default part."""
    return with_name(named(key, value), KINDS[key].default()) if isinstance(value, Mapping) else value


def _client(strategy: Strategy, client: Any) -> Any:
    """The client section; if it names no client algorithm, the strategy's own is used."""
    if not isinstance(client, Mapping):
        return client
    folder = Path(getattr(sys.modules[type(strategy).__module__], "__file__", None) or ".").parent
    return {"name": anchored(strategy.client, folder), **named("client", client)}


def _set_privacy(builder: Builder, config: dict[str, Any]) -> None:
    """Build the `privacy` section, and take the sampler from it."""
    privacy = config["privacy"]
    if isinstance(privacy, Mapping):
        defaults = {"sampling": ("cohort", "poisson"), "clipping": ("clipping", KINDS["clipping"].default())}
        parts = {
            key: with_name(named(kind, privacy[key]), name)
            for key, (kind, name) in defaults.items()
            if isinstance(privacy.get(key), Mapping)
        }
        privacy = builder.section(Privacy, {**privacy, **parts}, "privacy")
    if not isinstance(privacy, Privacy):
        raise ConfigError("privacy", f"{privacy!r} is not a mapping of {sorted(fields_of(Privacy))}")
    config["privacy"] = privacy
    if privacy.sampling is None:
        return
    if config.get("cohort") is not None:
        raise ConfigError(
            "cohort",
            "beside `privacy`, whose epsilon holds for its own sampler only; leave cohort out (cohort: null), and set "
            "privacy.sampling={name: poisson, rate: R}",
        )
    config["cohort"] = privacy.sampling


def _set_rounds(config: dict[str, Any], stream: Stream) -> None:
    """Take the number of rounds from the stream."""
    config["stream"] = stream
    if config.setdefault("rounds", stream.total_rounds) != stream.total_rounds:
        raise ConfigError(
            "rounds",
            f"{config['rounds']} beside a stream of {stream.total_rounds}; leave rounds out, or set stream.rounds",
        )


def _chain(codecs: tuple[Codec, ...]) -> Codec:
    return codecs[0] if len(codecs) == 1 else Chain(codecs)
