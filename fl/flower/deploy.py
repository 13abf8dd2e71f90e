"""Our methods as Flower apps: the same configuration, the same rounds, clients on SuperNodes.

    server_app(config)   a Simulation whose executor sends each client of a cohort a message     ServerApp
    client_app(config)   a Worker that gets one client's share of an exchange                    ClientApp

    Dispatch -- one Message per client ~~> client work, transforms, codec ~~> decode, server transforms, fold --> Done

Sampling, strategies, evaluation, ledger and run directory are the simulator's own code, so that the same seed gives the model
that the simulator's loop gives (execution.plan=loop). A SuperNode is the client that its node config names: partition-id=0, 1, ...
What a client keeps stays in its Context, under the number of the exchange that wrote it; the server knows the number alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl.communication.codec import Identity, Sizes, down_key, find_wrapper, transmit
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import compression_error
from fl.config.config import Config, parse, read, resolve
from fl.errors import ClientError, ConfigError
from fl.execution.training.plan import Plan
from fl.execution.worker import DispatchResult, ExchangeDispatch, ExchangeWorker, Job, Worker
from fl.flower import groups as records
from fl.flower.hello import answers, ask
from fl.method.messages import Broadcast, Static, Update
from fl.method.reduction import Product
from fl.simulation.setup import set_up_run
from fl.simulation.simulation import Result, Simulation, new_directory
from fl.storage.clients import ClientStates
from fl.tensors.trees import Tree

CALL, METRICS, ROWS, CONFIG, MERGE = (
    "fl.call",
    "metrics",
    "fl.rows",
    "fl.config.config",
    "fl.merge",
)  # records beside the groups
OURS = ("out", "wait", "timeout")  # keys of the run config that are the app's own, not the configuration's
Source = str | Path | Mapping[str, Any] | Config


def server_app(
    config: Source, out: str | Path | None = None, wait: float = 600.0, timeout: float | None = None
) -> ServerApp:
    """A ServerApp of a configuration. `out`: the run directory, gone on with if it holds a run; `wait`: seconds for all
    SuperNodes to come up; `timeout`: seconds for a client's answer, after which it has failed. Flower's run config
    (`flwr run -c "rounds=5 client.lr=0.1"`) overrides all of them."""
    app, text = ServerApp(), _text(config)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        mine = {"out": out, "wait": wait, "timeout": timeout}
        mine |= {key: context.run_config[key] for key in OURS if context.run_config.get(key)}
        drive(grid, _overridden(text, context.run_config), mine["out"], float(mine["wait"]), mine["timeout"])

    return app


def client_app(config: Source) -> ClientApp:
    """A ClientApp of the same configuration."""
    text = _text(config)
    app = answers(ClientApp(), config=lambda context: _digest(_overridden(text, context.run_config)))

    def work(message: Message, context: Context) -> Message:
        ours = _overridden(text, context.run_config)
        return Message(_answer(ours, message.content, context), reply_to=message)

    app.train()(work)
    app.evaluate()(work)
    return app


def drive(
    grid: Grid, text: str, out: str | Path | None = None, wait: float = 600.0, timeout: float | None = None
) -> Result:
    """The run of a resolved configuration (YAML) over the SuperNodes of a grid."""
    config = resolve(parse(text))
    if config.baselines:
        raise ConfigError("baselines", f"{list(config.baselines)} are no part of a deployment; `fl run` makes them")
    if find_wrapper(config.down, Delta):
        raise ConfigError(
            "codec.down", "delta is no part of a deployment: the server would have to keep what every client has"
        )
    directory = Path(out) if out else new_directory(config)
    going_on = (directory / "checkpoints" / "last.json").exists()
    executor = Deployed(grid, _digest(text), wait, None if timeout is None else float(timeout))
    with Simulation(config, directory, going_on, executor) as simulation:
        result = simulation.run(_say)
    print(f"{result.reason}; model {result.digest[:12]} in {result.directory}", flush=True)
    return result


def _say(event: str, value: Any) -> None:
    if event == "round":
        figures = {k: v for k, v in value.items() if k.endswith(("loss", "accuracy")) and isinstance(v, float)}
        print(f"round {value['round']}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)


# -- configuration ----------------------------------------------------------------------------------------------------
def _text(config: Source) -> str:
    """The resolved configuration as YAML: both ends have the same, and it can travel."""
    if not isinstance(config, Config):
        config = resolve(read(config))
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


@functools.lru_cache(maxsize=4)
def _changed(text: str, overrides: str) -> str:
    return _text(read(parse(text), json.loads(overrides)))


def _overridden(text: str, run_config: Mapping[str, Any]) -> str:
    overrides = {key: value for key, value in run_config.items() if key not in OURS}
    return _changed(text, json.dumps(overrides, sort_keys=True)) if overrides else text


def _digest(text: str) -> str:
    """The configuration's, wherever its files lie on this machine."""
    return hashlib.sha256(re.sub(r"/[^\s'\"]*/", "/", text).encode()).hexdigest()


# -- the server's side ------------------------------------------------------------------------------------------------
class Deployed:
    """An executor whose clients are the SuperNodes of a grid; what is the server's own is done in place."""

    remote = True

    def __init__(self, grid: Grid, digest: str, wait: float, timeout: float | None):
        self.grid, self.digest, self.wait, self.timeout = grid, digest, wait, timeout
        self.nodes: dict[int, int] = {}  # client -> node
        self.asked: set[int] = set()
        self.held: dict[int, dict[str, int]] = {}  # client -> static group -> the version it keeps
        self.workers = 1

    def prepare(self) -> None:
        pass

    def start(self, job: Job, states: ClientStates) -> None:
        self.states, self.writer = states, states.new_writer()
        self.worker = Worker(job, self.writer)
        self.workers = states.population
        self._meet(np.arange(states.population))

    def run(self, dispatch: ExchangeDispatch) -> DispatchResult:
        if dispatch.kind == "evaluate_server":
            part = self.worker.run(dispatch, [(0, dispatch.tasks)], self.states.segment(self.writer))
            return dispatch.gather([part])
        if dispatch.skeleton is not None:
            raise ValueError("the strategy has clients train another module than the run's, which no message can carry")
        exchange = self.worker.begin(dispatch)
        replies = self._replies(dispatch, self._messages(exchange))
        for position in range(len(dispatch.cohort)):
            at = np.array([position])
            exchange.guarded(at, partial(self._arrive, exchange, at, replies.pop(position, "no reply")))
        return dispatch.gather([exchange.part()])

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def close(self) -> None:
        if hasattr(self, "worker"):
            self.worker.close()

    def _meet(self, clients: Iterable[int]) -> None:
        """Wait until every one of these clients has its SuperNode: a query tells a node's partition-id."""
        end = time.monotonic() + self.wait
        while missing := [int(c) for c in clients if int(c) not in self.nodes]:
            fresh = [node for node in self.grid.get_node_ids() if node not in self.asked]
            for node, told in ask(self.grid, fresh, self.wait):
                self.asked.add(node)
                if told["config"] != self.digest:
                    raise ConfigError("", f"client {told['partition-id']} runs another configuration than the server")
                self.nodes[told["partition-id"]] = node
            if not fresh:
                if time.monotonic() > end:
                    some = missing[:5]
                    raise TimeoutError(
                        f"no SuperNode for {len(missing)} clients, the first {some}; start them with --node-config partition-id={some[0]}"
                    )
                time.sleep(0.5)

    # -- down -----------------------------------------------------------------------------------------------------
    def _messages(self, exchange: ExchangeWorker) -> list[Message]:
        """One for each position of the cohort. What is the same for all is encoded once; every message has its own records."""
        d, job = exchange.dispatch, exchange.job
        source = d.original or d.broadcast
        codec = job.down if d.original else Identity()
        key = functools.partial(down_key, job.seed, d.number)
        common = {n: records.write(codec, tree, key(n)) for n, tree in source.shared.items() if n not in source.hidden}
        static = {n: records.write(codec, s.value, key(n, version=s.version)) for n, s in source.static.items()}
        self._meet(d.cohort)
        messages = []
        for position, client in enumerate(map(int, d.cohort)):
            coded = "shared" if d.original is not None else ""
            groups = {name: (record, form, coded) for name, (record, form, _) in common.items()}
            for name, tree in d.broadcast.own(client).items():
                record, form, sizes = records.write(job.down, tree, exchange.own_key(client, name))
                groups[name] = (record, form, "own")
                if d.kind == "work":
                    exchange.count("down", name, np.array([position]), sizes)
            kept = self._kept(client, source.static, d.original is not None or isinstance(job.down, Identity))
            for name, (record, form, _) in static.items():
                if name not in kept:
                    groups[name] = (record, form, coded and "static")
            messages.append(self._message(d, position, client, groups, kept))
        return messages

    def _kept(self, client: int, static: Mapping[str, Static], same_codec: bool) -> dict[str, int]:
        """Of the static groups, those that the client has in the version asked for."""
        held = self.held.get(client, {})
        return {name: s.version for name, s in static.items() if same_codec and held.get(name) == s.version}

    def _message(
        self,
        d: ExchangeDispatch,
        position: int,
        client: int,
        groups: Mapping[str, tuple[ArrayRecord, str, str]],
        kept: dict[str, int],
    ) -> Message:
        config = d.broadcast.config(client) if callable(d.broadcast.config) else d.broadcast.config
        settings, tensors = records.store(dict(config))
        fresh = {name: s.version for name, s in d.broadcast.static.items() if name in groups and d.original is not None}
        call = {
            "kind": d.kind,
            "work": d.work,
            "round": d.round,
            "period": d.period,
            "number": d.number,
            "client": client,
            "split": d.split,
            "layout": d.plan.layout,
            "state": int(d.states[position][1]) if d.states[position][0] >= 0 else None,
            "carry": int(d.carries[position][1]) if d.carries[position][0] >= 0 else None,
            "config": settings,
            "groups": {name: [form, coded] for name, (_, form, coded) in groups.items()},
            "keep": fresh,
            "kept": kept,
        }
        content = RecordDict({name: record for name, (record, _, _) in groups.items()})
        content[CALL] = ConfigRecord({"call": json.dumps(call, separators=(",", ":"))})
        if len(tensors):
            content[CONFIG] = tensors
        if d.rows is not None:
            content[ROWS] = ArrayRecord({"rows": records.array(torch.from_numpy(d.rows))})
        if fresh:
            self.held.setdefault(client, {}).update(fresh)
        kind = "train" if d.kind == "work" else "evaluate"
        return Message(content, dst_node_id=self.nodes[client], message_type=kind, group_id=str(d.round))

    def _replies(self, d: ExchangeDispatch, messages: list[Message]) -> dict[int, RecordDict | str]:
        """position -> what came, or in words why nothing did."""
        position = {self.nodes[int(client)]: i for i, client in enumerate(d.cohort)}
        replies: dict[int, RecordDict | str] = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            node = reply.metadata.src_node_id
            replies[position[node]] = reply.error.reason if reply.has_error() else reply.content
        for node, i in position.items():
            if not isinstance(replies.get(i), RecordDict):  # gone, or come back as another: met again if asked again
                client = int(d.cohort[i])
                self.nodes.pop(client)
                self.asked.discard(node)
                self.held.pop(client, None)
        return replies

    # -- up -------------------------------------------------------------------------------------------------------
    def _arrive(self, exchange: ExchangeWorker, at: np.ndarray, content: RecordDict | str) -> None:
        exchange.stage = exchange.dispatch.work
        if isinstance(content, str):
            raise ConnectionError(content)
        call = content[CALL]
        if "error" in call:
            self.held.pop(int(exchange.dispatch.cohort[at[0]]), None)
            exchange.stage = call["stage"]
            raise RuntimeError(call["error"])
        told = json.loads(call["call"])
        metrics = dict(content[METRICS])
        examples = int(metrics.pop("num-examples"))
        if exchange.dispatch.kind == "evaluate":
            exchange.columns.add(at, {f"metric/{name}": np.array([value]) for name, value in metrics.items()})
            exchange.columns.add(at, {"num_examples": np.array([examples])})
            exchange.fold.add(0, int(at[0]), records.restore(told["merge"], content[MERGE]))
            return
        exchange.stage, groups, counted, received = "decode", {}, {}, None
        for name, form in told["groups"].items():
            key = exchange.up_key(at, name)
            decoded, counted[name] = records.read(exchange.job.up, content[name], form, key)
            if exchange.delta and received is None:
                received, _ = exchange.receive(None, int(exchange.dispatch.cohort[at[0]]))
            groups[name] = exchange.incoming(name, decoded, received or {}, stacked=False)
        exchange.arrive(at, Update(groups, examples, metrics, owned=True), counted, stacked=False, careful=True)
        where = {name: np.array([(0, exchange.dispatch.number, 0)]) for name in told["wrote"]}
        exchange.columns.add(at, where)


# -- the client's side ------------------------------------------------------------------------------------------------
class _Kept:
    """A client's trees in its Context, by the number of the exchange that wrote them; in the place of `Segments`."""

    def __init__(self, name: str, state: RecordDict, number: int):
        self.name, self.state, self.number = name, state, number
        self.committed: int | None = None

    def read(self, location: tuple[int, int, int]) -> Tree:
        if location[0] < 0:
            return None
        self.committed = int(location[1])
        key = self._key(self.committed)
        if key not in self.state:
            raise LookupError(
                f"the client's {self.name} is not in its Context: its SuperNode has been restarted, or the run goes on as "
                "another Flower run. A method whose clients keep something has to begin anew"
            )
        return records.restore(self.state[f"{key}.form"]["form"], self.state[key])

    def append(self, tree: Tree) -> tuple[int, int, int]:
        """Writes beside what the server knows of, which counts on if this update is refused; older ones go."""
        keep = {self._key(self.number), *([] if self.committed is None else [self._key(self.committed)])}
        for key in [k for k in self.state if k.startswith(f"fl.{self.name}/") and k.removesuffix(".form") not in keep]:
            del self.state[key]
        form, arrays = records.store(tree)
        self.state[self._key(self.number)] = arrays
        self.state[f"{self._key(self.number)}.form"] = ConfigRecord({"form": form})
        return 0, self.number, 0

    def _key(self, number: int) -> str:
        return f"fl.{self.name}/{number}"

    def write_to(self, segment: int) -> None: ...

    def empty(self) -> None: ...

    def close(self) -> None: ...


class _AtClient(ExchangeWorker):
    """The client's part of an exchange: what it would deliver is handed over."""

    sent: Update
    records: dict[str, tuple[ArrayRecord, str, Sizes]]

    def deliver(self, positions, update, received, before, stacked, careful, keep):
        self.sent, self.records, memory = update, {}, {}
        for name, tree in self.leave(positions, update, stacked).items():
            sent, key = self.outgoing(name, tree, received, before, stacked), self.up_key(positions, name)
            self.records[name] = records.write(self.job.up, sent, key)
            if self.feedback:
                memory[self.memory_name(name)] = compression_error(sent, transmit(self.job.up, sent, None, key)[0])
        keep(memory)
        return True


@functools.lru_cache(maxsize=1)
def _worker(text: str) -> Worker:
    """Data, module and job, made once in a process."""
    nowhere = Path(tempfile.gettempdir())  # nothing is written there: see _Kept
    job = set_up_run(resolve(parse(text))).job(nowhere, nowhere)
    return Worker(replace(job, on_error="raise"), 0)


def _answer(text: str, content: RecordDict, context: Context) -> RecordDict:
    """What a client replies to a message; of a failure, its place and its words."""
    try:
        return _done(_worker(text), content, context)
    except ClientError as error:
        _, _, stage, detail = error.arguments
        return RecordDict({CALL: ConfigRecord({"error": detail, "stage": stage})})
    except Exception as error:
        return RecordDict({CALL: ConfigRecord({"error": f"{type(error).__name__}: {error}", "stage": "broadcast"})})


def _done(worker: Worker, content: RecordDict, context: Context) -> RecordDict:
    call = json.loads(content[CALL]["call"])
    mine = int(context.node_config["partition-id"])
    if mine != call["client"]:
        raise ValueError(f"a message for client {call['client']} came to client {mine}")
    job, work = worker.job, call["kind"] == "work"
    worker.states = _Kept("state", context.state, call["number"])
    worker.scratch = _Kept("carry", context.state, call["number"])
    dispatch = ExchangeDispatch(
        kind=call["kind"],
        work=call["work"],
        round=call["round"],
        period=call["period"],
        number=call["number"],
        cohort=np.array([mine]),
        broadcast=Broadcast(_received(job, call, content, context), config=_settings(call, content)),
        reduction=Product({} if work else job.periods[call["period"]].task.metrics()),
        plan=Plan("loop", 1, "a client alone", layout=call["layout"]),
        states=_location(call["state"]),
        carries=_location(call["carry"]),
        cost=np.ones(1),
        split=call["split"],
        rows=records.tensor(content[ROWS]["rows"]).numpy() if ROWS in content else None,
    )
    exchange = _AtClient(worker, dispatch)
    exchange.chunk(np.array([0]))
    return _update(exchange) if work else _measured(exchange)


def _location(number: int | None) -> np.ndarray:
    return np.array([(-1, 0, 0) if number is None else (0, number, 0)])


def _settings(call: Mapping[str, Any], content: RecordDict) -> Mapping[str, Any]:
    return records.restore(call["config"], content[CONFIG] if CONFIG in content else ArrayRecord())


def _received(job: Job, call: Mapping[str, Any], content: RecordDict, context: Context) -> dict[str, Tree]:
    """The groups of a message, and the static ones that the client has kept."""
    received, key = {}, functools.partial(down_key, job.seed, call["number"])
    for name, (form, coded) in call["groups"].items():
        own, version = call["client"] if coded == "own" else None, call["keep"].get(name)
        received[name], _ = records.read(
            job.down if coded else Identity(), content[name], form, key(name, own, version)
        )
        if name in call["keep"]:
            context.state[f"fl.static/{name}"] = content[name]
            context.state[f"fl.static/{name}.form"] = ConfigRecord({"form": form, "version": call["keep"][name]})
    for name, version in call["kept"].items():
        kept = context.state.get(f"fl.static/{name}.form")
        if kept is None or kept["version"] != version:
            raise LookupError(
                f"version {version} of {name!r} is not in the client's Context: its SuperNode has been restarted"
            )
        record = context.state[f"fl.static/{name}"]
        received[name], _ = records.read(job.down, record, kept["form"], key(name, version=version))
    return received


def _update(exchange: _AtClient) -> RecordDict:
    update, content, forms = exchange.sent, RecordDict(), {}
    for name, (record, form, _) in exchange.records.items():
        content[name], forms[name] = record, form
    told = {"groups": forms, "wrote": [name for name in ("state", "carry") if name in exchange.columns.pieces]}
    return _reply(content, told, dict(update.metrics), int(update.num_examples))


def _measured(exchange: _AtClient) -> RecordDict:
    form, arrays = records.store(exchange.fold.nodes[0, 0])
    columns = exchange.columns.metrics(1)
    metrics = {name: float(values[0]) for name, values in columns.items()}
    examples = int(exchange.columns.column("num_examples", 1, 0)[0])
    return _reply(RecordDict({MERGE: arrays}), {"merge": form}, metrics, examples)


def _reply(content: RecordDict, told: Mapping[str, Any], metrics: Mapping[str, Any], examples: int) -> RecordDict:
    content[CALL] = ConfigRecord({"call": json.dumps(told, separators=(",", ":"))})
    numbers = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    content[METRICS] = MetricRecord({**numbers, "num-examples": examples})
    return content
