"""The simulation: rounds of exchanges, each committed as a whole.

sample a cohort -> drive the strategy's round (each Exchange: broadcast, train, reduce) -> evaluate -> commit
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.config.config import Config, located, read, resolve
from fl.data.dataset import tensors
from fl.errors import ConfigError
from fl.execution.training import compiled
from fl.execution.worker import Job
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.process import configure_process
from fl.execution.workers.ray import Ray
from fl.execution.workers.ray_pool import keep_workers
from fl.method.messages import Broadcast
from fl.method.strategy import Evaluate, Exchange, ServerContext, ServerWork, Strategy, Transfer
from fl.simulation import baselines
from fl.simulation.asynchronous import AsynchronousRunner
from fl.simulation.evaluation import assess, evaluate, forgetting
from fl.simulation.exchange import ExchangeRunner, Row, by_group, expected_upload_bytes
from fl.simulation.setup import set_up_run
from fl.storage import checkpoint
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory, create_run_directory, read_metrics
from fl.system.asynchronous import Asynchronous, Buffered
from fl.tasks.task import SELECT, minimised
from fl.tensors.params import Params
from fl.tensors.serialise import digest
from fl.tracking.profile import span

NOBODY = np.empty(0, np.int64)  # the cohort of what happens outside rounds
SETUP = -1  # the round that what comes before round 0 is booked under
Watcher = Callable[[str, Any], None]  # called with ("start", Simulation), ("ready", Simulation), ("round", Row)


@dataclass(frozen=True)
class Result:
    """A finished (or stopped) run."""

    metrics: list[Row]
    model: Params
    directory: Path
    reason: str  # why it ended
    baselines: Mapping[str, Result] = field(default_factory=dict)  # what `baselines` asked for

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
        totals = {
            f"total_{k}": sum(r[k] for r in self.metrics) for k in ("uplink_bytes", "downlink_bytes", "wall_seconds")
        }
        ended = {
            "directory": str(self.directory),
            "reason": self.reason,
            "digest": self.digest,
            "final": last,
            **totals,
        }
        beside = {name: result.summary for name, result in self.baselines.items()}
        return {**ended, "baselines": beside} if beside else ended


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
    directory = Path(out) if out else new_directory(config)
    try:
        return _whole(config, directory, False, watch, stop)
    except BaseException:
        if out is None:  # what was claimed and not used
            with contextlib.suppress(OSError):
                directory.rmdir()
                directory.parent.rmdir()
        raise


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
    return _whole(resolve(read(raw, overrides)), directory, True, watch, stop)


def _whole(config: Config, directory: Path, resumed: bool, watch: Watcher | None, stop: Callable[[], bool]) -> Result:
    """A run, then its baselines; those of a run that has gone on since are made anew."""
    with keep_workers():
        with Simulation(config, directory, resumed) as simulation:
            others = baselines.beside(simulation.run_setup, directory)
            begun = simulation.round
            result = simulation.run(watch, stop)
            gone_on = simulation.round > begun
        if gone_on and others:
            shutil.rmtree(directory / "baselines", ignore_errors=True)
        done: dict[str, Result] = {}
        for name, other in others.items():
            if any(r.reason == "interrupted" for r in (result, *done.values())):
                break
            home = directory / "baselines" / name
            there = (home / "checkpoints" / "last.json").is_file()
            done[name] = _whole(other, home, there, watch, stop)
        return replace(result, baselines=done)


class Simulation:
    """A run in progress. The state to go on from is `_record()`; nothing else lasts from round to round."""

    def __init__(self, config: Config, directory: Path, resumed: bool = False, executor: Executor | None = None):
        """`executor`: in place of the one that the configuration asks for."""
        self.config, self.directory = config, directory
        if not resumed and (directory / "checkpoints" / "last.json").exists():
            raise ConfigError("out", f"{directory} holds a run already; `fl resume {directory}` goes on with it")
        configure_process()
        self.executor: Executor = self._executor() if executor is None else executor
        try:
            self.executor.prepare()
            self._make_ready(resumed)
        except BaseException:
            self.executor.close()
            raise

    def _make_ready(self, resumed: bool) -> None:
        directory = self.directory
        self.run_setup = set_up_run(self.config)
        self.config = config = self.run_setup.config
        self.server, self.test = (
            tensors(part) for part in (self.run_setup.dataset.server, self.run_setup.dataset.test)
        )
        self.round = 0
        self.progress: dict[str, Any] = {"best": None, "waited": 0, "reason": "", "setup": False, "matrix": []}
        self.sampler = config.cohort.init(self.run_setup.trainable)
        try:
            self.state = config.strategy.init(self.run_setup.model, self._context(NOBODY))
        except ValueError as error:
            raise located("strategy", error) from error
        self._check_groups()
        self.states = ClientStates(directory / "clients", self.run_setup.population)
        record = checkpoint.load(directory / "checkpoints", "last") if resumed else None
        self.folder = RunDirectory(directory, record and record["lengths"])
        kind = AsynchronousRunner if isinstance(config.server, Asynchronous) else ExchangeRunner
        self.exchanges = kind(self.run_setup, self.executor, self.states, self.folder)
        if record:
            self._restore(record)
        else:
            facts = {"clients": self.run_setup.trainable, "plan": asdict(self.run_setup.plan)}
            self.folder.describe(facts | {"data_sha256": self.run_setup.dataset.digest()})
        self.folder.configure(config.to_dict())  # a resumed run may have been given more rounds
        self.pending: list[Row] = []
        self.best_pending = False

    # -- what watchers show -------------------------------------------------------------------------------------------
    @property
    def headline(self) -> str:
        """One line on what runs."""
        config, run_setup = self.config, self.run_setup
        strategy, client = (
            getattr(type(p), "registered_as", type(p).__name__) for p in (config.strategy, config.client)
        )
        first = run_setup.plan.kind == "compiled" and not compiled.before()
        return (
            f"{strategy} with client {client}, {run_setup.population} clients, {run_setup.model.numel} parameters, "
            f"training {run_setup.plan.kind}{' (half a minute, the first time)' if first else ''}, in {self.directory}"
        )

    @property
    def rounds(self) -> int:
        return self.config.rounds

    @property
    def every(self) -> int:
        return self.config.evaluation.every

    # -- making ready -------------------------------------------------------------------------------------------------
    def _executor(self) -> Executor:
        execution = self.config.execution
        if execution.executor == "serial":
            return Serial(execution.workers)
        gpus = execution.device == "cuda"
        default = torch.cuda.device_count() if gpus else torch.multiprocessing.cpu_count()
        return Ray(execution.workers or max(1, default), execution.address, gpus)

    def _first_request(self) -> Any:
        """What the strategy asks for first in the present round, of some cohort."""
        cohort = np.arange(min(self.run_setup.trainable, 2))
        generator = self.config.strategy.round(self.state, self._context(cohort))
        request = next(generator, None)
        generator.close()
        return request

    def _check_groups(self) -> None:
        """Strategy and client must speak of the same groups: asked of the first exchange of a round, before any work."""
        strategy, client = self.config.strategy, self.config.client
        if type(strategy).setup is not Strategy.setup:  # its rounds begin from a state that is not there yet
            return
        request = self._first_request()
        if not isinstance(request, Exchange) or request.work != "train":
            return
        if self.config.server.chooses:
            expected_upload_bytes(self.config, request)
        broadcast = Broadcast.of(request.broadcast)
        for verb, lacking in (
            ("send", set(by_group(request.reduction)) - set(client.sends)),
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
        self.begin()
        watch("ready", self)
        if not self.progress["setup"]:
            with span("server", "setup"):
                self.setup()
        while self.round < self.config.rounds and not self.progress["reason"]:
            with span("server", "round", self.round):
                row = self.one_round()
                self._check_stopping(row)
                ended = self.round == self.config.rounds or self.progress["reason"]
                stopping = stop()  # asked once: what ends the loop must have been committed
                if ended or self.round % self._commits_every == 0 or stopping or self.best_pending:
                    with span("server", "commit"):
                        self._commit()
            watch("round", row)
            if stopping and not ended:
                return self._result("interrupted", self.config.strategy.model(self.state))
        with span("server", "final"):
            model = self._final()
        return self._result(self.progress["reason"] or "all rounds done", model)

    def begin(self) -> None:
        """Workers have what they need."""
        with span("server", "workers start"):
            self.executor.start(self.job, self.states)

    @property
    def job(self) -> Job:
        return self.run_setup.job(self.directory / "clients", self.directory / "scratch")

    @property
    def _commits_every(self) -> int:
        server = self.config.server
        under_way = server.concurrency // server.buffer if isinstance(server, Buffered) else 1
        return self.config.checkpoint.every or max(1, under_way)

    def setup(self) -> None:
        """What the strategy does before round 0; booked as round -1 if it did anything."""
        start = time.perf_counter()
        self.exchanges.begin(self.round, SETUP, NOBODY)
        metrics = self._run_generator(self.config.strategy.setup(self.state, self._context(NOBODY)))
        if self.exchanges.index or metrics:
            row = {"round": SETUP, **self.exchanges.tally.summary(), **metrics, **self.folder.ledger.totals(SETUP)}
            self.pending.append({**row, "wall_seconds": time.perf_counter() - start})
        self.progress["setup"] = True

    def one_round(self) -> Row:
        """Round `self.round`, not judged and not committed."""
        start = time.perf_counter()
        config = self.config
        sizes = self.run_setup.sizes(self.run_setup.period_at(self.round))[: self.run_setup.trainable]
        with span("server", "sample"):
            self.sampler, cohort, sets_out = self.exchanges.sample(self.sampler, self._first_request, self.round, sizes)
        self.exchanges.begin(self.round, self.round, cohort)
        self.exchanges.wait(sets_out)
        metrics = self._run_generator(config.strategy.round(self.state, self._context(cohort)))
        row = {"round": self.round, **self.exchanges.tally.summary(), "cohort_size": len(cohort), **metrics}
        period_ends = self.round + 1 in self.run_setup.ends
        if (self.round + 1) % config.evaluation.every == 0 or period_ends:
            with span("evaluate", "evaluation"):
                row |= evaluate(self.exchanges, self._evaluated(cohort))
        if period_ends and len(self.run_setup.periods) > 1 and "task0/accuracy" in row:
            seen = range(self.exchanges.period + 1)
            self.progress["matrix"].append([row[f"task{s}/accuracy"] for s in seen])
            row |= {f"stream/{name}": value for name, value in forgetting(self.progress["matrix"]).items()}
        row |= self.folder.ledger.totals(self.round)
        row["wall_seconds"] = time.perf_counter() - start
        self.round += 1
        self.pending.append(row)
        return row

    def _evaluated(self, cohort: np.ndarray) -> Broadcast:
        """What an evaluation sends: the strategy's broadcast with the model in it, hidden or not."""
        strategy = self.config.strategy
        broadcast = Broadcast.of(strategy.broadcast(self.state, self._context(cohort)))
        shared = {**broadcast.shared, "model": strategy.model(self.state)}
        return replace(broadcast, shared=shared, hidden=tuple(n for n in broadcast.hidden if n != "model"))

    def _final(self) -> Params:
        """The model after the strategy's last stage. No round commits it: a run that goes on from here has not seen it."""
        state = self.state
        self.exchanges.begin(self.round, self.round, NOBODY)
        self._run_generator(self.config.strategy.final(state, self._context(NOBODY)))
        model, self.state = self.config.strategy.model(self.state), state
        self.folder.flush()
        return model

    def _run_generator(self, generator: Iterable) -> Row:
        """Run a strategy's generator to its end; takes over its state and returns its metrics."""
        answer = None
        while True:
            try:
                with span("server", "strategy"):
                    request = generator.send(answer)
            except StopIteration as end:
                self.state, metrics = end.value
                return {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
            if isinstance(request, Exchange):
                answer = self.exchanges.run(request)
            elif isinstance(request, ServerWork):
                begun = time.perf_counter()
                with span("server", "work"):
                    answer = self.executor.call(request.fn, *request.args)
                self.exchanges.tally.server_seconds += time.perf_counter() - begun
            elif isinstance(request, Transfer):
                answer = self.exchanges.transfer(request)
            elif isinstance(request, Evaluate):
                answer = assess(self.exchanges, request)
            else:
                raise TypeError(
                    f"{type(self.config.strategy).__name__} yielded {request!r}, not an Exchange, ServerWork, Transfer or Evaluate"
                )

    def _check_stopping(self, row: Row) -> None:
        """Best so far, targets, patience."""
        evaluation = self.config.evaluation
        select = evaluation.select or next((m for m in SELECT if m in row), None)
        evaluated = self.round % evaluation.every == 0 or self.round in self.run_setup.ends
        if evaluated and select in row and not math.isnan(row[select]):
            sign, best = (-1 if minimised(select) else 1), self.progress["best"]
            if best is None or sign * row[select] > sign * best:
                self.progress |= {"best": row[select], "waited": 0}
                self.best_pending |= self.config.checkpoint.best
            else:
                self.progress["waited"] += 1
        stop = self.config.stop
        reached = [m for m, v in stop.target.items() if m in row and (row[m] <= v if minimised(m) else row[m] >= v)]
        if stop.target and len(reached) == len(stop.target):
            self.progress["reason"] = f"target reached: {stop.target}"
        elif stop.patience is not None and self.progress["waited"] >= stop.patience:
            self.progress["reason"] = f"no better {select} in {stop.patience} evaluations"
        elif stop.simulated_seconds is not None and self.exchanges.now >= stop.simulated_seconds:
            self.progress["reason"] = f"{self.exchanges.now:.0f} simulated seconds"

    # -- lasting --------------------------------------------------------------------------------------------------
    def _record(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "rounds": self.config.rounds,
            "state": self.state,
            "sampler": self.sampler,
            "exchanges": self.exchanges.record(),  # before the states of clients: it may have some train
            "progress": self.progress,
            "clients": self.states.commit(),
        }

    def _restore(self, record: Mapping[str, Any]) -> None:
        self.round, self.state, self.sampler = record["round"], record["state"], record["sampler"]
        self.exchanges.restore(record["exchanges"])
        self.progress = record["progress"]
        self.states.restore(record["clients"])
        if self.config.rounds < self.round:
            raise ConfigError(
                "rounds", f"{self.config.rounds} is fewer than the {self.round} that are done; rounds=+10 adds"
            )
        if self.config.rounds > record["rounds"]:  # asked to go on, whatever ended it
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
        config, run_setup, here = self.config, self.run_setup, self.round
        period = run_setup.period_at(here)
        return ServerContext(
            seed=config.seed,
            round=here,
            rounds=config.rounds,
            population=run_setup.trainable,
            cohort=cohort,
            task=run_setup.periods[period].task,
            module=run_setup.module,
            frozen=run_setup.initial.frozen,
            period=period,
            period_begins=here == 0 or here in run_setup.ends,
            period_ends=here + 1 in run_setup.ends,
            server=self.server,
            test=self.test,
            tiers=getattr(config.server, "tiers", 1),
        )

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: Any) -> None:
        self.executor.close()
        self.folder.close()


def new_directory(config: Config) -> Path:
    name = getattr(type(config.strategy), "registered_as", type(config.strategy).__name__)
    return create_run_directory(name, config.seed)
