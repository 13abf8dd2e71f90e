"""Fed-MP: gates of clients are averaged by how near their classes are to those that a new user asks for.

    s_k = max(0, mean_ij <q_i, t'_kj>),    gate <- sum_k s_k gate_k / sum_k s_k        (`clients/fed_mp.py`)
    prediction: a stream of batches;  P_c = q_c + u_c once every class has been predicted surely, else q_c;
                class = argmax_c scale <v', P_c>;  after each batch, samples with entropy < rho log G enter u_c

q_i are the descriptions of the G query classes: those of the server's test set, which no client has.  t'_kj are the
client's own descriptions.  u_c is the mean of the v' that were predicted as c and admitted.
Zeng, Yue, Wang 2024, arXiv:2404.01232.  Traffic per client and round: |gate| + C_k D floats up, |gate| down.
Metrics: adapted/accuracy (descriptions alone), adapted/prototypes (the stream), and the same for the encoder without a
gate, encoder/accuracy and encoder/prototypes; weight/max, the largest s_k / sum s.
Differs from the authors' program (weights: released): similarities are divided by the client's number of classes, and
negative ones count 0; an entropy with p = 0 is finite, so the surest samples are admitted; classes are compared, not
strings.  If all s_k are 0, all clients count the same.
Equals FedAvg: no setting; the weights `uniform` are FedAvg's of the gate.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Broadcast,
    EvaluationGenerator,
    Metrics,
    Params,
    ServerContext,
    ServerWork,
    Stack,
    Strategy,
    checks,
    first_rows,
    random,
    register,
    weighted_sum,
)

WEIGHTS = ("similarity", "uniform", "released")


def similarity(queries: Tensor, texts: Tensor, weights: str) -> float:
    """Return s_k of a client with descriptions (C_k, D), for queries (G, D).

    >>> queries, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    >>> [round(similarity(queries, texts, weights), 4) for weights in WEIGHTS]  # (1 + 0 + .6 - .8) / 4; / 2 / sqrt 2
    [0.2, 1.0, 0.2828]
    """
    if weights == "uniform":
        return 1.0
    products = queries.double() @ texts.double().T
    if weights == "released":
        return float(products.sum()) / len(queries) / len(queries) ** 0.5
    return max(0.0, float(products.mean())) if products.numel() else 0.0


def shares(similarities: list[float]) -> list[float]:
    """Return similarities divided by their sum; equal shares if it is 0.

    >>> shares([1.0, 3.0]), shares([0.0, 0.0])
    ([0.25, 0.75], [0.5, 0.5])
    """
    total = sum(similarities)
    return [s / total for s in similarities] if total else [1 / len(similarities)] * len(similarities)


def streamed(features: Tensor, texts: Tensor, scale: float, rho: float, batch: int) -> tuple[Tensor, Tensor]:
    """Return predictions (n,) of a stream of features (n, D), and the means u_c (G, D) at its end.

    Args:
        features: features of samples in the order of the stream.
        texts: features of the descriptions of the classes, (G, D).
        scale: factor of the logits.
        rho: fraction of the largest entropy log G below which a sample is admitted.
        batch: samples that are predicted at a time.
    """
    sums, counts = torch.zeros_like(texts), torch.zeros(len(texts))
    found = []
    for part in features.split(batch):
        means = sums / counts.clamp(min=1)[:, None]
        prototypes = texts + means if bool(counts.all()) else texts
        log_p = (scale * part @ prototypes.T).log_softmax(1)
        entropy, predicted = -(log_p.exp() * log_p).nan_to_num(0.0).sum(1), log_p.argmax(1)
        admitted = entropy < rho * np.log(len(texts))
        sums.index_add_(0, predicted[admitted], part[admitted])
        counts += predicted[admitted].bincount(minlength=len(texts))
        found.append(predicted)
    return torch.cat(found), sums / counts.clamp(min=1)[:, None]


def accuracies(
    module: nn.Module, model: Params, arrays: dict[str, Tensor], settings: tuple[float, float, int]
) -> dict[str, float]:
    """Return the four accuracies on the rows of `arrays`, in their order. `settings`: scale, rho, batch."""
    classes, first = first_rows(arrays["y"])
    texts, x = arrays["text"][first], arrays["x"]
    with torch.no_grad():
        gated = torch.func.functional_call(module.eval(), dict(model), (x,))
        scale, rho, batch = settings
        result = {}
        for name, features in (("adapted", gated), ("encoder", F.normalize(x, dim=-1))):
            for rule, bound in (("accuracy", 0.0), ("prototypes", rho)):
                predicted, _ = streamed(features, texts, scale, bound, batch)
                result[f"{name}/{rule}"] = float((classes[predicted] == arrays["y"]).double().mean())
    return result


@register("strategy", "fed_mp")
@dataclass(frozen=True, kw_only=True)
class FedMP(Strategy):
    """Average gates by the similarity of classes, and predict classes that no client has.

    Args:
        weights: `similarity` (mean similarity, at least 0), `released` (the authors' program), or `uniform`.
        scale: factor of the logits, positive; the encoder's own, if it has one.
        rho: fraction of the largest entropy below which a sample enters a prototype, in [0, 1]. 0: none does.
        batch: test samples that are predicted at a time, at least 1.
    """

    weights: Literal["similarity", "uniform", "released"] = "similarity"
    scale: float = 20.0
    rho: float = 0.1
    batch: int = 32

    client: ClassVar[str] = "fed_mp"
    example_config: ClassVar[dict[str, Any]] = {
        "data": {"name": "described", "clients": 8},
        "partition": "natural",
        "model": {"name": "gate"},
    }

    def __post_init__(self) -> None:
        checks.one_of(WEIGHTS, weights=self.weights)
        checks.positive(scale=self.scale)
        checks.within("[0, 1]", rho=self.rho)
        checks.at_least(1, batch=self.batch)

    def init(self, model: Params, ctx: ServerContext) -> Params:
        if "text" not in ctx.test:
            raise ValueError(
                "name: fed_mp needs a test set of query classes with the array 'text', the features of their "
                "descriptions; use data: embedded, which makes one, or another strategy"
            )
        with torch.no_grad():
            made = copy.deepcopy(ctx.module).eval()(torch.zeros(1, *ctx.sample_shape))
        if made.shape[1:] != ctx.test["text"].shape[1:]:
            raise ValueError(
                f"name: fed_mp compares the model's outputs, {tuple(made.shape[1:])} for a sample, with features of "
                f"descriptions, {tuple(ctx.test['text'].shape[1:])}; use model: gate"
            )
        return model.select([name for name in model if not name.startswith("residual.")])

    def broadcast(self, state: Params, ctx: ServerContext) -> Broadcast:
        return Broadcast({"model": state}, config={"scale": self.scale})

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Stack]:
        return {"model": Stack(), "texts": Stack()}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        queries = ctx.test["text"][first_rows(ctx.test["y"])[1]]
        weights = shares([similarity(queries, texts, self.weights) for texts, _ in reduced["texts"]])
        change = weighted_sum((weight, change) for weight, (change, _) in zip(weights, reduced["model"]))
        return state + change, {"weight/max": max(weights)}

    def evaluation(self, state: Params, ctx: ServerContext) -> EvaluationGenerator:
        order = random.permutation(len(ctx.test["y"]), ctx.seed, "stream")
        arrays = {name: array[order] for name, array in ctx.test.items()}
        return (yield ServerWork(accuracies, (ctx.module, state, arrays, (self.scale, self.rho, self.batch))))
