"""The client of a deployed run: it does one client's share of an exchange and keeps its state in Flower's Context.

Call + groups -> decode -> client work -> transforms, codec -> ClientReply + groups
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fl.communication.codecs.error_feedback import Residuals, compression_error
from fl.communication.codecs.identity import Identity
from fl.communication.keys import down_key
from fl.communication.transmit import Sizes, transmit
from fl.config.config import resolve
from fl.config.yaml import parse
from fl.errors import ClientError
from fl.execution.client_work import ClientWork
from fl.execution.dispatch import ExchangeDispatch
from fl.execution.exchange_worker import ExchangeWorker
from fl.execution.job import Job
from fl.execution.stages import during
from fl.execution.training.plan import Plan
from fl.execution.uploads import Keep, Uploads
from fl.execution.worker import Worker
from fl.flower.call import CALL, METRICS, ROWS, SETTINGS, SUMS, Call, ClientReply, Failure
from fl.flower.group_records import array_to_tensor, read_group, record_to_tree, tree_to_record, write_group
from fl.flower.hello import partition_id
from fl.flower.records import get_arrays, get_config, get_text
from fl.flower.static_records import add_patches, read_stored, store_static
from fl.method.messages import Broadcast, Update
from fl.method.reduction import Product
from fl.simulation.build import set_up_run
from fl.storage.segments import Segments
from fl.tasks.task import pooled
from fl.tensors.trees import Tree


def answer(text: str, content: RecordDict, context: Context) -> RecordDict:
    """Do what a message asks for. An error becomes a reply with its stage and its text.

    Args:
        text: The configuration, YAML.
        content: The message: a Call and its groups.
        context: The node's Context; its `state` holds the client's state.
    """
    try:
        return _answer(_worker(text), content, context)
    except ClientError as error:
        _, _, stage, detail, _ = error.arguments
        return RecordDict({CALL: Failure(stage, detail).to_record()})
    except Exception as error:
        return RecordDict({CALL: Failure("broadcast", f"{type(error).__name__}: {error}").to_record()})


@functools.lru_cache(maxsize=1)
def _worker(text: str) -> Worker:
    """Data, module and job, made once per process."""
    unused = Path(tempfile.gettempdir())  # nothing is written there: a ContextStore takes the place of the files
    job = set_up_run(resolve(parse(text))).job(unused, unused)
    return Worker(replace(job, on_error="raise"), 0)


def _answer(worker: Worker, content: RecordDict, context: Context) -> RecordDict:
    call = Call.of(content)
    client = partition_id(context.node_config)
    if client != call.client:
        raise ValueError(f"a message for client {call.client} came to client {client}")
    job, is_work = worker.job, call.kind == "work"
    worker.states = _store("state", context, call)
    worker.scratch = _store("carry", context, call)
    settings = record_to_tree(call.settings, get_arrays(content, SETTINGS) if SETTINGS in content else ArrayRecord())
    dispatch = ExchangeDispatch(
        kind=call.kind,
        work=call.work,
        round=call.round,
        period=call.period,
        number=call.number,
        cohort=np.array([client]),
        broadcast=Broadcast(_received(job, call, content, context), config=settings),
        reduction=Product({}) if is_work else pooled(job.periods[call.period].task.metrics()),
        plan=Plan("loop", 1, "a deployed client trains alone", memory_format=call.memory_format),
        states=_location(call.state),
        carries=_location(call.carry),
        cost=np.ones(1),
        split=call.split,
        rows=array_to_tensor(get_arrays(content, ROWS)["rows"]).numpy() if ROWS in content else None,
    )
    exchange = worker.begin(dispatch)
    if not isinstance(exchange, ClientWork):
        exchange.chunk(np.array([0]))
        return _evaluation(exchange)
    exchange.uploads = outbox = Outbox(exchange)
    exchange.chunk(np.array([0]))
    return _update(exchange, outbox)


def _store(name: str, context: Context, call: Call) -> Segments:
    return ContextStore(name, context.state, call.number)  # type: ignore[return-value]  # has its methods


def _location(number: int | None) -> np.ndarray:
    """The location of a state that exchange `number` wrote."""
    return np.array([(-1, 0, 0) if number is None else (0, number, 0)])


def _received(job: Job, call: Call, content: RecordDict, context: Context) -> dict[str, Tree]:
    """Decode the groups of a message, store its static groups, and add those stored before."""
    received, key = {}, functools.partial(down_key, job.seed, call.number)
    for name, (form, coding) in call.groups.items():
        client, patches = call.client if coding == "own" else None, call.patches.get(name)
        version = patches[0].version if patches else call.store.get(name)
        record = get_arrays(content, name)
        received[name], _ = read_group(job.down if coding else Identity(), record, form, key(name, client, version))
    for name, version in call.stored.items():
        received[name] = read_stored(context.state, name, version)
    for name, patches in call.patches.items():
        first = patches[0].version
        if name not in received:
            received[name] = read_stored(context.state, name, first) if first >= 0 else None
        received[name] = add_patches(job, content, name, received[name], patches)
    for name, version in call.store.items():
        store_static(context.state, name, version, received[name])
    return received


def _update(exchange: ClientWork, outbox: Outbox) -> RecordDict:
    update, content, forms = outbox.sent, RecordDict(), {}
    for name, (record, form, _) in outbox.records.items():
        content[name], forms[name] = record, form
    reply = ClientReply(groups=forms, wrote=[name for name in ("state", "carry") if name in exchange.columns.pieces])
    return _reply(content, reply, dict(update.metrics), int(update.num_examples))


def _evaluation(exchange: ExchangeWorker) -> RecordDict:
    form, arrays = tree_to_record(exchange.fold.nodes[0, 0])
    metrics = {name: float(values[0]) for name, values in exchange.columns.metrics(1).items()}
    examples = int(exchange.columns.column("num_examples", 1, 0)[0])
    return _reply(RecordDict({SUMS: arrays}), ClientReply(sums=form), metrics, examples)


def _reply(content: RecordDict, reply: ClientReply, metrics: Mapping[str, Any], examples: int) -> RecordDict:
    content[CALL] = reply.to_record()
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    content[METRICS] = MetricRecord({**values, "num-examples": examples})
    return content


class Outbox(Uploads):
    """The client's side of an upload: it holds the encoded groups for the reply."""

    sent: Update
    records: dict[str, tuple[ArrayRecord, str, Sizes]]

    def upload(
        self,
        positions: np.ndarray,
        update: Update,
        received: Mapping[str, Tree],
        records: Sequence[Tree],
        stacked: bool,
        careful: bool,
        keep: Keep,
    ) -> bool:
        self.sent, self.records = update, {}
        residuals: dict[str, Residuals] = {}
        with during("encode"):
            for name, tree in self.client_side(positions, update, stacked).items():
                sent, key = self.outgoing(name, tree, received, records, stacked), self.key(positions, name)
                self.records[name] = write_group(self.job.up, sent, key)
                if self.feedback:
                    arrived = transmit(self.job.up, sent, None, key)[0]
                    residuals[self.residual_name(name)] = compression_error(sent, arrived)
        keep(residuals)
        return True


class ContextStore:
    """A client's trees in its Context, by the number of the exchange that wrote them; it replaces `Segments`.

    Args:
        name: "state" or "carry".
        state: The `state` of the node's Context.
        number: Number of the present exchange.
    """

    def __init__(self, name: str, state: RecordDict, number: int) -> None:
        self.name, self.state, self.number = name, state, number
        self.committed: int | None = None  # the exchange whose tree the server asked for

    def read(self, location: tuple[int, int, int]) -> Tree:
        """Return the tree at a location (0, number, 0); None if the first entry is negative."""
        if location[0] < 0:
            return None
        self.committed = int(location[1])
        key = self._key(self.committed)
        if key not in self.state:
            raise LookupError(
                f"the client's {self.name} is not in its Context: its SuperNode has been restarted, or the run "
                "continues as another Flower run. Start a new run, because clients of this method keep state"
            )
        return record_to_tree(get_text(get_config(self.state, f"{key}.form"), "form"), get_arrays(self.state, key))

    def append(self, tree: Tree, room: object = None) -> tuple[int, int, int]:
        """Store a tree and return its location. `room` is not used: there are no files.

        The committed tree stays too, because it remains valid if the server refuses this update. Older ones go.
        """
        keep = {self._key(self.number), *([] if self.committed is None else [self._key(self.committed)])}
        for key in [k for k in self.state if k.startswith(f"fl.{self.name}/") and k.removesuffix(".form") not in keep]:
            del self.state[key]
        form, arrays = tree_to_record(tree)
        self.state[self._key(self.number)] = arrays
        self.state[f"{self._key(self.number)}.form"] = ConfigRecord({"form": form})
        return 0, self.number, 0

    def _key(self, number: int) -> str:
        return f"fl.{self.name}/{number}"

    def write_to(self, segment: int) -> None:
        """Do nothing: there are no files."""

    def empty(self) -> None:
        """Do nothing: `append` removes old trees."""

    def close(self) -> None:
        """Do nothing: there are no files."""
