"""PeFLL: an embedding network describes a client's data, and a hypernetwork makes the client's model from that.

    round, M clients                                                                          floats per client
    1  eta_v goes down;    client: v_i = mean over a batch of v(x, onehot y; eta_v);  v_i comes up   d_v, l
    2  theta_i = h(std(v_i); eta_h) goes down;    client: local steps -> theta'_i;
       theta'_i - theta_i comes up                                                                   d, d
    3  the gradient of v_i goes down, by the chain rule from theta_i - theta'_i through h;
       client: through v with the same batch and eta_v;    the gradient of eta_v comes up            l, d_v
    4  mean of the gradients of (eta_h, eta_v), clipped together, one step of the server's optimiser

Scott, Zakerinia, Lampert 2024, arXiv:2306.05515.  theta_i - theta'_i has the local learning rate in it and takes the
place of a gradient, without division.  Traffic per client and round: 4 (d_v + d + l) bytes each way; eta_h never
travels.  A client that has never trained gets its model by exchange 1 and the first half of 2: evaluations do this.
A client dropped in exchange 2 is left out of exchange 3 and of both means; one dropped in exchange 3 of eta_v's mean.
std(v) = (v - mean v) / (std v + 1e-6) over the elements of v.  clients/* measures the generated models, eval/* the
model of the descriptor 0, which is also saved and which a client without samples gets.
Differs from the release: the descriptor is a mean over the batch, and standardised by itself, not by the first client's
first descriptor; outputs of absent classes are not set to 0.  Differs from the paper: the first models are near the
run's first model, because the heads start small.
Equals FedAvg: no setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    MLP,
    Architecture,
    Broadcast,
    EvaluateModel,
    EvaluationGenerator,
    Exchange,
    ExchangeResult,
    Params,
    PseudoGradient,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Stack,
    Tree,
    WeightedMean,
    checks,
    join,
    register,
    seeded_generators,
    zeros_like,
)

from .hypernetwork import Hypernetwork, PullBack, State


class LabelledInputs(nn.Module):
    """The embedding network: outputs (B, l) from samples x and their labels y.

    Args:
        embedding: the network of the joined inputs.
        classes: number of classes C.
        planes: True: the labels are C more planes of images, constant in each image (B, c + C, h, w). False: samples
            are flattened, and their one-hot labels stand behind them, (B, n + C).
    """

    def __init__(self, embedding: nn.Module, classes: int, planes: bool):
        super().__init__()
        self.embedding, self.classes, self.planes = embedding, classes, planes

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the outputs for samples x (B, ...) with labels y (B,)."""
        labels = F.one_hot(y, self.classes).to(x.dtype)
        if not self.planes:
            return self.embedding(torch.cat([x.flatten(1), labels], 1))
        return self.embedding(torch.cat([x, labels[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1))


def of_client(client: int, shared: Mapping[str, Any], state: Tree) -> Tensor:
    """Return the gradient of a client's descriptor, (l,)."""
    return shared["gradients"][client]


def descriptors_of(told: ExchangeResult) -> dict[int, Tensor]:
    """Return the descriptors of the clients that have samples, by client."""
    stacked = told.value["descriptor"] if told.value else []
    return {meta.client: v for v, meta in stacked if meta.num_examples}


@register("strategy", "pefll")
@dataclass(frozen=True, kw_only=True)
class PeFLL(Hypernetwork):
    """Make each client's model from a description of its data.

    Args:
        embedding: architecture of the embedding network, any model. Its outputs are the descriptor.
        labels: how labels enter the embedding network: `vector` flattens a sample and appends its one-hot label;
            `planes` adds a constant plane for each class to an image, for convolutions (the paper's).
        standardise: `each` standardises each descriptor by its own mean and deviation; `none` does not.
    """

    embedding: Architecture = field(default_factory=lambda: MLP(hidden=(100, 100)))
    labels: Literal["vector", "planes"] = "vector"
    standardise: Literal["each", "none"] = "each"
    server_optimiser: ServerOptimiser = field(default_factory=lambda: PseudoGradient(lr=2e-4))

    client: ClassVar[str] = "pefll"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("vector", "planes"), labels=self.labels)
        checks.one_of(("each", "none"), standardise=self.standardise)

    def network(self, ctx: ServerContext) -> LabelledInputs:
        """Return the embedding network; its weights are the first ones."""
        shape, classes = ctx.sample_shape, ctx.outputs
        if self.labels == "planes" and len(shape) != 3:
            raise ValueError(f"labels: planes are for images (channels, height, width), x is {shape}; use vector")
        joined = (shape[0] + classes, *shape[1:]) if self.labels == "planes" else (math.prod(shape) + classes,)
        with seeded_generators(ctx.generator("embedding").initial_seed()):
            embedding = self._embedding(joined, self.length(ctx))
        if buffers := [name for name, _ in embedding.named_buffers()]:
            raise ValueError(f"embedding: {buffers} are no parameters, so no message holds them; use layers without")
        return LabelledInputs(embedding, classes, self.labels == "planes")

    def _embedding(self, shape: tuple[int, ...], length: int) -> nn.Module:
        try:
            return self.embedding.build(shape, length)
        except ValueError as error:
            raise ValueError(
                f"embedding: it does not take inputs of shape {shape}, which labels: {self.labels} makes ({error}); "
                "use the other value of strategy.labels, or another network, such as {name: mlp, hidden: [100]}"
            ) from error

    def first_networks(self, model: Params, ctx: ServerContext) -> Params:
        return join(super().first_networks(model, ctx), Params.of(dict(self.network(ctx).named_parameters())))

    def described(self, state: State, ctx: ServerContext, cohort: Any = None, free: bool = False) -> Exchange:
        """Return the exchange that asks clients for their descriptors."""
        sent = {"embedding": state.networks.select(["embedding.*"])}
        return Exchange(sent, {"descriptor": Stack()}, "describe", cohort, skeleton=self.network(ctx), free=free)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        descriptors = descriptors_of((yield self.described(state, ctx)))
        standardise = self.standardise == "each"
        models, pull = self.generated(state, descriptors, standardise), PullBack(state.hyper, descriptors, standardise)
        trained = yield Exchange(models, {"model": pull}, cohort=[*descriptors])
        if not trained.value:  # no client with samples answered
            return state, {}
        pulled = trained.value["model"]
        gradients = Broadcast({"gradients": pulled.descriptors}, rows={"gradient": of_client}, hidden=("gradients",))
        mean, cohort = {"embedding": WeightedMean("uniform")}, [*pulled.descriptors]
        passed = yield Exchange(gradients, mean, "backward", cohort, skeleton=self.network(ctx))
        embedding = passed.value["embedding"] if passed.value else zeros_like(state.networks.select(["embedding.*"]))
        return self.moved(state, join(pulled.hyper / len(cohort), embedding))

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        descriptors = {int(client): torch.zeros(state.length) for client in ctx.evaluated}
        if descriptors:
            descriptors |= descriptors_of((yield self.described(state, ctx, ctx.evaluated, free=True)))
        generated = self.generated(state, descriptors, self.standardise == "each")
        return (yield EvaluateModel(generated.with_model(self.model(state))))
