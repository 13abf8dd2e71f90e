"""Toy methods for the interfaces of the model.

`Pulled` adds a projection head and compares projections under three models; `Balanced` shifts the outputs by the
logarithms of the client's class counts; in `Wide` the added part takes part in the outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

import fl
from fl import Extended, LocalTraining, class_counts, last_layer
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.build import set_up_run

FEATURES, HIDDEN, CLASSES, WIDTH = 6, 8, 3, 4
BASE = FEATURES * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES  # parameters of the MLP
ADDED = HIDDEN * WIDTH + WIDTH
CONFIG: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [FEATURES], "classes": CLASSES, "clients": 6, "samples": 9},
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0, "min_size": 2},
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "cohort": {"size": 6},
    "strategy": "fedavg",
    "evaluation": {"server": False},
    "execution": {"executor": "serial", "plan": "loop"},
}
STEPS = {"epochs": 2, "batch": 4, "lr": 0.1}


class WithProjection(Extended):
    def forward(self, x, project=False):
        outputs, features = self.with_inputs(self.last, x)
        return (outputs, self.added(features)) if project else outputs


@dataclass(frozen=True, kw_only=True)
class Pulled(LocalTraining):
    """Projections are pulled to those of the received model and pushed away from those of the client's last one."""

    def extend(self, module, sample_shape, outputs):
        hidden = module.get_submodule(last_layer(module)).in_features
        return WithProjection(module, "projection", nn.Linear(hidden, WIDTH))

    def first_state(self, inputs):
        return inputs.received["model"]

    def objective(self, net, batch, at, task):
        x = batch["x"]
        outputs, z = net(x, project=True)
        others = (at.under(model, x, project=True)[1] for model in (at.received["model"], at.state))
        near, away = (F.cosine_similarity(z, other, -1) for other in others)
        return task.loss(outputs, batch) + F.softplus(2 * (away - near))

    def finish(self, end):
        return {"model": end.delta}, end.params


class Balanced(LocalTraining):
    """Balanced softmax."""

    def facts(self, view, task, outputs):
        return class_counts(view, outputs)

    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]) + at.facts.log(), batch)


class Wide(LocalTraining):
    """The added part takes part in `net(x)`; the objective is the task's."""

    def extend(self, module, sample_shape, outputs):
        class Bent(Extended):
            def forward(self, x):
                return self.with_layer(self.last, lambda last, h: last(h + self.added(h)), x)

        return Bent(module, "bend", nn.Linear(HIDDEN, HIDDEN))


def config(client=Pulled, **changes):
    own = {key.removeprefix("client."): changes.pop(key) for key in list(changes) if key.startswith("client.")}
    return read(CONFIG | {"client": client(**STEPS | own)}, changes)


def set_up(client=Pulled, **changes):
    return set_up_run(resolve(config(client, **changes)))


def trained(tmp_path, client, name, **changes):
    return fl.run(config(client, **changes), out=tmp_path / name)
