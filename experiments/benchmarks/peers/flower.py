"""Flower's own simulation (its Ray backend): a ClientApp that trains by the bare loop, FedAvg as ServerApp.

Nodes are as many as there are clients up to `NODES`, as a user would have it, else as many as a cohort has: Flower 1.41 looks through
all of them for every message (minutes a round for 100,000). A message tells its node which client it is. The ServerApp waits for
`fl bench` between rounds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import sys
from pathlib import Path

import numpy as np
from protocol import UNKNOWN, Channel, Contestant, Workload

NODES = 4_000
COHORT = 2_000  # clients in a round, which take some 10 s


@functools.cache
def place():
    """What an actor keeps: the workload, its samples, a module and how to train it."""
    from torch_layers import Descent, module, samples

    work = Workload.read(Path(os.environ["FL_BENCH_FOLDER"]), 0, 1, 0)
    net = module(work)
    return work, *samples(work), net, Descent(net, work.lr, work.batch, work.epochs)


def train(msg, context):
    """A node's part."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    work, x, y, net, descent = place()
    config = msg.content["config"]
    own = slice(work.offsets[config["client"]], work.offsets[config["client"] + 1])
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    descent.client(x[own], y[own], config["shuffle"])
    answer = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(x[own])})}
    return Message(RecordDict(answer), reply_to=msg)


def strategy(cohorts: list[np.ndarray], nodes: int, shuffle: bool):
    """FedAvg on given cohorts."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.serverapp.strategy import FedAvg

    class TrainingInputs(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            cohort = cohorts[server_round - 1]
            self.min_train_nodes = len(cohort)
            for client, message in zip(cohort, super().configure_train(server_round, arrays, config, grid)):
                told = ConfigRecord({"client": int(client), "shuffle": shuffle})
                content = RecordDict({"arrays": arrays, "config": told})
                of = message.metadata
                yield Message(content=content, message_type=of.message_type, dst_node_id=of.dst_node_id)

    return TrainingInputs(fraction_train=0.5 / nodes, min_available_nodes=nodes, fraction_evaluate=0.0)


class Flower(Contestant):
    divides = True

    def __init__(self, work: Workload, grid, nodes: int):
        super().__init__(work)
        self.grid, self.nodes = grid, nodes
        self.reset()

    @property
    def facts(self):
        import torch

        return {
            "versions": {"flwr": importlib.metadata.version("flwr"), "torch": torch.__version__},
            "nodes": self.nodes,
        }

    def reset(self) -> None:
        from flwr.app import ArrayRecord
        from torch_layers import module

        self.arrays = ArrayRecord(module(self.work).state_dict())

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        fedavg = strategy(cohorts, self.nodes, shuffle)
        self.arrays = fedavg.start(self.grid, self.arrays, num_rounds=len(cohorts), timeout=36_000).arrays

    def weights(self):
        return {name: tensor.numpy() for name, tensor in self.arrays.to_torch_state_dict().items()}


def main() -> None:
    line = Channel()
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
    cohort, population = max(map(len, work.cohorts)), len(work.sizes)
    if work.layers is None or cohort > COHORT:
        line.tell(
            {"unavailable": f"{cohort} clients a round, of which {COHORT} take some 10 s" if work.layers else UNKNOWN}
        )
        return
    nodes = population if population <= NODES else cohort
    client, server = ClientApp(), ServerApp()
    client.train()(train)

    @server.main()
    def serve(grid, context) -> None:
        flower = Flower(work, grid, nodes)
        line.tell({"ready": {"flower": flower.facts}})
        line.answer({"flower": flower})

    resources = {"init_args": {"num_cpus": work.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, nodes, backend_config=resources)


if __name__ == "__main__":
    import flower  # actors find `train` by its module's name

    flower.main()
