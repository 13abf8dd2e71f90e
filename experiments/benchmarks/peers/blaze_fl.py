"""BlazeFL's FedAvg in its fastest mode here: sequential, threads, or processes with shared memory.

A client's number is its position in the cohort, because BlazeFL keeps a random state per number. Batches are slices of
tensors in memory instead of a DataLoader's, and workers reuse their module; BlazeFL leaves both choices to its user.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from protocol import Contestant, Workload, serve

os.environ["TQDM_DISABLE"] = "1"
SHARED: dict = {}  # visible in this process and in the processes forked from it
LOCAL = threading.local()


class ReusedModel:
    """BlazeFL's ModelSelector: each thread or process reuses one module and overwrites its weights for each client."""

    def select_model(self, name: str):
        from torch_layers import module

        if getattr(LOCAL, "owner", None) != os.getpid():
            LOCAL.owner, LOCAL.net = os.getpid(), module(SHARED["work"])
        return LOCAL.net


class Batches:
    """A client's mini-batches; replaces a DataLoader."""

    dataset = None

    def __init__(self, x, y, batch: int, generator):
        self.x, self.y, self.batch, self.generator = x, y, batch, generator

    def __iter__(self):
        import torch

        n = len(self.x)
        order = torch.randperm(n, generator=self.generator) if SHARED["shuffle"] else torch.arange(n)
        for at in order.split(self.batch):
            yield self.x[at], self.y[at]


class Clients:
    """BlazeFL's PartitionedDataset: the clients of the current cohort."""

    def get_dataloader(self, type_, cid, batch_size, generator=None):
        work, client = SHARED["work"], SHARED["cohort"][cid]
        rows = slice(work.offsets[client], work.offsets[client + 1])
        return Batches(SHARED["x"][rows], SHARED["y"][rows], batch_size, generator)

    def set_dataset(self, type_, cid, dataset) -> None: ...


def start(work: Workload) -> dict[str, Contestant]:
    import importlib.metadata

    import torch
    from blazefl.contrib import fedavg
    from blazefl.core import IPCMode
    from torch_layers import arrays, module, samples

    x, y = samples(work)
    SHARED.update(work=work, x=x, y=y, shuffle=True)
    size = max(map(len, work.cohorts))
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    states = Path(tempfile.mkdtemp(dir=memory))
    atexit.register(shutil.rmtree, states, ignore_errors=True)
    common = {"model_selector": ReusedModel(), "model_name": "", "dataset": Clients(), "device": work.device}
    common |= {"num_clients": size, "epochs": work.epochs, "batch_size": work.batch, "lr": work.lr, "seed": 0}
    pool = {"share_dir": states / "share", "state_dir": states / "state", "ipc_mode": IPCMode.SHARED_MEMORY}

    def processes():
        return fedavg.FedAvgProcessPoolClientTrainer(**common, **pool, num_parallels=work.workers)

    def threads():
        return fedavg.FedAvgThreadPoolClientTrainer(**common, num_parallels=work.workers)

    modes = {
        "sequential": lambda: fedavg.FedAvgBaseClientTrainer(**common),
        "threads": threads,
        "processes": processes,
    }

    class Server(fedavg.FedAvgBaseServerHandler):
        def sample_clients(self):
            return list(range(len(SHARED["cohort"])))

    class Blaze(Contestant):
        def __init__(self):
            super().__init__(work)
            keys = ("model_selector", "model_name", "dataset", "device", "batch_size", "seed")
            arguments = {key: common[key] for key in keys}
            self.server = Server(**arguments, global_round=10**9, num_clients=size, sample_ratio=1.0)
            self.server.model = module(work)
            self.seconds, self.failed = {}, {}
            for mode, trainer in modes.items():
                self.trainer = trainer()
                try:
                    self.train(work.cohorts[:1], True)
                    start = time.perf_counter()
                    self.train(work.cohorts[:1], True)
                except (OSError, RuntimeError) as error:  # shared memory of many clients needs many open files
                    self.failed[mode] = str(error)
                else:
                    self.seconds[mode] = round(time.perf_counter() - start, 3)
            self.mode = min(self.seconds, key=self.seconds.get)
            self.trainer = modes[self.mode]()
            self.reset()

        @property
        def facts(self):
            versions = {"blazefl": importlib.metadata.version("blazefl"), "torch": torch.__version__}
            return {"versions": versions, "mode": self.mode, "seconds per round": self.seconds, "failed": self.failed}

        def reset(self) -> None:
            self.server.model.load_state_dict(module(work).state_dict())

        def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
            SHARED["shuffle"] = shuffle
            for cohort in cohorts:
                SHARED["cohort"] = cohort
                self.server.num_clients_per_round = len(cohort)
                self.trainer.local_process(self.server.downlink_package(), self.server.sample_clients())
                for package in self.trainer.uplink_package():
                    self.server.load(package)

        def weights(self):
            return arrays(self.server.model)

    return {"blazefl": Blaze()}


if __name__ == "__main__":
    serve(start)
