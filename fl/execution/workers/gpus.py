"""How Ray's workers share GPUs. Ray sets CUDA_VISIBLE_DEVICES of each worker to its GPU, or to "" without a share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuShares:
    """The GPUs of the workers.

    Args:
        per_worker: GPUs of each worker: a fraction, or a whole number; None divides all GPUs among the workers.
        total: number of GPUs of this machine; None counts them.
    """

    per_worker: float | None = None
    total: int | None = None

    def on_this_machine(self) -> int:
        """Return the number of GPUs of this machine."""
        if self.total is not None:
            return self.total
        import torch

        return torch.cuda.device_count()

    def share(self, gpus: float, workers: int) -> float:
        """Return the number of GPUs that each of `workers` gets, if there are `gpus` of them."""
        return min(1.0, gpus / workers) if self.per_worker is None else self.per_worker

    def room(self, gpus: float) -> int | None:
        """Return how many workers fit on `gpus` GPUs; None if any number does. No share lies on two GPUs.

        >>> GpuShares(0.4).room(2), GpuShares(2).room(3), GpuShares().room(1)
        (4, 1, None)
        """
        if not self.per_worker:
            return None
        if self.per_worker >= 1:
            return int(gpus // self.per_worker)
        return int(gpus) * int(1 / self.per_worker + 1e-9)
