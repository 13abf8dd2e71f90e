"""Flower's own simulation (its Ray backend): a ClientApp that trains by the bare loop, FedAvg as ServerApp.

Nodes are as many as a cohort has clients, and stand for them: with the whole population as nodes Flower 1.41 looks through all of
them for every message (minutes a round for 100,000). The ServerApp waits for `fl bench` between rounds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import sys
from pathlib import Path

import numpy as np
from protocol import UNKNOWN, Contestant, Line, Workload

MOST = 2_000  # nodes


@functools.cache
def place():
    """What an actor keeps: the workload, its samples, a module and how to train it."""
    from torch_layers import Descent, module, samples

    work = Workload.read(Path(os.environ["FL_BENCH_FOLDER"]), 0, 1, 0)
    net = module(work)
    return work, *samples(work), net, Descent(net, work.lr, work.batch, work.epochs)


def train(msg, context):
    """A node's part: of the round's cohort, the client in its place; beyond a small cohort's end, nothing."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    work, x, y, net, descent = place()
    config = msg.content["config"]
    if config["check"]:
        cohort = work.check[config["first"] + config["server-round"] - 1]
    else:
        (cohort,) = work.rounds(*(config["first"] + config["server-round"] + i for i in (-1, 0)))
    at, n, arrays = context.node_config["partition-id"], 0, msg.content["arrays"]
    if at < len(cohort):
        own = slice(work.offsets[cohort[at]], work.offsets[cohort[at] + 1])
        net.load_state_dict(arrays.to_torch_state_dict())
        descent.client(x[own], y[own], not config["check"])
        arrays, n = ArrayRecord(net.state_dict()), len(x[own])
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": n})}), reply_to=msg)


class Flower(Contestant):
    divides = True

    def __init__(self, work: Workload, grid):
        super().__init__(work)
        self.grid, self.nodes = grid, max(map(len, work.cohorts))
        self.reset()

    @property
    def facts(self):
        import torch

        return {"versions": {"flwr": importlib.metadata.version("flwr"), "torch": torch.__version__}, "nodes": self.nodes}

    def reset(self) -> None:
        from flwr.app import ArrayRecord
        from torch_layers import module

        self.arrays = ArrayRecord(module(self.work).state_dict())

    def rounds(self, first: int, count: int, check: bool) -> None:
        from flwr.app import ConfigRecord
        from flwr.serverapp.strategy import FedAvg

        strategy = FedAvg(fraction_train=1.0, min_available_nodes=self.nodes, fraction_evaluate=0.0)
        told = ConfigRecord({"first": first, "check": check})
        result = strategy.start(self.grid, self.arrays, num_rounds=count, timeout=36_000, train_config=told)
        self.arrays = result.arrays

    def check(self):
        self.reset()
        self.rounds(0, 2, True)
        found = {name: tensor.numpy() for name, tensor in self.arrays.to_torch_state_dict().items()}
        self.reset()
        return found

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        self.rounds(self.at, len(cohorts), False)

    def play(self, a: int, b: int):
        self.at = a
        return super().play(a, b)


def main() -> None:
    line = Line()
    try:
        from flwr.clientapp import ClientApp
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation
    except ImportError as why:
        line.tell({"unavailable": str(why)})
        return
    os.environ["FL_BENCH_FOLDER"] = sys.argv[1]
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = Workload.read(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
    nodes = max(map(len, work.cohorts))
    if work.layers is None or nodes > MOST:
        line.tell({"unavailable": f"{nodes} nodes, of which {MOST} take some 10 s a round" if work.layers else UNKNOWN})
        return
    client, server = ClientApp(), ServerApp()
    client.train()(train)

    @server.main()
    def serve(grid, context) -> None:
        flower = Flower(work, grid)
        line.tell({"ready": {"flower": flower.facts}})
        line.answer({"flower": flower})

    resources = {"init_args": {"num_cpus": work.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, nodes, backend_config=resources)


if __name__ == "__main__":
    import flower  # actors find `train` by its module's name

    flower.main()
