"""ProtoFL: clients of one class each learn features that a teacher of the server finds different.

    once       teacher T <- classification of the server's public rows;    q = T(x) / |T(x)|
               e_m = mean of q over public class m, divided by its norm;    client k gets e_a(k), all a(k) different
    round      (f, g) <- (f, g) + mean_k (change of client k)               (`clients/protofl.py`: 1 - cos(g(f(x)), e))
    then       each client trains a private flow on f(x), 0 bytes           (`clients/flow.py`)

Assignment of prototypes: `greedy` sends T to the clients; each answers with its mean feature once, and the pair with
the largest cosine is assigned first, then the largest of the others. `random` sends no T. With `common`, all clients
have one random prototype.
T is g(f(x)) in the run's architecture with weights of its own, trained with a linear classifier on top. Client data
never reach it. BatchNorm is refused: clients of one class have batches of one class.
Bytes, with p = 4 (|f| + |g|) for float32: p down and up per client and round; before round 0, 4 D down to each client,
and with `greedy` p down (T) and 4 D up. A teacher that devices have already would save the p.
Evaluation: `partition: one_class`, `shift: own_or_other`, `task: one_class`, and
`evaluation: {stage: adapted, adapt: flow, every: ROUNDS}`.
Kim, Kwak, Jung, Shin, Kim, Kim 2023, arXiv:2307.12450. The paper has no public code: this is a reconstruction from its
abstract. Its teacher is an off-the-shelf model.
Equals FedAvg: no setting.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Adam,
    Broadcast,
    Classification,
    Exchange,
    FedAvgEquivalent,
    LocalTraining,
    Params,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Stack,
    checks,
    random,
    register,
    seeded_generators,
    train_on_rows,
)

from .fedavg import FedAvg

ASSIGNMENTS = ("greedy", "random", "common")
BLOCK = 1024  # public rows of a forward pass


class Teacher(nn.Module):
    """The encoder g(f(x)), and a linear classifier on top of it.

    Args:
        encoder: the run's module; with `project=True` it returns features (B, D).
        width: number of features D.
        classes: number of public classes.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int):
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x, project=True))


def new_teacher(module: nn.Module, width: int, classes: int, word: int) -> Teacher:
    """Return a teacher with first weights drawn from a word: those of all layers that can redraw theirs."""
    teacher = Teacher(copy.deepcopy(module), width, classes)
    with seeded_generators(word):
        for layer in teacher.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return teacher.requires_grad_()


def class_prototypes(features: Tensor, y: Tensor) -> Tensor:
    """Return the mean of the normalised features (n, D) of each class, divided by its norm, (M, D).

    >>> class_prototypes(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 5.0]]), torch.tensor([4, 1, 1])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    unit = F.normalize(features, dim=-1)
    return F.normalize(torch.stack([unit[y == c].mean(0) for c in y.unique()]), dim=-1)


def taught(
    module: nn.Module, model: Params, rows: Mapping[str, Tensor], trainer: LocalTraining, seed: int
) -> tuple[Params, Tensor]:
    """Train the teacher on public rows; return its tensors by the names of the run's model, and its prototypes (M, D).

    Args:
        module: the run's module.
        model: the run's first model; tensors that no layer redraws start from it.
        rows: public rows, x and y.
        trainer: steps of the training.
        seed: seed of the run.
    """
    x, y = rows["x"], torch.unique(rows["y"], return_inverse=True)[1]
    width = len(model["projection.bias"])
    module = copy.deepcopy(module)
    module.load_state_dict(dict(model), strict=False)
    teacher = new_teacher(module, width, int(y.max()) + 1, int(random.hash64(seed, "teacher")))
    first = Params.of({name: p.detach().clone() for name, p in teacher.named_parameters()})
    arguments = (first, Params.of({}), {"x": x, "y": y}, Classification(), seed, 0, 1)
    trained = train_on_rows(trainer, teacher, *arguments)
    found = Params.of({name: trained[f"encoder.{name}"] for name in model})
    teacher.load_state_dict(dict(trained), strict=False)
    with torch.no_grad():
        features = torch.cat([teacher.eval().encoder(part, project=True) for part in x.split(BLOCK)])
    return found, class_prototypes(features, y)


def greedy(cosines: Tensor) -> Tensor:
    """Return a different column for each row of cosines (N, M), M >= N: the largest cosine first.

    >>> greedy(torch.tensor([[0.9, 0.8, 0.1], [1.0, 0.2, 0.3]])).tolist()  # 1.0, then 0.8
    [1, 0]
    """
    left, columns = cosines.clone(), torch.zeros(len(cosines), dtype=torch.int64)
    for _ in range(len(cosines)):
        row, column = divmod(int(left.argmax()), left.shape[1])
        columns[row] = column
        left[row], left[:, column] = -torch.inf, -torch.inf
    return columns


@dataclass(frozen=True)
class Assigned:
    """The prototype that a client receives.

    Args:
        prototypes: number of each client's prototype, (N,).
    """

    prototypes: Tensor

    def __call__(self, client: int, state: Any) -> Tensor:
        return self.prototypes[client : client + 1]


@register("strategy", "protofl")
@dataclass(frozen=True, kw_only=True)
class ProtoFL(FedAvg):
    """Prototypes of a public teacher for one-class clients, and FedAvg of the features that they distil.

    Args:
        assign: prototypes of clients: `greedy` (nearest to their data, all different), `random` (all different, no
            teacher on the device) or `common` (one random prototype for all).
        start: what training starts from: `model` (the run's first model) or `teacher`; with client.lr 0, the latter
            evaluates the teacher's features.
        teacher_epochs: epochs of the teacher on the server's rows, positive.
        teacher_batch: rows of a step of the teacher, positive.
        teacher_lr: learning rate of the teacher, for Adam, positive.
    """

    assign: Literal["greedy", "random", "common"] = "greedy"
    start: Literal["model", "teacher"] = "model"
    teacher_epochs: int = 20
    teacher_batch: int = 64
    teacher_lr: float = 1e-3

    client: ClassVar[str] = "protofl"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
    example_config: ClassVar[Mapping[str, Any]] = {
        "data": {
            "name": "public",
            "of": {"name": "noise", "shape": [6], "classes": 4, "clients": 8},
            "public": {"name": "noise", "shape": [6], "classes": 12, "clients": 12, "seed": 1},
        },
        "partition": {"name": "one_class", "clients": 8},
        "shift": "own_or_other",
        "splits.val": 0.0,
        "task": {"name": "one_class", "features": 4},
        "strategy.teacher_epochs": 2,
        "evaluation": {
            "stage": ["received", "adapted"],
            "adapt": {"name": "flow", "epochs": 1, "couplings": 2, "hidden": [4]},
        },
    }

    def __post_init__(self) -> None:
        checks.one_of(ASSIGNMENTS, assign=self.assign)
        checks.one_of(("model", "teacher"), start=self.start)
        checks.positive(
            teacher_epochs=self.teacher_epochs, teacher_batch=self.teacher_batch, teacher_lr=self.teacher_lr
        )

    def init(self, model: Params, ctx: ServerContext) -> Any:
        if "projection.bias" not in model:
            raise ValueError(
                "name: protofl trains the projection that client: protofl adds to the model; use that client"
            )
        if len(ctx.frozen):
            raise ValueError("name: protofl trains the whole model; leave out model.freeze and model.adapter")
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in ctx.module.modules()):
            raise ValueError(
                "name: protofl has batches of one class, whose statistics BatchNorm would use; take a model with "
                "GroupNorm, such as model: cnn_group or resnet8"
            )
        if "y" not in ctx.server:
            raise ValueError(
                "name: protofl trains a teacher on public rows with classes, and the server has none; use data: public"
            )
        if self.assign != "common" and (m := len(ctx.server["y"].unique())) < ctx.population:
            raise ValueError(
                f"assign: {self.assign} gives each of {ctx.population} clients its own prototype, and the server has "
                f"rows of {m} classes; use more public classes, or assign: common"
            )
        return super().init(model, ctx)

    def setup(self, state: Any, ctx: ServerContext) -> RoundGenerator:
        trainer = LocalTraining(
            epochs=self.teacher_epochs, batch=self.teacher_batch, lr=self.teacher_lr, optimiser=Adam()
        )
        about = (ctx.module, state.model, dict(ctx.server), trainer, ctx.seed)
        teacher, prototypes = yield ServerWork(taught, about)
        everyone = np.arange(ctx.population)
        if self.assign == "greedy":
            outcome = yield Exchange({"model": teacher}, {"feature": Stack()}, work="describe", cohort=everyone)
            features = torch.zeros(len(everyone), prototypes.shape[1])
            for feature, meta in outcome.value["feature"] if outcome.value else ():
                features[int(meta.client)] = feature
            assigned = greedy(F.normalize(features, dim=-1) @ prototypes.T)
        else:
            order = torch.randperm(len(prototypes), generator=ctx.generator("prototypes"))
            assigned = order[:1].expand(len(everyone)) if self.assign == "common" else order[: len(everyone)]
        mine = {"prototype": ("prototypes", Assigned(assigned))}
        broadcast = Broadcast({"prototypes": prototypes}, select=mine, hidden=("prototypes",))
        yield Exchange(broadcast, {}, work="keep", cohort=everyone)
        state = replace(state, model=teacher) if self.start == "teacher" else state
        return state, {"prototypes": len(prototypes)}
