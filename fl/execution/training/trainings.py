"""Run the trainings of a client algorithm one after another, for one client or for clients that train together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from fl.method.local_training import LocalTraining, TrainingInputs, TrainingResult
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Trained:
    """What a client, or each of C clients, ends with.

    first: the end of the first training.
    groups: groups of the update.
    state: the new state.
    """

    first: TrainingResult
    groups: Mapping[str, Tree]
    state: Tree


def run_trainings(
    algorithm: LocalTraining, inputs: TrainingInputs, train: Callable[[TrainingInputs], TrainingResult]
) -> Trained:
    """Run `algorithm.trainings`, with `train` for each of them.

    Raises:
        TypeError: the hook yields no `TrainingInputs`, or does not return (groups, state).
    """
    who = f"client {type(algorithm).__name__}: trainings"
    course: Any = algorithm.trainings(inputs)
    if not isinstance(course, Generator):
        raise TypeError(f"{who} returned {type(course).__name__}; it has to yield the inputs of each training")
    first: TrainingResult | None = None
    try:
        wanted = next(course)
        while True:
            if not isinstance(wanted, TrainingInputs):
                raise TypeError(f"{who} yielded {type(wanted).__name__}, expected TrainingInputs such as its argument")
            end = train(wanted)
            first = end if first is None else first
            wanted = course.send(end)
    except StopIteration as stop:
        found = stop.value
    if first is None:
        raise TypeError(f"{who} yielded nothing; it has to yield the inputs of at least one training")
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Mapping)):
        raise TypeError(f"{who} returned {type(found).__name__}, expected (groups of the update, new state)")
    return Trained(first, *found)
