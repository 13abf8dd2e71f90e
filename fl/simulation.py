"""The simulation: rounds of exchanges, each committed as a whole.

sample a cohort -> drive the strategy's round (each Exchange: broadcast, train, reduce) -> evaluate -> commit
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl import random
from fl.codec import transmit
from fl.communication.wire import wire_bytes
from fl.config import Config, ConfigError, located, read, resolve
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.execution.executor import Done, Executor, Serial
from fl.execution.plan import Plan, make_plan
from fl.execution.process import settle
from fl.execution.ray import Ray
from fl.execution.worker import EVALUATION_BLOCK, EVALUATION_CHUNK, Dispatch, Job
from fl.messages import Broadcast
from fl.nn import addressed
from fl.params import Params, module_params
from fl.reduction import Product, Reduction
from fl.storage import checkpoint
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory, read_metrics
from fl.storage.segments import NOWHERE
from fl.strategy import Exchange, Outcome, ServerContext, ServerWork, Strategy
from fl.trees import digest

Row = dict[str, Any]
SETUP = -1  # the round that what comes before round 0 is booked under
Watcher = Callable[[str, Any], None]  # called with ("start", Simulation), ("ready", Simulation), ("round", Row)


@dataclass(frozen=True)
class Result:
    """A finished (or stopped) run."""

    metrics: list[Row]
    model: Params
    directory: Path
    reason: str  # why it ended

    @property
    def digest(self) -> str:
        return digest(self.model)

    @property
    def ledger(self):
        """The ledger, a pyarrow Table."""
        import pyarrow.parquet as pq

        return pq.read_table(self.directory / "ledger.parquet")

    @property
    def summary(self) -> Row:
        last = self.metrics[-1] if self.metrics else {}
        totals = {f"total_{k}": sum(r[k] for r in self.metrics) for k in ("uplink_bytes", "downlink_bytes", "wall_seconds")}
        return {"directory": str(self.directory), "reason": self.reason, "digest": self.digest, "final": last, **totals}


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    out: str | Path | None = None,
    watch: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    **overrides: Any,
) -> Result:
    """Run a configuration: a YAML file, a dict or a `Config`. Overrides by dotted path: run("a.yaml", **{"cohort.size": 20})."""
    if not isinstance(config, Config):
        config = resolve(read(config, overrides))
    elif overrides:
        raise TypeError(f"overrides {list(overrides)} apply to a file or a dict, not to a resolved Config")
    with Simulation(config, Path(out) if out else _new_directory(config)) as simulation:
        return simulation.run(watch, stop)


def resume(
    directory: str | Path, *, watch: Watcher | None = None, stop: Callable[[], bool] = lambda: False, **overrides: Any
) -> Result:
    """Go on with a run from its last committed round, to the same bits as if it had not been interrupted.

    `rounds` may be raised (rounds="+100" adds), execution.executor, execution.workers and execution.address changed.
    """
    directory = Path(directory)
    raw = read(directory / "config.yaml")
    rounds = overrides.pop("rounds", None)
    if rounds is not None:
        number = re.fullmatch(r"(\+?)(\d+)", str(rounds))
        if number is None:
            raise ConfigError("rounds", f"{rounds!r} is neither a number of rounds nor +number, as in rounds=+100")
        raw["rounds"] = int(number[2]) + (raw["rounds"] if number[1] else 0)
    free = {"execution.executor", "execution.workers", "execution.address", "checkpoint.every"}
    for key in overrides:
        if key not in free:
            raise ConfigError(
                key, f"cannot change when a run is resumed; rounds and {sorted(free)} can. Start a new run instead"
            )
    config = resolve(read(raw, overrides))
    with Simulation(config, directory, resumed=True) as simulation:
        return simulation.run(watch, stop)


class Simulation:
    """A run in progress. The state to go on from is `_record()`; nothing else lasts from round to round."""

    def __init__(self, config: Config, directory: Path, resumed: bool = False):
        self.config, self.directory = config, directory
        if not resumed and (directory / "checkpoints" / "last.json").exists():
            raise ConfigError("out", f"{directory} holds a run already; `fl resume {directory}` goes on with it")
        settle()
        self.dataset, self.partition = load_data(config)
        self.sizes = self.partition.train_slices()[1]
        self.population = self.partition.num_clients
        _guard("cohort", lambda: config.cohort.check(self.population))
        self.module, self.model = build_model(config, self.dataset)
        self.plan = _guard("execution", lambda: self._plan(self.module, self.model, config.execution.chunk))
        execution = replace(
            config.execution, plan=self.plan.kind, chunk=self.plan.chunk, channels_last=self.plan.channels_last
        )
        self.config = config = replace(config, execution=execution)
        self.round, self.dispatches = 0, 0
        self.seen: dict[str, np.ndarray] = {}  # static groups: the version each client last saw, -1 for none
        self.progress: dict[str, Any] = {"best": None, "waited": 0, "reason": "", "setup": False}
        self.sampler = config.cohort.init(self.population)
        self.state = config.strategy.init(self.model, self._context(np.empty(0, np.int64)))
        self._check_groups()
        self.states = ClientStates(directory / "clients", self.population)
        record = checkpoint.load(directory / "checkpoints", "last") if resumed else None
        self.folder = RunDirectory(directory, _metric_names(config), record and record["lengths"])
        if record:
            self._restore(record)
        else:
            self.folder.describe(config.to_dict(), {"plan": asdict(self.plan), "data_sha256": self.dataset.digest()})
        self.pending: list[Row] = []
        self.exchange, self.carries, self.tally, self.best_pending = 0, {}, _Tally(), False
        self.executor: Executor = self._executor()

    def _plan(self, module: torch.nn.Module, model: Params, chunk: int | None) -> Plan:
        config = self.config
        wanted = (config.execution.plan, chunk, config.execution.channels_last)
        return make_plan(config.client, module, model, config.task, *wanted)

    def _executor(self) -> Executor:
        execution = self.config.execution
        if execution.executor == "serial":
            return Serial()
        return Ray(execution.workers or torch.multiprocessing.cpu_count(), execution.address)

    def _check_groups(self) -> None:
        """Strategy and client must speak of the same groups: asked of the first exchange of a round, before any work."""
        strategy, client = self.config.strategy, self.config.client
        if type(strategy).setup is not Strategy.setup:  # its rounds begin from a state that is not there yet
            return
        _, cohort = self.config.cohort.sample(self.sampler, 0, self.config.seed, self.sizes)
        generator = strategy.round(self.state, self._context(cohort))
        request = next(generator, None)
        generator.close()
        if not isinstance(request, Exchange) or request.work != "train":
            return
        broadcast = Broadcast.of(request.broadcast)
        for verb, lacking in (
            ("send", set(_groups(request.reduction)) - set(client.sends)),
            ("receive", set(client.receives) - broadcast.names if not callable(broadcast.config) else ()),
        ):
            if lacking:
                names = [getattr(type(part), "registered_as", type(part).__name__) for part in (client, strategy)]
                raise ConfigError(
                    "client.name",
                    f"with strategy {names[1]!r}, client {names[0]!r} does not {verb} {sorted(lacking)}; "
                    f"the strategy's own client is {strategy.client!r}",
                )

    # -- the run --------------------------------------------------------------------------------------------------
    def run(self, watch: Watcher | None = None, stop: Callable[[], bool] = lambda: False) -> Result:
        watch = watch or (lambda event, value: None)
        watch("start", self)
        self.executor.start(self._job(), self.states)
        watch("ready", self)
        if not self.progress["setup"]:
            self._setup()
        while self.round < self.config.rounds and not self.progress["reason"]:
            row = self._one_round()
            self._judge(row)
            self.best_pending |= self.is_best
            ended = self.round == self.config.rounds or self.progress["reason"]
            stopping = stop()  # asked once: what ends the loop must have been committed
            if ended or self.round % self.config.checkpoint.every == 0 or stopping:
                self._commit()
            watch("round", row)
            if stopping and not ended:
                return self._result("interrupted", self.config.strategy.model(self.state))
        return self._result(self.progress["reason"] or "all rounds done", self._final())

    def _setup(self) -> None:
        """What the strategy does before round 0; booked as round -1 if it did anything."""
        start = time.perf_counter()
        metrics = self._drive(self.config.strategy.setup(self.state, self._context(np.empty(0, np.int64))))
        if self.exchange or metrics:
            row = {"round": SETUP, **self.tally.summary(), **metrics, **self.folder.ledger.totals(SETUP)}
            self.pending.append({**row, "wall_seconds": time.perf_counter() - start})
        self.progress["setup"] = True

    @property
    def booked(self) -> int:
        """The round that bytes and clients' metrics are booked under."""
        return self.round if self.progress["setup"] else SETUP

    def _final(self) -> Params:
        """The model after the strategy's last stage. No round commits it: a run that goes on from here has not seen it."""
        state, self.tally = self.state, _Tally()
        self._drive(self.config.strategy.final(state, self._context(np.empty(0, np.int64))))
        model, self.state = self.config.strategy.model(self.state), state
        self.folder.flush()
        return model

    def _one_round(self) -> Row:
        start = time.perf_counter()
        self.sampler, cohort = self.config.cohort.sample(self.sampler, self.round, self.config.seed, self.sizes)
        self.exchange, self.carries, self.tally = 0, {}, _Tally()
        metrics = self._drive(self.config.strategy.round(self.state, self._context(cohort)))
        row = {"round": self.round, **self.tally.summary(), "cohort_size": len(cohort), **metrics}
        evaluated = (self.round + 1) % self.config.evaluation.every == 0 or self.round + 1 == self.config.rounds
        if evaluated:
            row |= self._evaluate()
        row |= self.folder.ledger.totals(self.round)
        row["wall_seconds"] = time.perf_counter() - start
        self.round += 1
        self.pending.append(row)
        return row

    def _drive(self, generator: Iterable) -> Row:
        """Run a strategy's generator to its end; takes over its state and returns its metrics."""
        answer = None
        while True:
            try:
                request = generator.send(answer)
            except StopIteration as end:
                self.state, metrics = end.value
                return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
            if isinstance(request, Exchange):
                answer = self._exchange(request)
            elif isinstance(request, ServerWork):
                begun = time.perf_counter()
                answer = self.executor.call(request.fn, *request.args)
                self.tally.server_seconds += time.perf_counter() - begun
            else:
                raise TypeError(f"{type(self.config.strategy).__name__} yielded {request!r}, not an Exchange or ServerWork")

    # -- an exchange ----------------------------------------------------------------------------------------------
    def _exchange(self, exchange: Exchange) -> Outcome:
        cohort = self.cohort if exchange.cohort is None else np.unique(np.asarray(exchange.cohort, np.int64))
        cohort = cohort[np.argsort(-self.sizes[cohort], kind="stable")]  # like sizes train together, long ones begin
        module = exchange.skeleton or self.module
        broadcast = self._sent(Broadcast.of(exchange.broadcast), cohort)
        plan = self.plan if broadcast.uniform and exchange.work == "train" else Plan("loop", 1, "not alike for all clients")
        if exchange.skeleton is not None and plan is self.plan:
            plan = self._plan(module, module_params(module), None)
        carries = np.tile(np.array(NOWHERE), (len(cohort), 1))
        if self.carries:
            carries[:] = [self.carries.get(int(c), NOWHERE) for c in cohort]
        done = self._dispatch(
            kind="work",
            work=exchange.work,
            cohort=cohort,
            broadcast=broadcast,
            reduction=Product(_groups(exchange.reduction)),
            plan=plan,
            carries=carries,
            skeleton=exchange.skeleton,
            pin=exchange.pin,
        )
        return self._arrived(exchange, cohort, done)

    def _sent(self, broadcast: Broadcast, cohort: np.ndarray) -> Broadcast:
        """The broadcast as clients see it, decoded; its bytes go into the ledger."""
        shared, static, first = {}, {}, True
        for name, tree in broadcast.shared.items():
            if name in broadcast.hidden:
                shared[name] = tree
                continue
            shared[name], sizes = transmit(self.config.down, tree)
            self._record_down(name, cohort, sizes, first)
            first = False
        for name, value in broadcast.static.items():
            decoded, sizes = transmit(self.config.down, value.value)
            static[name] = replace(value, value=decoded)
            seen = self.seen.setdefault(name, np.full(self.population, -1))
            fresh = cohort[seen[cohort] != value.version]
            if len(fresh):
                self._record_down(name, fresh, sizes, first)
                first = False
            seen[cohort] = value.version
        return replace(broadcast, shared=shared, static=static)

    def _record_down(self, group: str, clients: np.ndarray, sizes, message: bool) -> None:
        ledger = self.folder.ledger
        wire = wire_bytes(sizes.encoded_bytes, sizes.arrays, message)
        ledger.record(self.booked, self.exchange, "down", group, clients, sizes.payload_bytes, sizes.encoded_bytes, wire)
        ledger.multicast(self.booked, sizes.encoded_bytes)

    def _dispatch(self, **fields: Any) -> Done:
        """Number an exchange or evaluation and have it run."""
        cohort = fields["cohort"]
        nowhere = np.tile(np.array(NOWHERE), (len(cohort), 1))
        server = fields["kind"] == "evaluate_server"
        dispatch = Dispatch(
            round=self.round,
            number=self.dispatches,
            states=nowhere if server else self.states.locations(cohort),
            cost=np.ones(len(cohort)) if server else self.sizes[cohort] + 1.0,
            **({"carries": nowhere} | fields),
        )
        self.dispatches += 1
        done = self.executor.run(dispatch)
        self.tally.busy_seconds += done.busy_seconds
        self.tally.retried += done.retried
        self.tally.errors += done.errors
        return done

    def _arrived(self, exchange: Exchange, cohort: np.ndarray, done: Done) -> Outcome:
        """Book what came up: states, carries, bytes, metrics."""
        n, columns = len(cohort), done.columns.reordered(np.argsort(cohort))
        cohort = np.sort(cohort)
        dropped = columns.column("dropped", n, False)
        states = columns.column("state", n, -1)
        if states.ndim == 2:
            states[dropped] = NOWHERE  # a dropped client keeps the state it had
            self.states.stage(cohort, states)
        carries = columns.column("carry", n, -1)
        if carries.ndim == 2:
            carries[dropped] = NOWHERE
            self.carries |= {int(c): tuple(map(int, where)) for c, where in zip(cohort, carries) if where[0] >= 0}
        broadcast = Broadcast.of(exchange.broadcast)
        message = {"up": True, "down": not (set(broadcast.shared) - set(broadcast.hidden) or broadcast.static)}
        for name in sorted(columns.pieces):
            direction, _, group = name.partition("/")
            if direction in message:
                payload, encoded, arrays = columns.column(name, n, 0).T
                sent = arrays > 0
                wire = wire_bytes(encoded, arrays, message[direction])
                self.folder.ledger.record(
                    self.booked, self.exchange, direction, group, cohort[sent], payload[sent], encoded[sent], wire[sent]
                )
                message[direction] = False
        examples = columns.column("num_examples", n, 0)
        metrics = {k[7:]: columns.column(k, n, math.nan) for k in columns.pieces if k.startswith("metric/")}
        if "loss" in metrics:
            self.folder.add_clients(self.booked, "train", cohort[~dropped], examples[~dropped], _only(metrics, ~dropped))
        pooled = {name: _mean(values, examples * ~dropped) for name, values in metrics.items()}
        self.tally.metrics |= {f"train/{name}": value for name, value in pooled.items()}
        self.tally.dropped += int(dropped.sum())
        self.exchange += 1
        value = done.value["model"] if done.value and isinstance(exchange.reduction, Reduction) else done.value
        return Outcome(value, cohort[~dropped], examples[~dropped], pooled)

    # -- evaluation -----------------------------------------------------------------------------------------------
    def _evaluate(self) -> Row:
        """eval/* on the server's test set, val/* and clients/* on the clients' own splits."""
        config, row = self.config.evaluation, {}
        broadcast = Broadcast.of(self.config.strategy.broadcast(self.state, self._context(self.cohort)))
        shared = {**broadcast.shared, "model": self.config.strategy.model(self.state)}
        broadcast = replace(broadcast, shared=shared, hidden=tuple(n for n in broadcast.hidden if n != "model"))
        metrics = Product(self.config.task.metrics())
        if config.server and self.dataset.test is not None:
            blocks = np.arange(-(-len(self.dataset.test["x"]) // EVALUATION_BLOCK))
            plan = Plan("loop", 1, "blocks of the server's data")
            done = self._dispatch(
                kind="evaluate_server", work="received", cohort=blocks, broadcast=broadcast, reduction=metrics, plan=plan
            )
            row |= {f"eval/{name}": value for name, value in done.value.items()}
        for split, prefix, held in (("val", "val", self.partition.val), ("test", "clients", self.partition.test)):
            clients = self._evaluated(held)
            if not len(clients):
                continue
            plan = Plan("loop", EVALUATION_CHUNK, "clients share forward passes")
            done = self._dispatch(
                kind="evaluate",
                work=config.stage,
                cohort=clients,
                broadcast=broadcast,
                reduction=metrics,
                plan=plan,
                split=split,
            )
            n = len(clients)
            own = {k[7:]: done.columns.column(k, n, math.nan) for k in done.columns.pieces if k.startswith("metric/")}
            self.folder.add_clients(self.round, split, clients, held[clients], own)
            if prefix == "val":
                row |= {f"val/{name}": value for name, value in done.value.items()}
            else:
                for name, values in own.items():
                    row |= {f"clients/{name}_{key}": x for key, x in spread(values, held[clients], "loss" in name).items()}
        return row

    def _evaluated(self, held: np.ndarray) -> np.ndarray:
        """The clients that evaluations are made on: those with held-out rows, or as many of them as asked for, drawn once."""
        clients, wanted = np.flatnonzero(held), self.config.evaluation.clients
        if wanted == "all" or wanted >= len(clients):
            return clients
        return np.sort(clients[random.permutation(len(clients), self.config.seed, "evaluation")[:wanted]])

    def _judge(self, row: Row) -> None:
        """Best so far, targets, patience."""
        select = self.config.evaluation.select or next((m for m in _SELECT if m in row), None)
        self.is_best = False
        if select in row and not math.isnan(row[select]):
            sign, best = (-1 if select.endswith("loss") else 1), self.progress["best"]
            if best is None or sign * row[select] > sign * best:
                self.progress |= {"best": row[select], "waited": 0}
                self.is_best = self.config.checkpoint.best
            else:
                self.progress["waited"] += 1
        stop = self.config.stop
        reached = [m for m, v in stop.target.items() if m in row and (row[m] <= v if m.endswith("loss") else row[m] >= v)]
        if stop.target and len(reached) == len(stop.target):
            self.progress["reason"] = f"target reached: {stop.target}"
        elif stop.patience is not None and self.progress["waited"] >= stop.patience:
            self.progress["reason"] = f"no better {select} in {stop.patience} evaluations"

    # -- lasting --------------------------------------------------------------------------------------------------
    def _record(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "dispatches": self.dispatches,
            "state": self.state,
            "sampler": self.sampler,
            "seen": self.seen,
            "progress": self.progress,
            "clients": self.states.commit(),
        }

    def _restore(self, record: Mapping[str, Any]) -> None:
        self.round, self.dispatches = record["round"], record["dispatches"]
        self.state, self.sampler, self.seen = record["state"], record["sampler"], record["seen"]
        self.progress = record["progress"]
        self.states.restore(record["clients"])
        if self.config.rounds < self.round:
            raise ConfigError(
                "rounds", f"{self.config.rounds} is fewer than the {self.round} that are done; rounds=+10 adds"
            )
        if self.config.rounds > self.round:
            self.progress["reason"] = ""

    def _commit(self) -> None:
        record = self._record()
        if self.best_pending:
            self.states.pin("best")
        self.folder.commit(self.round, self.pending, record, self.best_pending)
        self.states.sweep()
        self.pending, self.best_pending = [], False

    def _result(self, reason: str, model: Params) -> Result:
        from safetensors.torch import save_file

        tensors = {name: tensor.clone() for name, tensor in model.items()}
        save_file(tensors, self.directory / "model.safetensors", {"round": str(self.round)})
        self.folder.export()
        return Result(read_metrics(self.directory), model, self.directory, reason)

    def _context(self, cohort: np.ndarray) -> ServerContext:
        self.cohort = cohort
        c = self.config
        return ServerContext(c.seed, self.round, c.rounds, self.population, cohort, c.task, self.module)

    def _job(self) -> Job:
        tensors = {name: torch.from_numpy(array) for name, array in self.dataset.train.items()}
        server = {name: torch.from_numpy(array) for name, array in (self.dataset.test or {}).items()}
        c = self.config
        return Job(
            algorithm=c.client,
            task=c.task,
            module=self.module,
            arrays=tensors,
            server_arrays=server,
            partition=self.partition,
            seed=c.seed,
            rounds=c.rounds,
            up=c.up,
            down=c.down,
            transforms=c.transforms,
            on_error=c.execution.on_client_error,
            folder=self.directory / "clients",
            scratch=self.directory / "scratch",
        )

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: Any) -> None:
        self.executor.close()
        self.folder.close()


_SELECT = ("val/accuracy", "val/loss", "train/loss")


class _Tally:
    """What adds up over the exchanges of a round."""

    def __init__(self):
        self.metrics: Row = {}
        self.errors: list[str] = []
        self.dropped = self.retried = 0
        self.busy_seconds = self.server_seconds = 0.0

    def summary(self) -> Row:
        row = {**self.metrics, "dropped": self.dropped, "busy_seconds": self.busy_seconds}
        if self.server_seconds:
            row["server_seconds"] = self.server_seconds
        if self.errors:
            row["errors"] = self.errors
        return row


def spread(values: np.ndarray, num_examples: np.ndarray, low_is_good: bool = False) -> Row:
    """How a metric is spread over clients: mean, weighted (by samples), std, and worst10, the mean of the worst
    ceil(N / 10) clients."""
    worst = np.sort(-values if low_is_good else values)[: math.ceil(len(values) / 10)].mean()
    return {
        "mean": float(values.mean()),
        "weighted": _mean(values, num_examples),
        "std": float(values.std()),
        "worst10": float(-worst if low_is_good else worst),
    }


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((np.where(weights > 0, values, 0.0) * weights).sum() / total) if total else math.nan


def _only(metrics: Mapping[str, np.ndarray], mask: np.ndarray) -> Row:
    return {name: values[mask] for name, values in metrics.items()}


def _groups(reduction: Reduction | Mapping[str, Reduction]) -> dict[str, Reduction]:
    return {"model": reduction} if isinstance(reduction, Reduction) else dict(reduction)


def _metric_names(config: Config) -> list[str]:
    return list(dict.fromkeys(["loss", *config.task.metrics()]))


def _new_directory(config: Config) -> Path:
    name = getattr(type(config.strategy), "registered_as", type(config.strategy).__name__)
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}-seed{config.seed}"
    return next(p for i in range(1000) if not (p := base.with_name(base.name + (f"-{i}" if i else ""))).exists())


# -- parts put together -----------------------------------------------------------------------------------------------
def _guard(path: str, make: Callable[[], Any]) -> Any:
    """A part's complaint as a ConfigError with its place."""
    try:
        return make()
    except ConfigError:
        raise
    except ValueError as error:
        raise located(path, error) from error


def load_data(config: Config) -> tuple[Dataset, Partition]:
    dataset = _guard("data", lambda: config.data.load() if hasattr(config.data, "load") else config.data)
    partition = _guard("partition", lambda: config.partition.split(dataset))
    empty = partition.empty_clients
    if len(empty):
        raise ConfigError(
            "partition",
            f"{len(empty)} of {partition.num_clients} clients have no data (the first: {[int(c) for c in empty[:5]]}). "
            "Set partition.min_size, fewer clients, or a larger alpha",
        )
    seed = getattr(config.partition, "seed", 0)
    return dataset, partition.hold_out(config.splits.val, config.splits.test, seed)


def build_model(config: Config, dataset: Dataset) -> tuple[torch.nn.Module, Params]:
    """The module and its first weights, drawn from the seed alone."""
    outputs = max(config.task.num_outputs(part) for part in (dataset.train, dataset.test) if part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.hash64(config.seed, "model")) >> 1)
        module = addressed(_guard("model", lambda: config.model.build(dataset.train["x"].shape[1:], outputs)))
    floats = [name for name, b in module.named_buffers() if b.is_floating_point()]
    if floats:
        raise ConfigError(
            "model",
            f"has buffers that training changes ({floats[0]}, ...): running statistics would leak between clients. "
            "Use GroupNorm or LayerNorm, or BatchNorm with track_running_stats=False",
        )
    return module, module_params(module)
