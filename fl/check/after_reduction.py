"""Laws of what the server does to reduced values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from fl.check.bench import fingerprint
from fl.check.finding import Broken, Law, require_equal
from fl.method.after_reduction import AfterReduction, Reduced, ReductionContext, apply_all
from fl.tensors import random
from fl.tensors.params import Params

CONTEXT = ReductionContext(0, 3, 7, "train", np.array([1, 4, 6]), np.array([10, 20, 30]))


def _groups() -> dict[str, Params]:
    """One group with a matrix and a vector."""
    generator = random.torch_generator("check", "after_reduction")
    tensors = {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(4, generator=generator)}
    return {"model": Params.of(tensors)}


def _applied(part: AfterReduction, ctx: ReductionContext = CONTEXT) -> tuple[Reduced, Mapping[str, float]]:
    groups = _groups()
    part.check(groups)
    found = apply_all((part,), groups, ctx)
    require_equal(fingerprint(groups), fingerprint(_groups()), "the groups that apply() was given, before and after,")
    return found


def groups_keep_their_form(part: AfterReduction) -> None:
    """The groups keep names, shapes and types, and stay finite; metrics are finite numbers."""
    groups, metrics = _applied(part)
    if not isinstance(groups["model"], Params) or groups["model"].layout is not _groups()["model"].layout:
        raise Broken("the group model is no Params with the same tensors")
    if not all(buffer.isfinite().all() for buffer in groups["model"].buffers):
        raise Broken("the group model is not finite")
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise Broken(f"metrics: {wrong} are not finite")


def the_same_exchange_gives_the_same_values(part: AfterReduction) -> None:
    """Applied twice, also after another exchange, the part gives the same groups and metrics."""
    one, metrics = _applied(part)
    _applied(part, replace(CONTEXT, round=4, participation=9))
    two, again = _applied(part)
    require_equal(fingerprint(dict(two)), fingerprint(dict(one)), "groups of an exchange applied twice")
    require_equal(again, metrics, "metrics of an exchange applied twice")


LAWS: list[Law] = [groups_keep_their_form, the_same_exchange_gives_the_same_values]
