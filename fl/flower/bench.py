"""Compare one Flower app on our engine and on Flower's own simulation: seconds per round, seen from the ServerApp.

    softmax        60 features, 10 classes, 20 samples per client, in numpy       limited by the cost of messages
    femnist_mlp    784-200-200-62, 100 samples per client on average, in torch    limited by training

`python -m experiments.benchmarks.flower` runs it. Both sides get the same ServerApp, ClientApp, nodes, cohort and
number of processes, and take turns; the data is resident in every process. A round lasts from one central evaluation
(of nothing) to the next. The first round is left out, because processes start in it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fl.flower.hello import partition_id
from fl.flower.records import get_arrays

SIDES = ("ours", "flower")
ROWS = 20_000  # rows of the common data; each client uses a part of them


@functools.cache
def _rows(features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, features), np.float32), rng.integers(0, classes, ROWS)


def _client_rows(client: int, n: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n rows of a client."""
    x, y = _rows(features, classes)
    first = client * 7919 % (ROWS - n)
    return x[first : first + n], y[first : first + n]


# -- softmax regression, numpy ----------------------------------------------------------------------------------------
def softmax_initial() -> ArrayRecord:
    """Return the initial weights of the softmax workload."""
    return ArrayRecord([np.zeros((60, 10), np.float32), np.zeros(10, np.float32)])


def softmax_train(msg: Message, context: Context) -> Message:
    """Take two steps of 10 rows each, in numpy."""
    w, b = get_arrays(msg.content, "arrays").to_numpy_ndarrays()
    x, y = _client_rows(partition_id(context.node_config), 20, 60, 10)
    for rows in (slice(0, 10), slice(10, 20)):
        scores = x[rows] @ w + b
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        scores[np.arange(10), y[rows]] -= 1
        w, b = w - 0.005 * x[rows].T @ scores, b - 0.005 * scores.sum(0)
    return _reply(msg, ArrayRecord([w, b]), 20)


# -- an MLP in the sizes of FEMNIST, torch ----------------------------------------------------------------------------
def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 62))


def mlp_initial() -> ArrayRecord:
    """Return the initial weights of the MLP."""
    return ArrayRecord(_mlp().state_dict())


def mlp_train(msg: Message, context: Context) -> Message:
    """Train one epoch with batches of 20 rows, in torch."""
    net = _mlp()
    net.load_state_dict(get_arrays(msg.content, "arrays").to_torch_state_dict())
    client = partition_id(context.node_config)
    n = int(np.clip(100 * np.random.default_rng(client).lognormal(-0.5, 1.0), 8, 400))  # mean 100 before clipping
    x, y = map(torch.from_numpy, _client_rows(client, n, 784, 62))
    optimiser = torch.optim.SGD(net.parameters(), 0.05)
    for rows in torch.randperm(n).split(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return _reply(msg, ArrayRecord(net.state_dict()), n)


def _reply(msg: Message, arrays: ArrayRecord, n: int) -> Message:
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": n})}), reply_to=msg)


# -- both sides -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Workload:
    """An app: initial weights, client work, nodes in all and nodes per round."""

    initial: Callable[[], ArrayRecord]
    train: Callable[[Message, Context], Message]
    nodes: int
    cohort: int


WORKLOADS = {
    "softmax": Workload(softmax_initial, softmax_train, 100_000, 1_000),
    "softmax_cohort_only": Workload(softmax_initial, softmax_train, 1_000, 1_000),
    "femnist_mlp": Workload(mlp_initial, mlp_train, 3_400, 100),
}


def run_workload(name: str, side: str, rounds: int, workers: int) -> None:
    """Run a workload in this process on one side; print the time at each of its evaluations."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    workload = WORKLOADS[name]
    client, server = ClientApp(), ServerApp()
    client.train()(workload.train)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.cohort / workload.nodes,
            min_train_nodes=workload.cohort,
            min_available_nodes=workload.nodes,
            fraction_evaluate=0.0,
        )
        strategy.start(
            grid=grid,
            initial_arrays=workload.initial(),
            num_rounds=rounds + 1,
            timeout=36_000,
            train_config=ConfigRecord({}),
            evaluate_fn=lambda round_, arrays: print(time.perf_counter(), flush=True),
        )

    if side == "ours":
        from fl.flower import simulate

        with tempfile.TemporaryDirectory() as out:
            simulate(server, client, workload.nodes, out=out, executor="ray", workers=workers)
    else:
        from flwr.simulation import run_simulation

        torch.set_num_threads(1)
        resources: dict[str, Any] = {
            "init_args": {"num_cpus": workers},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        }
        run_simulation(server, client, workload.nodes, backend_config=resources)


def round_seconds(name: str, side: str, rounds: int, workers: int, limit: float) -> list[float]:
    """Measure the seconds of each round after the first, in a new process that is stopped after `limit` seconds."""
    command = [
        sys.executable,
        "-c",
        f"from fl.flower.bench import run_workload; run_workload({name!r}, {side!r}, {rounds}, {workers})",
    ]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, text=True, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            if process.returncode:
                errors.seek(0)
                raise RuntimeError(f"{name} on {side}: {errors.read()[-2000:]}")
        output.seek(0)
        times = [float(line) for line in output if line.replace(".", "", 1).strip().isdigit()]
    return np.diff(times)[1:].tolist()


def compare(name: str, turns: int, rounds: dict[str, int], workers: int, limit: float) -> dict[str, float | None]:
    """Return the median seconds per round of both sides; None if a side finished no second round in `limit` seconds."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(turns):
        for side in SIDES:
            found[side] += round_seconds(name, side, rounds[side], workers, limit)
    return {side: median(times) if times else None for side, times in found.items()}
