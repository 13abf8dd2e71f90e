"""The `execution` section of a configuration: where and how client work is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl.checks import at_least, positive


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where and how client work is computed.

    `plan`, `chunk`, `memory_format`, `micro_batch`, `device`, `precision`, `graphs` and `deterministic` may change the
    last bits of results. The run directory holds the values of `plan`, `chunk` and `memory_format` that were chosen.

    Args:
        executor: "ray": worker processes; "serial": this process; "auto": Ray if an `address` or a
            `client_timeout` is given, or if a plan other than "compiled" has several `workers` or so much work that
            processes save time, else this process.
        workers: number of worker processes, 1 or more ("serial": threads of compiled training). Default: one per CPU
            core that this process may use (fewer under a memory limit), or per GPU.
        address: address of a Ray cluster, as HOST:PORT; "auto": the running one; None: this machine.
        plan: how clients are trained: "loop" one after another; "fused", "compiled", "stacked", "flat" or "vmap"
            several together; "auto" the fastest that fits the model.
        chunk: number of clients that are trained together, a power of two; None: chosen from the model's size.
        memory_format: memory format of images in the loop: "contiguous", "channels_last" or "compiled" (runs of
            convolutions, ReLUs and max-pools are machine code); None: the fastest that fits the model. Other plans have
            "contiguous" only.
        micro_batch: maximum number of samples in one pass through the model in the loop, 1 or more. The gradients of
            a larger batch are added up. None: the whole batch.
        device: "cpu", or "cuda": workers share the GPUs.
        precision: "float32", "tf32" (GPUs only) or "bf16" (autocast).
        graphs: on a GPU, run the gradients of the loop as CUDA graphs.
        deterministic: on a GPU, use only algorithms that give the same bits each time.
        on_client_error: what an error in a client's work does: "raise" ends the run; "drop" leaves the client out of
            the round.
        client_timeout: longest time for the work of one client, in seconds, with executor ray; None: no limit. A
            client that takes longer is tried again on a new worker; the second time, the run stops and names it.
    """

    executor: Literal["auto", "serial", "ray"] = "auto"
    workers: int | None = None
    address: str | None = None
    plan: Literal["auto", "loop", "fused", "compiled", "stacked", "flat", "vmap"] = "auto"
    chunk: int | None = None
    memory_format: Literal["contiguous", "channels_last", "compiled"] | None = None
    micro_batch: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    graphs: bool = False
    deterministic: bool = False
    on_client_error: Literal["raise", "drop"] = "raise"
    client_timeout: float | None = None

    def __post_init__(self) -> None:
        at_least(1, workers=self.workers, micro_batch=self.micro_batch)
        positive(client_timeout=self.client_timeout)
        if self.client_timeout is not None and self.executor == "serial":
            raise ValueError(
                "client_timeout: the serial executor cannot end a client that hangs; set executor: ray, or leave "
                "client_timeout out"
            )
        if self.graphs and self.device == "cpu":
            raise ValueError("graphs: CUDA graphs need a GPU; set device: cuda, or leave graphs out")
