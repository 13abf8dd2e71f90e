"""The `execution` section of a configuration: who computes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who computes, and how.

    `plan`, `chunk`, `memory_format`, `micro_batch`, `device`, `precision` and `deterministic` change the last bits of
    results. The resolved configuration has explicit values for the first three, chosen from the model's structure and
    the device.

    Args:
        executor: ray (workers on this machine or on the cluster at `address`) or serial (this process; compiled
            training uses `workers` threads).
        workers: number of workers. Default: one per core, or one per GPU.
        address: address of a Ray cluster, or "auto". Default: this machine.
        plan: how clients are trained: loop, compiled, stacked, flat, vmap, or auto (the fastest of them as a rule).
        chunk: clients trained together, a power of two. Default: chosen from the sizes of model and cohort.
        memory_format: how images are stored in the loop: contiguous, channels_last or blocked. Default: the fastest as
            a rule, see fl/execution/training/memory_format.py.
        micro_batch: samples that pass through the model at once in the loop; the gradients of larger batches are sums.
            Default: all samples of a batch.
        device: cpu, or cuda (workers share the GPUs).
        precision: float32, tf32 (GPUs only) or bf16 (autocast).
        graphs: whether the loop's gradients are CUDA graphs; GPUs only.
        deterministic: whether a GPU uses only algorithms that give the same bits every time; a CPU always does.
        on_client_error: raise, or drop the client from the round.
    """

    executor: Literal["serial", "ray"] = "ray"
    workers: int | None = None
    address: str | None = None
    plan: Literal["auto", "loop", "compiled", "stacked", "flat", "vmap"] = "auto"
    chunk: int | None = None
    memory_format: Literal["contiguous", "channels_last", "blocked"] | None = None
    micro_batch: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    graphs: bool = False
    deterministic: bool = False
    on_client_error: Literal["raise", "drop"] = "raise"

    def __post_init__(self) -> None:
        at_least(1, micro_batch=self.micro_batch, workers=self.workers)
        if self.graphs and self.device == "cpu":
            raise ValueError("graphs: CUDA graphs need a GPU; set device: cuda, or leave graphs out")
