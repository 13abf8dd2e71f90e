"""The device on which clients train and are evaluated: CPU cores, or GPUs that workers share.

    data, module, first tensors      moved once, when a worker starts (if data do not fit, samples are moved)
    broadcast, client states         moved as they come
    updates                          lifted and added on the device, unless a codec or transform needs them on the CPU;
                                     O(log n) nodes of their reduction tree come back

Within `Device.computing` new tensors are made on the device, so that methods need not know it. Random draws (shuffles,
masks, noise) are made on the CPU and are the same for every device. The server, states on disk and codecs use the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fl.tensors.trees import Tree, to_device

Kind = Literal["cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]
_NOTHING = contextlib.nullcontext()
DATA_SHARE = 0.5  # share of a GPU's free memory that data may take; models and activations need the rest


@dataclass(frozen=True)
class Device:
    """A kind of device and its settings.

    Args:
        kind: cpu or cuda.
        precision: precision of products and convolutions: float32, tf32 (GPUs only: rounded inputs) or bf16 (autocast).
        deterministic: whether to use only algorithms that give the same bits every time; on a CPU all do.
    """

    kind: Kind = "cpu"
    precision: Precision = "float32"
    deterministic: bool = False

    def check(self) -> None:
        """Raise ValueError if this machine lacks the device or it lacks the precision."""
        if self.kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device: 'cuda', but torch {torch.__version__} sees no GPU; use 'cpu', or install torch with CUDA"
            )
        if self.precision == "tf32" and self.kind == "cpu":
            raise ValueError("precision: 'tf32' needs a GPU; use 'float32' or 'bf16'")

    def prepare(self) -> None:
        """Set up this process for the device."""
        if self.kind == "cpu":
            return
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"

    def computing(self) -> AbstractContextManager[None]:
        """Within the context, tensors are made on the device and products have its precision."""
        return _NOTHING if self.kind == "cpu" and self.precision != "bf16" else self._computing()

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.kind != "cpu":
                stack.enter_context(torch.device(self.kind))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.kind, torch.bfloat16, cache_enabled=False))
            yield

    def put(self, tree: Tree) -> Tree:
        """Move a tree to the device."""
        return tree if self.kind == "cpu" else to_device(tree, self.kind)

    def put_module(self, module: nn.Module) -> nn.Module:
        """The module on the device: a copy on a GPU, itself on the CPU."""
        return module if self.kind == "cpu" else copy.deepcopy(module).to(self.kind)

    def fetch(self, tree: Tree) -> Tree:
        """Move a tree to the CPU."""
        return tree if self.kind == "cpu" else to_device(tree, "cpu")

    def resident(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Move arrays to the device if they fit, else return them unchanged."""
        if self.kind == "cpu":
            return arrays
        free, _ = torch.cuda.mem_get_info()
        fits = sum(array.nbytes for array in arrays.values()) <= DATA_SHARE * free
        return {name: array.to(self.kind) for name, array in arrays.items()} if fits else arrays
