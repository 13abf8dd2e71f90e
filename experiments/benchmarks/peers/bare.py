"""The bare loop: one module, foreach updates, nothing counted, nothing kept, no waiting for other processes."""

from __future__ import annotations

import numpy as np
import torch
from protocol import Contestant, Workload, serve
from torch_layers import Descent, arrays, module, samples


class Bare(Contestant):
    def __init__(self, work: Workload):
        super().__init__(work)
        self.net = module(work)
        self.descent = Descent(self.net, work.lr, work.batch, work.epochs)
        self.x, self.y = samples(work)

    @property
    def facts(self):
        return {"versions": {"torch": torch.__version__}}

    def reset(self) -> None:
        self.net.load_state_dict(module(self.work).state_dict())

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        a, b = self.work.offsets[:-1].tolist(), self.work.offsets[1:].tolist()
        for cohort in cohorts:
            own = [(self.x[a[c] : b[c]], self.y[a[c] : b[c]]) for c in cohort.tolist()]
            self.descent.round(own, shuffle)
        if self.work.device != "cpu":
            torch.cuda.synchronize()

    def weights(self):
        return arrays(self.net)


if __name__ == "__main__":
    serve(lambda work: {"bare": Bare(work)})
