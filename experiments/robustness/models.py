"""Models that users bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from experiments.robustness import networks
from experiments.robustness.case import Case, Status

TOKENS: dict[str, Any] = {
    "data": networks.tokens,
    "partition": {"name": "iid", "clients": 5},
    "client.lr": 0.01,
    "client.batch": 5,
}
IDS: dict[str, Any] = {
    "data": {"name": "noise", "shape": [4], "vocabulary": 12, "classes": 3, "clients": 6, "samples": 9},
    "client.optimiser": "adam",
    "client.lr": 0.01,
}
LORA: dict[str, Any] = {"model.adapter": {"name": "lora", "rank": 1}}
ONE_ROW: dict[str, Any] = {"data.samples": 7, "splits.val": 0.0, "client.batch": 3}  # batches of 3, 3 and 1


def _all(
    kind: str, modules: Sequence[type[nn.Module]], expected: Status = "same bits", message: str = "", **changes: Any
) -> list[Case]:
    return [_one(kind, module, expected, message, **changes) for module in modules]


def _one(
    kind: str,
    module: type[nn.Module],
    expected: Status = "same bits",
    message: str = "",
    name: str | None = None,
    **changes: Any,
) -> Case:
    file = f"{networks.__file__}:{module.__name__}"  # options of a model need its name
    changes = {"model": file} | {key.replace("__", "."): value for key, value in changes.items()}
    return Case("model: " + kind, name or f"`{module.__name__}`", changes, expected, message, ray=True)


MODELS = [
    *_all("draws random numbers", networks.DRAWS),
    *_all("draws that the first look does not show", networks.LATE_DRAWS),
    *_all("Hugging Face, default dropout", [networks.Bert, networks.GPT2], **TOKENS),
    *_all("Dropout layers", networks.DROPOUTS),
    _one("Dropout layers", networks.RaggedDropout, name="micro batches", execution__micro_batch=3),
    _one("Dropout layers", networks.ReusedDropout, name="micro batches of a reused layer", execution__micro_batch=3),
    *_all("changes its state", networks.STATES),
    *_all("a change that the first look does not show", [networks.LateCounter], "stopped", "changed state"),
    *_all("constant buffers", [networks.Centred]),
    *_all("running statistics", [networks.Running], "refused", "has buffers that training changes"),
    _one("running statistics", networks.Running, name="`batch_norm: averaged`", model__batch_norm="averaged"),
    _one("running statistics", networks.Running, name="a last batch of one row", model__batch_norm="local", **ONE_ROW),
    _one(
        "running statistics",
        networks.Running,
        "refused",
        "would train on a batch of one row",
        "a client with one row",
        model__batch_norm="local",
        data__samples=1,
        splits__val=0.0,
    ),
    *_all("parameters without gradient", [networks.Unused, networks.AttentionByHand]),
    _one("parameters without gradient", networks.AttentionByHand, name="with `adapter: lora`", **LORA),
    *_all("embeddings", [networks.Ids, networks.SparseIds, networks.BoundedIds, networks.OneHotIds], **IDS),
    *_all("outputs", [networks.Wrapped]),
    *_all("outputs", [networks.Tuple, networks.Dict], "refused", "model: forward returns a"),
    *_all("outputs", [networks.TooFew], "refused", "but the task needs 3 outputs per sample"),
    *_all("outputs", [networks.WrongWidth], "refused", "model: a first pass in training mode with 2 samples"),
]
