"""pfl-research's FederatedAveraging on its SimulatedBackend.

Several processes split each cohort: clients are dealt out in order of size, the largest first, as pfl-research's own
sampler does. The processes all-reduce the sum of the updates (torch.distributed with gloo, or NCCL on GPUs).
"""

from __future__ import annotations

import os
import sys
from functools import partial

import numpy as np
from protocol import Contestant, Workload, serve

if int(sys.argv[3]) > 1:
    os.environ["PFL_WORKER_RANK"] = sys.argv[2]
    os.environ["PFL_WORKER_ADDRESSES"] = ",".join([f"localhost:{sys.argv[4]}"] * int(sys.argv[3]))


def start(work: Workload) -> dict[str, Contestant]:
    os.environ["PFL_PYTORCH_DEVICE"] = work.device
    import importlib.metadata

    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDatasetBase
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.model.pytorch import PyTorchModel
    from torch_layers import arrays, module, samples

    class Net(torch.nn.Module):
        """The model with the methods that PyTorchModel needs."""

        def __init__(self):
            super().__init__()
            self.layers = module(work)

        def loss(self, x, y):
            return torch.nn.functional.cross_entropy(self.layers(x), y)

        def metrics(self, x, y):
            return {}

    class Cohorts(FederatedDatasetBase):
        """Federated data set with fixed cohorts; pfl-research's samplers would draw others."""

        def __init__(self):
            super().__init__()
            self.x, self.y = samples(work)

        def set_cohorts(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
            rank, world = pytorch_ops.distributed.global_rank, pytorch_ops.distributed.world_size
            self.shuffle = shuffle
            sorted_ = [cohort[np.argsort(-work.sizes[cohort], kind="stable")] for cohort in cohorts]
            self.shares = iter([cohort[rank::world] for cohort in sorted_])

        def get_cohort(self, cohort_size: int):
            for client in next(self.shares).tolist():
                rows = slice(work.offsets[client], work.offsets[client + 1])
                x, y = self.x[rows], self.y[rows]
                if self.shuffle:
                    order = torch.randperm(len(x))
                    x, y = x[order], y[order]
                yield Dataset([x, y], user_id=str(client)), 0

        def __next__(self):
            raise NotImplementedError

    class Pfl(Contestant):
        splits_cohorts = True

        def __init__(self):
            super().__init__(work)
            self.cohorts, self.net = Cohorts(), Net()
            self.backend = SimulatedBackend(self.cohorts, self.cohorts, postprocessors=[WeightByDatapoints()])
            central = torch.optim.SGD(self.net.parameters(), lr=1.0)
            self.model = PyTorchModel(self.net, partial(torch.optim.SGD, fused=True), central)
            self.algorithm, self.rounds = FederatedAveraging(), 0
            self.hyper = NNTrainHyperParams(
                local_num_epochs=work.epochs, local_learning_rate=work.lr, local_batch_size=work.batch
            )

        @property
        def facts(self):
            return {"versions": {"pfl": importlib.metadata.version("pfl"), "torch": torch.__version__}}

        def reset(self) -> None:
            self.net.layers.load_state_dict(module(work).state_dict())

        def train(self, cohorts, shuffle) -> None:
            self.cohorts.set_cohorts(cohorts, shuffle)
            self.rounds += len(cohorts)  # the algorithm counts its rounds and stops at this number
            params = NNAlgorithmParams(
                central_num_iterations=self.rounds,
                evaluation_frequency=10**9,
                train_cohort_size=len(cohorts[0]),
                val_cohort_size=None,
            )
            self.algorithm.run(params, self.backend, self.model, self.hyper, send_metrics_to_platform=False)

        def weights(self):
            return arrays(self.net.layers)

    return {"pfl": Pfl()}


if __name__ == "__main__":
    serve(start)
