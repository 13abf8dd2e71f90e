"""Run a ServerApp and its ClientApp in this process: seeded, counted, in a run directory.

    metrics.jsonl     one row per round: means of the MetricRecords that came back, bytes, seconds
    clients.parquet   the numbers of every reply
    ledger.parquet    bytes per round, node, direction and record

A row holds `train/M` and `evaluate/M` (weighted by `num-examples` if the reply has it) and `messages/train`, ...;
`cohort_size` counts nodes, `dropped` counts replies that are errors (`errors/train`, ...) or late (`late/train`).
`fl.flower.rounds` says what a round is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp
from threadpoolctl import threadpool_limits

from fl.communication.ledger import Ledger
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.limits import default_workers
from fl.execution.workers.process import configure_process
from fl.execution.workers.ray import Ray
from fl.flower.federation import gpu_shares
from fl.flower.grid import LocalGrid
from fl.flower.journal import Journal
from fl.flower.node_config import NodeConfig, check_node_config
from fl.flower.rounds import RoundRecorder, Row
from fl.flower.seeding import seeded
from fl.flower.worker import AppJob, gc_frozen
from fl.storage import files, sums
from fl.storage.clients import ClientStates
from fl.storage.lock import locked
from fl.storage.place import check_place
from fl.storage.run import committed, create_run_directory, open_run, read_metrics
from fl.tensors.random import hash64
from fl.tracking.callback import Callback, Callbacks

if TYPE_CHECKING:
    import pyarrow as pa

EXECUTORS = ("serial", "ray")


@dataclass(frozen=True)
class Result:
    """A finished run. The results of the ServerApp are in `context.state`, or wherever the app put them.

    `first_error` is the first error of a client: its node, message type and round, then its place in the app.
    """

    metrics: list[Row]
    context: Context
    directory: Path
    first_error: str | None = None

    @property
    def failed_rounds(self) -> dict[str, list[int]]:
        """Rounds without a good reply, by message type: every reply to these messages was an error or late."""
        failed: dict[str, list[int]] = {}
        for row in self.metrics:
            for key, errors in row.items():
                name, _, kind = key.partition("/")
                if name == "errors" and errors + row.get(f"late/{kind}", 0) == row[f"messages/{kind}"]:
                    failed.setdefault(kind, []).append(row["round"])
        return failed

    @property
    def replies(self) -> dict[str, int]:
        """Numbers of messages, of replies that are errors, and of replies that were late."""
        counts = {"messages": 0, "errors": 0, "late": 0}
        for row in self.metrics:
            for key, number in row.items():
                name = key.partition("/")[0]
                if name in counts:
                    counts[name] += number
        return counts

    @property
    def ledger(self) -> pa.Table:
        """The ledger: bytes per round, node, direction and record."""
        import pyarrow.parquet as pq

        return pq.read_table(sums.checked(self.directory / "ledger.parquet"))


@dataclass(frozen=True)
class AppRun:
    """A run of an app, as callbacks see it."""

    directory: Path
    headline: str
    round: int  # the first round
    rounds: int | None = None  # only the ServerApp knows
    every: int = 1


def simulate(
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Literal["serial", "ray"] = "serial",
    workers: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    name: str = "flower",
    source: str | None = None,
    journal: bool = False,
    resume: bool = False,
    gpus_per_client: float | None = None,
    gpus: int | None = None,
    node_config: NodeConfig | Sequence[NodeConfig] | None = None,
    apply_timeouts: bool = False,
    callbacks: Iterable[Callback] = (),
) -> Result:
    """Run an app over `num_nodes` nodes.

    Args:
        server_app: The ServerApp.
        client_app: The ClientApp.
        num_nodes: Number of nodes, at least 1.
        seed: Seed of all random numbers.
        out: The run directory; None makes a new one under runs/.
        executor: "serial" or "ray"; the bits are the same.
        workers: Worker processes for "ray"; None means one per core.
        run_config: What both apps find in `context.run_config`.
        name: Name of the app, in config.yaml and in the name of a new run directory.
        source: Folder of the app, stored in config.yaml.
        journal: Whether to keep every reply on disk, so that the run can continue after it was killed.
        resume: Whether to continue the run in `out`. The other arguments must be the same.
        gpus_per_client: GPUs of each worker process, as Flower's client-resources.num-gpus: a fraction, or a whole
            number. None and 0 mean that worker processes see no GPU. Clients in this process see all its GPUs.
        gpus: Number of GPUs of this machine; None counts them.
        node_config: What clients find in `context.node_config` beside `partition-id` and `num-partitions`: one mapping
            for all nodes, or a list with one for each node.
        apply_timeouts: Whether replies of clients that worked longer than the timeout of their message are dropped. The
            result then depends on the speed of the machine.
        callbacks: Called at the start, when the workers are ready, and after each round; see `fl.Callback`.
            Only the app has the model, so `measure` is not called, and `run.model` and `run.stop` do not exist.
    """
    if num_nodes < 1:
        raise ConfigError("num_nodes", f"{num_nodes} is not at least 1")
    if executor not in EXECUTORS:
        raise ConfigError("executor", f"{executor!r} is not one of {list(EXECUTORS)}")
    if resume and not out:
        raise ConfigError("out", "resume continues a run: name its directory")
    watching = Callbacks(callbacks)
    configs = check_node_config(node_config, num_nodes)
    if executor == "ray":
        workers = workers or default_workers()
    shares = gpu_shares(workers if executor == "ray" else None, gpus_per_client, gpus)
    directory = Path(out) if out else create_run_directory(name, seed)
    if not resume and out:
        check_place(directory)
    run_id, run_config = int(hash64(seed, "run")) >> 1, dict(run_config or {})
    app: dict[str, Any] = {"name": name, "source": source, "nodes": num_nodes, "config": run_config}
    app |= {"journal": journal or resume, "node_config": configs, "apply_timeouts": apply_timeouts}
    execution = {"executor": executor, "workers": workers, "gpus_per_client": gpus_per_client, "gpus": gpus}
    with locked(directory):
        resumed = resume and _is_committed(directory, seed, app)
        if not resume and (directory / "metrics.jsonl").exists():
            raise ConfigError(
                "out", f"{directory} holds a run already; name another directory, or resume the run if it has a journal"
            )
        configure_process()
        states = ClientStates(directory / "clients", num_nodes + 1)  # by node id; 0 is unused
        folder, record = open_run(directory, Ledger, states, resumed)
        folder.begin(states)
        if not record:
            folder.configure({"seed": seed, "flower": app, "execution": execution})
            folder.describe({})
        context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
        replies = (
            Journal(files.make_folder(directory / "journal"), record["journal"] if record else ())
            if app["journal"]
            else None
        )
        rounds = RoundRecorder(folder, states, replies, record["round"] if record else 0, watching)
        chosen: Executor = Ray(workers, gpus=shares) if executor == "ray" and workers else Serial()
        folder_of_app = Path(source) if source else None
        job = AppJob(client_app, seed, run_id, num_nodes, run_config, directory / "clients", configs, folder_of_app)
        run = AppRun(directory, f"{name}, a Flower app, {num_nodes} nodes, in {directory}", rounds.round)
        try:
            with threadpool_limits(1), seeded(seed, "server"), _task_identity(run_id), gc_frozen():
                watching.start(run)  # type: ignore[arg-type]  # only a ServerApp knows its model
                with seeded():  # starting workers may draw, and the server's generators must not notice
                    chosen.start(job, states)
                watching.ready(run)  # type: ignore[arg-type]
                server_app(LocalGrid(chosen, states, run_id, rounds, replies, apply_timeouts), context)
                rounds.end()
        finally:
            chosen.close()
            if replies:
                replies.close()
            folder.export()
            folder.close()
            states.close()
    return Result(read_metrics(directory), context, directory, rounds.first_error)


def _is_committed(directory: Path, seed: int, app: Mapping[str, Any]) -> bool:
    """Return whether the run in a directory has a committed round. Refuses other arguments than the run had."""
    file = directory / "config.yaml"
    if not file.is_file():
        raise ConfigError("out", f"{directory} holds no run")
    then = parse(file.read_text())
    if "flower" not in then:
        raise ConfigError("out", f"{directory} is not a run of a Flower app; resume it with fl.resume")
    if not then["flower"]["journal"]:
        raise ConfigError(
            "out", f"{directory} has no journal, so its run cannot continue. Start a new run with journal"
        )
    for key, now in {"seed": seed, **app}.items():
        before = then["seed"] if key == "seed" else then["flower"].get(key, now)  # an older run lacks new keys
        if key not in ("name", "source") and before != now:
            raise ConfigError(key, f"{now!r} is not {before!r}, which the run in {directory} has")
    return committed(directory)


@contextmanager
def _task_identity(run_id: int) -> Iterator[None]:
    """Set the sender of messages made in this process. Recent versions of Flower read it when they make a Message."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        yield
        return
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
