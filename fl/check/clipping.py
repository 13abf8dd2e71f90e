"""Laws of clippings: the largest effect of one client."""

from __future__ import annotations

import numpy as np
import torch

from fl.check.bench import fingerprint
from fl.check.finding import Broken, Law, require_equal
from fl.method.reduction import Meta, Sum
from fl.privacy.clipping import Clipping, Counts, sensitivity
from fl.privacy.mechanism import Norm
from fl.privacy.private_sum import PrivateSum
from fl.tensors import random
from fl.tensors.params import Params
from fl.tensors.trees import Tree, leaves, stack

EXAMPLES = {"bound": 0.5, "bounds": {"*.weight": 0.3, "*": 0.4}}
NORMS: tuple[Norm, ...] = ("l2", "l1")


def _update(scale: float, number: int = 0) -> dict[str, Tree]:
    generator = random.torch_generator("check", "clipping", number)
    tensors = {name: scale * torch.randn(4, 3, generator=generator) for name in ("fc1.weight", "fc1.bias", "fc2.bias")}
    return {"model": Params.of(tensors)}


def _clipped(part: Clipping, update: dict[str, Tree], norm: Norm) -> Tree:
    return PrivateSum({"model": Sum()}, part, part.init(), norm).lift(update, Meta(0, 5))["sums"]["model"]


def _length(tree: Tree, norm: Norm) -> float:
    numbers = torch.cat([leaf.flatten() for leaf in leaves(tree)]).double()
    return float(numbers.abs().sum() if norm == "l1" else numbers.norm())


def no_update_is_longer_than_the_sensitivity(part: Clipping) -> None:
    """Clipped updates of all lengths are at most as long as the sensitivity that the noise is made for."""
    for norm in NORMS:
        parts = part.parts(_update(1.0))
        bound = sensitivity(part.bounds_at(part.init(), 1 if parts is None else len(parts), norm), norm)
        for scale in (1e-3, 1.0, 1e6):
            length = _length(_clipped(part, _update(scale), norm), norm)
            if length > bound * (1 + 1e-6):
                raise Broken(f"an update of norm {length:g} ({norm}) after clipping, and the sensitivity is {bound:g}")


def short_updates_stay_as_they_are(part: Clipping) -> None:
    """An update within all bounds is not changed."""
    update = _update(1e-6)
    require_equal(fingerprint(_clipped(part, update, "l2")), fingerprint(update["model"]), "a short update")


def clients_together_are_clipped_like_each_alone(part: Clipping) -> None:
    """A stack of updates is clipped to the bits of each update by itself."""
    rule, updates = PrivateSum({"model": Sum()}, part, part.init()), [_update(1.0, i) for i in range(3)]
    together = rule.lift(stack(updates), Meta(torch.arange(3), torch.tensor([5, 6, 7])))
    for i, update in enumerate(updates):
        alone = rule.lift(update, Meta(i, 5 + i))
        require_equal(
            fingerprint(together["sums"]["model"].row(i)), fingerprint(alone["sums"]["model"]), "one client of a stack"
        )


def the_bound_moves_by_the_counts_alone(part: Clipping) -> str | None:
    """The next state is a pure function of state and counts."""
    if not part.adapts:
        return "not checked: the bound is constant"
    counts = Counts(np.array([1.5]), 10.0)
    require_equal(part.next(part.init(), counts), part.next(part.init(), counts), "the next bound, twice,")
    return None


LAWS: list[Law] = [
    no_update_is_longer_than_the_sensitivity,
    short_updates_stay_as_they_are,
    clients_together_are_clipped_like_each_alone,
    the_bound_moves_by_the_counts_alone,
]
