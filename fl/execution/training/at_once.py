"""Training and what `finish` and `carry` return, in one call of the backend.

The hooks are called first, with parameters that are not known yet. If what they return only adds and scales vectors,
the backend computes it while each client's vectors are in the near caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.chunk import Chunk, Gradients, TrainsWholePhases, Wanted
from fl.execution.training.customised import ends_plainly, overrides, penalty_of
from fl.execution.update_checks import check_stacked, checked_pair
from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.method.phase import Phase
from fl.method.training_values import StepContext, TrainingInputs, TrainingResult
from fl.tensors.combination import Combination, NotKnown, Unknown
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree, tree_map

_Results = tuple[Mapping[str, Tree], Tree, Tree]  # groups and state of `finish`, and what `carry` returned


@dataclass(frozen=True)
class Opening:
    """The inputs of a training, its phases, and the parameters at its start: batched (C,), or one for all clients."""

    inputs: TrainingInputs
    phases: Sequence[Phase]
    start: Params


def train_at_once(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[Gradients],
    opening: Opening,
    weights: Mapping[str, Tensor] | None,
) -> Reply | None:
    """Train in one call that also computes what `finish` and `carry` return. None if backend or method cannot do so.

    They get `Unknown` parameters. What they return has to be `Combination`s of them and of known parameters, or
    numbers that do not depend on them.
    """
    if not issubclass(backend, TrainsWholePhases) or any(overrides(algorithm, n) for n in ("metrics", "trainings")):
        return None
    inputs, phases, start = opening.inputs, opening.phases, opening.start
    if not backend.trains_whole(algorithm, chunk, phases):
        return None
    phase, count = phases[0], len(chunk.sizes)
    trained, n = Unknown(start.layout, (count,)), torch.from_numpy(chunk.sizes)
    results: _Results | None = None  # of the hooks; the default ones are known
    try:
        penalty = None
        if overrides(algorithm, "penalty"):
            at = StepContext(**vars(with_combinations(inputs, start.layout)), phase=phase, start=start)
            penalty = penalty_of(algorithm, at, count)
        if not ends_plainly(algorithm):
            own, steps = n.clone(), phase.num_steps(chunk.sizes)
            end = TrainingResult(
                **vars(with_combinations(inputs, start.layout)),
                start=start,
                params=Combination.single(trained),
                steps=torch.from_numpy(steps),
                lr_sum=torch.from_numpy(phase.lr_sum(steps)),
                num_examples=own,
                full_gradient=_not_known,
                fisher=_not_known,
            )
            sent, kept = checked_pair(algorithm.finish(end), who := type(algorithm).__name__, "finish")
            results = sent, kept, algorithm.carry(end)
            check_stacked(*_replaced(results, lambda leaf: None), count, who, shared=chunk.received)
            if not torch.equal(own, n):  # it has changed them
                return None
    except (Exception, NotKnown):  # a hook needs numbers, or has an error, which is raised when they are known
        return None
    wanted = _wanted(results, weights)
    try:
        found, _, loss, seen = backend.train_whole(chunk, phase, start, penalty, trained, wanted)
    except NotKnown:  # vectors have changed since a hook made a sum of them; nothing has been trained
        return None
    metrics = {"loss": torch.from_numpy(loss.numpy() / np.maximum(seen, 1))}
    if results is None:
        return Reply(Update({"model": found[0]}, n, metrics, owned=True))
    made = iter(found)
    groups, state, carry = _replaced(results, lambda leaf: next(made))
    owned = all(isinstance(group, Combination) for group in results[0].values())
    return Reply(Update(groups, n, metrics, owned), state, carry)


def _wanted(results: _Results | None, weights: Mapping[str, Tensor] | None) -> list[Wanted]:
    """Return the results that training has to compute, in the order of `tree_map`.

    Args:
        results: what the hooks returned; None for the default, the change of the parameters.
        weights: see `train`.
    """
    if results is None:
        summed = weights is not None and weights.keys() == {"model"}
        return [Wanted(weights=weights["model"] if weights is not None and summed else None)]
    groups, kept = results[0], list[Combination]()
    _replaced(results, kept.append)
    wanted = [Wanted(leaf) for leaf in kept]
    if weights is not None and weights.keys() == groups.keys():
        if all(isinstance(group, Combination) for group in groups.values()):
            wanted[: len(groups)] = [Wanted(group, weights[name]) for name, group in groups.items()]
    return wanted


def _replaced(results: _Results, fn: Callable[[Combination], Params | None]) -> _Results:
    """Return the results with `fn` of each combination in its place."""
    groups, state, carry = tree_map(lambda leaf: fn(leaf) if isinstance(leaf, Combination) else leaf, results)
    return groups, state, carry


def with_combinations(inputs: TrainingInputs, layout: Layout) -> TrainingInputs:
    """Return inputs with states and prepared values for one hook. Changes in place stay within them.

    Parameters of the layout are combinations, so that the hook's sums with them are seen. The rest is copied.
    """

    def of(leaf: Params | Tensor) -> Params | Tensor:
        return Combination.single(leaf) if isinstance(leaf, Params) and leaf.layout is layout else leaf.clone()

    return replace(inputs, state=tree_map(of, inputs.state), prepared=tree_map(of, inputs.prepared))


def _not_known(params: Params) -> Params:
    """Refuse a gradient.

    Raises:
        NotKnown: always.
    """
    raise NotKnown
