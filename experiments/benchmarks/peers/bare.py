"""The bare loop: one module and foreach updates, without any bookkeeping; processes do not wait for each other."""

from __future__ import annotations

import numpy as np
import torch
from protocol import Contestant, Workload, serve
from torch_layers import Descent, arrays, module, samples

from fl.config.config import resolve
from fl.simulation.build import set_up_run


class Bare(Contestant):
    def __init__(self, work: Workload):
        super().__init__(work)
        self.net = self.new_model()
        self.descent = Descent(self.net, work.lr, work.batch, work.epochs)
        self.x, self.y = samples(work)

    def new_model(self) -> torch.nn.Module:
        """Build the model with its initial weights. A model that is not a stack of layers is built by fl."""
        if self.work.layers:
            return module(self.work)
        return set_up_run(resolve(self.work.config)).module.to(self.work.device)

    @property
    def facts(self):
        return {"versions": {"torch": torch.__version__}}

    def reset(self) -> None:
        self.net.load_state_dict(self.new_model().state_dict())

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        a, b = self.work.offsets[:-1].tolist(), self.work.offsets[1:].tolist()
        for cohort in cohorts:
            self.descent.round([(self.x[a[c] : b[c]], self.y[a[c] : b[c]]) for c in cohort.tolist()], shuffle)
        if self.work.device != "cpu":
            torch.cuda.synchronize()

    def weights(self):
        return arrays(self.net)


if __name__ == "__main__":
    serve(lambda work: {"bare": Bare(work)})
