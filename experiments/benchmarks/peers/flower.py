"""Flower's own simulation with its Ray backend: the ClientApp is the bare loop, the ServerApp runs Flower's FedAvg.

There is one node per client up to `NODES` clients, as a user would choose; beyond that, one node per client of a
cohort, because Flower 1.41 searches all nodes for each message (minutes per round with 100,000 nodes). A message says
which client its node plays. The ServerApp waits for `fl bench` between rounds.
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
COHORT = 2_000  # largest cohort to measure; its rounds take about 10 s


@functools.cache
def actor_state():
    """Load what an actor keeps: the workload, its samples, a module, and its local training."""
    from torch_layers import Descent, module, samples

    work = Workload.read(Path(os.environ["FL_BENCH_FOLDER"]), 0, 1, 0)
    net = module(work)
    return work, *samples(work), net, Descent(net, work.lr, work.batch, work.epochs)


def train(msg, context):
    """Train the client that the message names, and return its weights and number of samples."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    work, x, y, net, descent = actor_state()
    config = msg.content["config"]
    rows = slice(work.offsets[config["client"]], work.offsets[config["client"] + 1])
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    descent.client(x[rows], y[rows], config["shuffle"])
    answer = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": len(x[rows])})}
    return Message(RecordDict(answer), reply_to=msg)


def strategy(cohorts: list[np.ndarray], nodes: int, shuffle: bool):
    """Return Flower's FedAvg on the given cohorts, one per round."""
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.serverapp.strategy import FedAvg

    class FixedCohorts(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            cohort = cohorts[server_round - 1]
            self.min_train_nodes = len(cohort)
            for client, message in zip(cohort, super().configure_train(server_round, arrays, config, grid)):
                client_config = ConfigRecord({"client": int(client), "shuffle": shuffle})
                content = RecordDict({"arrays": arrays, "config": client_config})
                header = message.metadata
                yield Message(content=content, message_type=header.message_type, dst_node_id=header.dst_node_id)

    return FixedCohorts(fraction_train=0.5 / nodes, min_available_nodes=nodes, fraction_evaluate=0.0)


class Flower(Contestant):
    splits_cohorts = True

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
    channel = Channel()
    try:
        from flwr.clientapp import ClientApp
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation
    except ImportError as error:
        channel.send({"unavailable": str(error)})
        return
    os.environ["FL_BENCH_FOLDER"] = sys.argv[1]
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = Workload.read(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
    cohort, population = max(map(len, work.cohorts)), len(work.sizes)
    if work.layers is None or cohort > COHORT:
        reason = f"{cohort} clients per round, more than {COHORT}, which take about 10 s" if work.layers else UNKNOWN
        channel.send({"unavailable": reason})
        return
    nodes = population if population <= NODES else cohort
    client, server = ClientApp(), ServerApp()
    client.train()(train)

    @server.main()
    def serve(grid, context) -> None:
        flower = Flower(work, grid, nodes)
        channel.send({"ready": {"flower": flower.facts}})
        channel.answer({"flower": flower})

    resources = {"init_args": {"num_cpus": work.workers}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, nodes, backend_config=resources)


if __name__ == "__main__":
    import flower  # actors find `train` by the name of its module

    flower.main()
