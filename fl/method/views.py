"""Further arrays of a step: rows of a view, in batches of their own, under chains of augmentations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from fl.checks import one_of, positive
from fl.data.augment import Augment

TrainingView: TypeAlias = Literal["train", "unlabelled", "all"]
Chain: TypeAlias = Literal["weak", "strong"] | tuple[Augment, ...]
RECEIVED = "received:"


WEAK: Mapping[str, Chain] = {"x": "weak"}  # the default changes: `x` under the chain `data.augment`


def check_changes(changes: Mapping[str, Chain]) -> None:
    """Raise a `ValueError` for a chain that is neither "weak", "strong" nor a tuple of augmentations."""
    for name, chain in changes.items():
        if isinstance(chain, str):
            one_of(("weak", "strong"), **{f"changes[{name!r}]": chain}, hint="or give a tuple of augmentations")
        elif not isinstance(chain, tuple) or not all(isinstance(change, Augment) for change in chain):
            raise ValueError(f"changes[{name!r}]: {chain!r} is not 'weak', 'strong' or a tuple of augmentations")


@dataclass(frozen=True)
class Beside:
    """Samples that a step has beside those of the phase's own view.

    A step's batch has them as "NAME/x" and so on, where NAME is the key in `Phase.beside`. They are cycled: every step
    has `batch` samples, and a new shuffle begins where the last one ends, also within a batch.

    Args:
        view: rows with labels ("train"), without ("unlabelled"), both ("all"; `y` is -1, or NaN, without label), or
            "received:GROUP": the rows of a group of the broadcast, a tensor or arrays by name.
        batch: samples per step, positive; "full" takes all. A client without such rows has 0 samples.
        changes: arrays of changed samples, each with its chain of augmentations: "weak" is `data.augment`, "strong" is
            `data.strong`; or augmentations. {"weak": "weak", "strong": "strong"} gives "NAME/weak" and "NAME/strong".
    """

    view: str = "unlabelled"
    batch: int | Literal["full"] = 32
    changes: Mapping[str, Chain] = field(default_factory=lambda: WEAK)

    def __post_init__(self) -> None:
        if not self.group:
            one_of(get_args(TrainingView), view=self.view, hint="or 'received:GROUP'")
        positive(batch=self.batch)
        check_changes(self.changes)

    @property
    def group(self) -> str:
        """The group of the broadcast that the samples come from; "" if they are the client's own."""
        return self.view.removeprefix(RECEIVED) if self.view.startswith(RECEIVED) else ""
