"""Training on rows with and without labels: the base of the semi-supervised clients.    per round

    labelled phase:     gradient steps on the labels, as many as `steps` or `epochs` say
    unlabelled phase:   `unlabelled_steps` steps on  mean_i l(a(x_i), A(x_i))

a is the weak chain of augmentations (`data.augment`), A the strong one (`data.strong`).  A method defines l,
`unlabelled_loss`.  It takes a pseudo-label from probabilities p of a(x), without gradient, and learns it on A(x):

    [max p >= threshold] * cross-entropy(f(A(x)), argmax p)         Sohn et al. 2020, arXiv:2001.07685

Every unlabelled step has `unlabelled_batch` rows; a client that has fewer takes all of them.  All methods of this base
take the same steps, so a comparison between them has equal numbers of labelled and unlabelled steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fl import Batch, ClientContext, LocalTraining, Phase, StepContext, Task, checks


def pseudo_label_losses(task: Task, outputs: Tensor, probabilities: Tensor, threshold: float | Tensor) -> Tensor:
    """Return the loss of outputs (B, C) on the likeliest classes, 0 where their probability is below the threshold.

    Args:
        task: a classification.
        outputs: outputs for the strongly changed samples, (B, C).
        probabilities: probabilities of the classes, (B, C), without gradient.
        threshold: least probability of a pseudo-label: a number, or one for each class, (C,).

    Returns:
        Losses (B,).
    """
    surest, label = probabilities.max(-1)
    least = threshold[label] if isinstance(threshold, Tensor) else threshold
    return task.loss(outputs, {"y": label}) * (surest >= least)


@dataclass(frozen=True, kw_only=True)
class SemiSupervised(LocalTraining):
    """A labelled phase and an unlabelled phase. Subclasses define `unlabelled_loss`.

    Args:
        unlabelled_steps: steps on rows without labels in a round, at least 0. 0 trains on the labels only.
        unlabelled_batch: rows without labels in a step, positive. Default: `batch`.
        weight_view: rows that a client's weight counts: "all", "train" (labelled) or "unlabelled".
    """

    unlabelled_steps: int = 5
    unlabelled_batch: int | None = None
    weight_view: Literal["train", "unlabelled", "all"] = "all"

    classes_only: ClassVar[bool] = True
    example_config: ClassVar[dict[str, Any]] = {
        "labels": {"name": "budget", "share": 0.5},
        "data.strong": ["noise"],
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(unlabelled_batch=self.unlabelled_batch)
        checks.not_negative(unlabelled_steps=self.unlabelled_steps, hint="0 trains on the labels only")
        checks.one_of(("train", "unlabelled", "all"), weight_view=self.weight_view)

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (labelled,) = super().phases(round_, rounds)
        if not self.unlabelled_steps:
            return (labelled,)
        unlabelled = replace(
            labelled,
            name="unlabelled",
            view="unlabelled",
            changes={"x": "weak", "strong": "strong"},
            steps=self.unlabelled_steps,
            batch=self.unlabelled_batch or self.batch,
            last_batch="drop",  # all steps have the same number of rows
        )
        return labelled, unlabelled

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        if at.phase.view == "unlabelled":
            return self.unlabelled_loss(net, batch, at, task)
        return super().objective(net, batch, at, task)

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        """Return the loss of each row without label, (B,).

        Args:
            net: the model under the parameters being trained.
            batch: "x", the weakly changed samples, and "strong", the strongly changed ones, (B, ...) each.
            at: the phase and the inputs.
            task: the run's task.
        """
        raise NotImplementedError

    def unlabelled_gradients(self) -> int:
        """Return the number of gradients for each row of an unlabelled step, for `workload`."""
        return 1

    def workload_of_views(
        self, labelled: np.ndarray, unlabelled: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        steps, samples = super().workload_of_views(labelled, unlabelled, round_, rounds, name)
        for phase in self.phases(round_, rounds)[1:]:
            samples = samples + (self.unlabelled_gradients() - 1) * phase.num_samples(unlabelled)
        return steps, samples

    def weight(self, ctx: ClientContext) -> int:
        """Return the number of rows that the client's weight counts."""
        labelled, unlabelled = len(ctx.train), len(ctx.unlabelled)
        return {"train": labelled, "unlabelled": unlabelled, "all": labelled + unlabelled}[self.weight_view]

    def received_outputs(self, x: Tensor, at: StepContext) -> Tensor:
        """Return the outputs for x (B, ...) of the model at the start of the round, (B, C), without gradient."""
        outputs: Tensor = at.under(self.start(at), x)
        return outputs


@dataclass(frozen=True, kw_only=True)
class WithThreshold(SemiSupervised):
    """A semi-supervised client whose pseudo-labels need a fixed probability.

    Args:
        threshold: least probability of a pseudo-label, positive. Above 1, no row has a pseudo-label.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(threshold=self.threshold)
