"""Training and what `finish` and `carry` return, in one call of the backend.

The hooks are called first, with parameters that are not known yet. If what they return only adds and scales vectors,
the backend computes it while each client's vectors are in the near caches.

Python is slow between two calls of machine code, which has filled the caches. So the hooks are called once for several
chunks (`Window`), if all that they read is known before the first of them: numbers of samples and steps, the broadcast,
and states that are not known either, only added and scaled. Else they are called for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.chunk import Asked, Chunk, Gradients, TrainsWholePhases, Wanted, WholePhase
from fl.execution.training.customised import ends_plainly, overrides, penalty_of
from fl.execution.update_checks import check_stacked, checked_pair
from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.method.messages import Update
from fl.method.phase import Phase
from fl.method.protected import protected_by
from fl.method.training_values import StepContext, TrainingInputs, TrainingResult
from fl.tensors.combination import Combination, NotKnown, Unknown
from fl.tensors.params import Layout, Params
from fl.tensors.trees import PLAIN, Tree, named_leaves, row, tree_map

_Results = tuple[Mapping[str, Tree], Tree, Tree]  # groups and state of `finish`, and what `carry` returned


@dataclass(frozen=True)
class Opening:
    """The inputs of a training, its phases, and the parameters at its start: batched (C,), or one for all clients."""

    inputs: TrainingInputs
    phases: Sequence[Phase]
    start: Params


class Window:
    """Clients whose hooks are called together: those of a chunk, and of chunks beside it in the same dispatch.

    New states may take the memory of the old ones, which no hook has seen.

    Args:
        sizes: int64 (N,), number of training samples of each client.
    """

    def __init__(self, sizes: np.ndarray):
        self.sizes = sizes
        # by the names of the groups that are summed, and by what states hold beside the numbers of parameters
        self.found: dict[tuple[Sequence[str], Sequence[str]], _Hooks | None] = {}


@dataclass(frozen=True)
class _Hooks:
    """What the hooks returned for N clients, called with states and trained parameters that are not known yet.

    state: the state that the hooks got.
    protected: see `WholePhase`.
    formulas: of all that the backend computes.
    wanted: its results.
    results: groups, state and carry, with a combination for each of `wanted`; None for the default ones.
    """

    state: Tree
    protected: Mapping[str, Tensor]
    formulas: Any
    wanted: list[Wanted]
    results: _Results | None


def train_at_once(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[Gradients],
    opening: Opening,
    weights: Mapping[str, Tensor] | None,
    window: tuple[Window, slice] | None = None,
) -> Reply | None:
    """Train in one call that also computes what `finish` and `carry` return. None if backend or method cannot do so.

    They get `Unknown` parameters. What they return has to be `Combination`s of them and of known parameters, or
    numbers that do not depend on them.

    Args:
        algorithm: the client algorithm.
        chunk: the clients.
        backend: the backend.
        opening: how the training begins.
        weights: see `batched.train`.
        window: a window with the clients of the chunk, and which of its clients they are.
    """
    if not issubclass(backend, TrainsWholePhases):
        return None
    names = () if weights is None else tuple(weights)
    if window is not None:
        found = _hooks_of_window(algorithm, chunk, backend, opening, names, window[0])
        if found is not None:
            values = _values(found.state, opening.inputs.state)
            reply = _train(chunk, backend, opening, weights, found, window[1], values)
            if reply is not None:
                return reply
    if not _trains_whole(algorithm, chunk, backend, opening):
        return None
    of_chunk = _call_hooks(algorithm, chunk, backend, opening, names, opening.inputs.state, chunk.sizes)
    return None if of_chunk is None else _train(chunk, backend, opening, weights, of_chunk)


def _trains_whole(algorithm: LocalTraining, chunk: Chunk, backend: type[TrainsWholePhases], opening: Opening) -> bool:
    """Whether the backend takes all steps in one call, and no hook is called after them or between phases."""
    late = len(opening.phases) > 1 or any(overrides(algorithm, name) for name in ("metrics", "trainings"))
    return not late and backend.trains_whole(algorithm, chunk, opening.phases)


def _may_wait(algorithm: LocalTraining, chunk: Chunk) -> bool:
    """Whether all that hooks read is known for clients of other chunks, but for states."""
    own = ("start", "phases_of", "initial_tensors")  # they may depend on the chunk
    own_values = chunk.facts is not None or chunk.prepared is not None
    return not own_values and not any(overrides(algorithm, name) for name in own)


def _hooks_of_window(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[TrainsWholePhases],
    opening: Opening,
    names: Sequence[str],
    window: Window,
) -> _Hooks | None:
    """Return what the hooks return for all clients of a window, called once; None if they read more than is known.

    Chunks whose states have other plain values or another structure have calls of their own. So the answer does not
    depend on which chunk asks first.
    """
    layout, own, state = opening.start.layout, (len(chunk.sizes),), opening.inputs.state
    known = []
    for path, leaf in named_leaves(state):
        if isinstance(leaf, PLAIN):
            known.append(f"{path}={leaf!r}")
        elif isinstance(leaf, Params) and leaf.layout is layout and leaf.batch == own:
            known.append(path)
        else:
            return None
    key = (*names,), (*known,)
    if key not in window.found:
        count, window.found[key] = len(window.sizes), None
        if _may_wait(algorithm, chunk) and _trains_whole(algorithm, chunk, backend, opening):
            state = tree_map(lambda leaf: Unknown(leaf.layout, (count,)), state)
            found = _call_hooks(algorithm, chunk, backend, opening, names, state, window.sizes)
            if found is not None and _is_for_each(found.results, count) and found.formulas.shares(_unknown(state)):
                window.found[key] = found
    return window.found[key]


def _is_for_each(results: _Results | None, count: int) -> bool:
    """Whether what hooks returned beside combinations are numbers, one for each of `count` clients."""
    found = [] if results is None else [leaf for _, leaf in named_leaves(results) if not isinstance(leaf, Combination)]
    return all(isinstance(x, PLAIN) or (isinstance(x, Tensor) and tuple(x.shape) == (count,)) for x in found)


def _unknown(state: Tree) -> list[Params]:
    """Return the parameters of a state."""
    return [leaf for _, leaf in named_leaves(state) if isinstance(leaf, Params)]


def _values(unknown: Tree, state: Tree) -> dict[int, Params]:
    """Return, by identity, the parameters of a state for those of an `unknown` one of the same structure."""
    return {id(leaf): own for leaf, own in zip(_unknown(unknown), _unknown(state), strict=True)}


def _call_hooks(
    algorithm: LocalTraining,
    chunk: Chunk,
    backend: type[TrainsWholePhases],
    opening: Opening,
    names: Sequence[str],
    state: Tree,
    sizes: np.ndarray,
) -> _Hooks | None:
    """Call the hooks for N clients.

    Args:
        algorithm: the client algorithm.
        chunk: some of the clients, or all.
        backend: the backend.
        opening: how the training begins.
        names: groups that are summed, if all groups are.
        state: the clients' states.
        sizes: (N,), numbers of samples.

    Returns:
        What they returned; None if they need numbers that are not known, or fail.
    """
    inputs, phase, start = replace(opening.inputs, state=state), opening.phases[0], opening.start
    count, trained, n = len(sizes), Unknown(start.layout, (len(sizes),)), torch.from_numpy(sizes)
    of_phase = start.select(phase.trains)
    results: _Results | None = None  # of the hooks; the default ones are known
    try:
        penalty, protected = None, protected_by(algorithm, StepContext(**vars(inputs), phase=phase, start=of_phase))
        if overrides(algorithm, "penalty"):
            at = StepContext(**vars(with_combinations(inputs, start.layout)), phase=phase, start=of_phase)
            penalty = penalty_of(algorithm, at, count)
        if not ends_plainly(algorithm):
            own, steps = n.clone(), phase.num_steps(sizes)
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
    wanted = _wanted(results, names)
    try:
        whole = WholePhase(phase, 0, start, of_phase, protected)
        return _Hooks(state, protected, backend.formulas(whole, count, penalty, trained, wanted), wanted, results)
    except NotKnown:  # vectors have changed since a hook made a sum of them
        return None


def _train(
    chunk: Chunk,
    backend: type[TrainsWholePhases],
    opening: Opening,
    weights: Mapping[str, Tensor] | None,
    hooks: _Hooks,
    part: slice | None = None,
    values: Mapping[int, Params] | None = None,
) -> Reply | None:
    """Train the clients of a chunk, those at `part` of `hooks`; None if vectors have changed since these were called.

    `values` are the states of the chunk, see `_values`.
    """
    results, own = hooks.results, list[Tensor | None]([None] * len(hooks.wanted))
    if weights is not None and any(wanted.summed for wanted in hooks.wanted):  # the first results are the groups
        names = ("model",) if results is None else results[0]
        own[: len(names)] = [weights[name] for name in names]
    asked = Asked(hooks.formulas, slice(None) if part is None else part, values or {}, own)
    phase, start = opening.phases[0], opening.start
    try:
        whole = WholePhase(phase, 0, start, start.select(phase.trains), hooks.protected)
        found, _, loss, seen = backend.train_whole(chunk, whole, asked)
    except NotKnown:  # nothing has been trained
        return None
    metrics = {"loss": torch.from_numpy(loss.numpy() / np.maximum(seen, 1))}
    n = torch.from_numpy(chunk.sizes)
    if results is None:
        return Reply(Update({"model": found[0]}, n, metrics, owned=True))
    made = iter(found)
    groups, state, carry = _replaced(results, lambda leaf: next(made), part)
    owned = all(isinstance(group, Combination) for group in results[0].values())
    return Reply(Update(groups, n, metrics, owned), state, carry)


def _wanted(results: _Results | None, names: Sequence[str]) -> list[Wanted]:
    """Return the results that training has to compute, in the order of `tree_map`.

    Args:
        results: what the hooks returned; None for the default, the change of the parameters.
        names: groups that are summed, if all groups are.
    """
    if results is None:
        return [Wanted(summed=tuple(names) == ("model",))]
    groups, kept = results[0], list[Combination]()
    _replaced(results, kept.append)
    wanted = [Wanted(leaf) for leaf in kept]
    if names and set(names) == set(groups) and all(isinstance(group, Combination) for group in groups.values()):
        wanted[: len(groups)] = [Wanted(group, summed=True) for group in groups.values()]
    return wanted


def _replaced(results: _Results, fn: Callable[[Combination], Params | None], part: slice | None = None) -> _Results:
    """Return the results with `fn` of each combination in its place, and `part` of the clients of all other leaves."""

    def of(leaf: Params | Tensor) -> Params | Tensor | None:
        if isinstance(leaf, Combination):
            return fn(leaf)
        return leaf if part is None else row(leaf, part)

    groups, state, carry = tree_map(of, results)
    return groups, state, carry


def with_combinations(inputs: TrainingInputs, layout: Layout) -> TrainingInputs:
    """Return inputs with states and prepared values for one hook. Changes in place stay within them.

    Parameters of the layout, one row for each client, are combinations, so that the hook's sums with them are seen. The
    rest is copied.
    """

    def of(leaf: Params | Tensor) -> Params | Tensor:
        if isinstance(leaf, Params) and leaf.layout is layout and len(leaf.batch) == 1:
            return Combination.single(leaf)
        return leaf.clone()

    return replace(inputs, state=tree_map(of, inputs.state), prepared=tree_map(of, inputs.prepared))


def _not_known(params: Params) -> Params:
    """Refuse a gradient.

    Raises:
        NotKnown: always.
    """
    raise NotKnown
