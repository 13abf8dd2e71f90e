"""The `execution` section of a configuration: who computes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Who computes. Of these `plan`, `chunk`, `layout`, `micro_batch`, `device`, `precision` and `deterministic` touch last bits: the
    first three are resolved to explicit values from the model's structure and the device.

    executor: ray with `workers` (default: one per core, or per GPU) on this machine or the cluster at `address` ("auto"), or serial: this
    process; what is compiled is shared by as many threads.
    plan: loop | compiled | stacked | flat | vmap | auto.   chunk: clients trained together (a power of two).
    layout: how images lie in memory in the loop: contiguous | channels_last | blocked (default: as fl/execution/training/layout.py has it).
    micro_batch: samples that pass through the model at once in the loop; larger batches add up their gradients (default: all).
    device: cpu, or cuda: workers share the GPUs.   precision: float32, tf32 (of GPUs) or bf16 (autocast).
    graphs: on a GPU, the loop's gradients are CUDA graphs.
    deterministic: on a GPU, only algorithms that give the same bits each time.
    on_client_error: raise, or drop the client from the round.
    """

    executor: Literal["serial", "ray"] = "ray"
    workers: int | None = None
    address: str | None = None
    plan: Literal["auto", "loop", "compiled", "stacked", "flat", "vmap"] = "auto"
    chunk: int | None = None
    layout: Literal["contiguous", "channels_last", "blocked"] | None = None
    micro_batch: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    graphs: bool = False
    deterministic: bool = False
    on_client_error: Literal["raise", "drop"] = "raise"

    def __post_init__(self):
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch: {self.micro_batch} is not at least 1")
        if self.graphs and self.device == "cpu":
            raise ValueError("graphs: they are of GPUs; set device: cuda, or leave them out")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: {self.workers} is not at least 1")
