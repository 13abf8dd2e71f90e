"""Base classes of tasks: a loss per sample, and metrics that pool exactly over batches, clients and workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.data.views import Batch
from fl.method.reduction import Meta, Product, Reduction
from fl.tensors.trees import row

EVALUATION_BLOCK = 1024  # samples in one forward pass of an evaluation, where the task sets no other number
# the best round is selected by the first of these metrics that is measured; never by test rows
SELECT = ("val/accuracy", "val/ndcg10", "val/loss", "train/loss")


def minimised(metric: str) -> bool:
    """Return whether a smaller value of a metric is better, by its name.

    Losses, errors, standard deviations, Gini coefficients, gaps and forgetting (fgt) are minimised.

    >>> minimised("val/loss"), minimised("clients/mse_worst10"), minimised("val/accuracy"), minimised("accuracy_std")
    (True, True, False, True)
    >>> minimised("val/loss/parity"), minimised("clients/loss/parity_mean"), minimised("val/accuracy/parity")
    (True, True, False)
    """
    metric = re.sub("_(mean|weighted|worst10)$", "", metric)
    *groups, last = metric.split("/")
    by_task = bool(groups) and groups[-1] == "loss"  # loss/NAME of `task: multitask`
    return by_task or last.endswith(("_std", "_gini", "gap", "loss", "mse", "perplexity", "fgt"))


class Metric(Reduction):
    """A metric that pools exactly: `measure` each batch, `merge` the accumulators, `finish` to a number.

    Attributes:
        pools: False for a metric that is defined for one client only, such as a rank statistic; see `ClientMetric`.
            It has no pooled value (eval/*, val/*), and is measured on clients' rows only.
    """

    linear: ClassVar[bool] = True
    pools: ClassVar[bool] = True

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        """Return accumulators per client, each leaf (count, ...). `segments` (B,) int64: client of each sample."""
        raise NotImplementedError

    def lift(self, value: Any, meta: Meta) -> Any:
        return value

    def merge(self, a: Any, b: Any) -> Any:
        return tuple(x + y for x, y in zip(a, b))

    def finish(self, acc: Any) -> float:
        raise NotImplementedError

    def each(self, accs: Any, count: int) -> np.ndarray:
        """Return the metric (count,) of each client; NaN for a client without samples."""
        return np.array([self.finish(row(accs, i)) for i in range(count)])


class MeanMetric(Metric):
    """A mean over samples of `values(outputs, batch)` (B,), summed in float64."""

    batched: ClassVar[bool] = True

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return one value per sample, (B,)."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        values = self.values(outputs, batch).double()
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, segments, values)
        return sums, torch.bincount(segments, minlength=count).double()

    def finish(self, acc: Any) -> float:
        total, count = acc
        return float(total / count) if count > 0 else float("nan")

    def each(self, accs: Any, count: int) -> np.ndarray:
        total, samples = accs
        return torch.where(samples > 0, total / samples, torch.nan).cpu().numpy()


class ClientMetric(Metric):
    """A metric of all of a client's samples together, such as the area under a curve. It is not pooled over clients."""

    pools: ClassVar[bool] = False

    def value(self, outputs: Tensor, batch: Batch) -> float:
        """Return the metric of one client from its outputs (B, ...) and its samples without `x`, B > 0."""
        raise NotImplementedError

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        return [(segments, outputs, {name: array for name, array in batch.items() if name != "x"})]

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def each(self, accs: Any, count: int) -> np.ndarray:
        segments, outputs = (torch.cat([part[i] for part in accs]) for i in range(2))
        batch = {name: torch.cat([samples[name] for _, _, samples in accs]) for name in accs[0][2]}
        ends = np.cumsum(torch.bincount(segments, minlength=count).numpy())
        found = np.full(count, np.nan)
        for i, (start, end) in enumerate(zip([0, *ends], ends)):
            if end > start:  # samples of a client are consecutive
                own = slice(int(start), int(end))
                found[i] = self.value(outputs[own], {name: array[own] for name, array in batch.items()})
        return found


def pooled(metrics: Mapping[str, Metric]) -> Product:
    """Return the reduction that pools those metrics that pool."""
    return Product({name: metric for name, metric in metrics.items() if metric.pools})


class Task:
    """Base of tasks: number of model outputs, loss per sample, and metrics by name."""

    # "cross_entropy" (softmax over the last axis) or "squared_error" (half of it), for compiled kernels; None: neither
    kernel: ClassVar[str | None] = None
    # whether labels may be words; they are numbered 0, 1, ... in sorted order
    word_labels: ClassVar[bool] = True

    @property
    def evaluation_block(self) -> int:
        """Number of samples in one forward pass of an evaluation. Its memory grows with the outputs of a block."""
        return EVALUATION_BLOCK

    def samples_due(self, round_: int, last: bool) -> bool:
        """Return whether `generate` is called after round `round_`; `last`: no round follows."""
        return False

    def check_samples(self, data: object) -> None:
        """Raise a ValueError before round 0 if `generate` cannot work. `data`: the data set's part."""

    def generate(self, net: Callable[[Tensor], Tensor], rows: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return what a model makes of some rows, in plain values; the run directory keeps it.

        Args:
            net: x (B, ...) -> outputs (B, ...), in evaluation mode.
            rows: the server's test set.
        """
        raise NotImplementedError

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Check the labels once, before round 0, and return the arrays as this task needs them.

        Convert what has one meaning; raise a `ValueError` for everything else: the value, how many there are, the
        first row, and what to do (`fl.data.checking.refuse`). The default takes all arrays unchanged.

        Args:
            arrays: `x`, `y` and other arrays of one part of the data; floats are float32 and integers of `y` int64.
            where: Name of the part: train, test or server. The server's rows may lack `y`.
        """
        return dict(arrays)

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of model outputs. A `ValueError` if the arrays do not fit the task."""
        raise NotImplementedError

    def heads(self) -> Mapping[str, int]:
        """Return the number of outputs of each task by name, if this is several tasks with labels `y_NAME`; else {}."""
        return {}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,)."""
        raise NotImplementedError

    def objective(self, net: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,), in training. A task that needs few of the outputs asks `net` for those.

        Args:
            net: the model under the parameters being trained, see `LocalTraining.objective`.
            batch: arrays of B samples by name.
        """
        return self.loss(net(batch["x"]), batch)

    def metrics(self) -> Mapping[str, Metric]:
        """Return the metrics by name."""
        raise NotImplementedError
