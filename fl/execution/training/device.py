"""Where clients train and are evaluated: on CPU cores, or on GPUs that workers share.

    data, module, first tensors      moved once, when a worker begins (data that leave no room stay in memory, and samples are moved)
    broadcast, client states         moved as they come
    updates                          lifted and added where they are, unless a codec or a transform wants them; of their tree O(log n)
                                     nodes come back

Within `Device.computing` tensors are made on the device, so that methods need not know it. What is drawn (shuffles, masks, noise) is
drawn on the CPU and is the same everywhere. The server's part, states on disk and codecs are the CPU's.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fl.tensors.trees import Tree, to_device

Kind = Literal["cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]
ROOM = 0.5  # of a GPU's free memory that data may take; the rest is for models and activations


@dataclass(frozen=True)
class Device:
    """kind: cpu or cuda.   precision: of products and convolutions: float32, tf32 (of GPUs: rounded inputs), or bf16 by autocast.
    deterministic: only algorithms that give the same bits each time; on CPU all do."""

    kind: Kind = "cpu"
    precision: Precision = "float32"
    deterministic: bool = False

    def check(self) -> None:
        """That it is there."""
        if self.kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"device: 'cuda', but torch {torch.__version__} sees no GPU; use 'cpu', or install torch with CUDA"
            )
        if self.precision == "tf32" and self.kind == "cpu":
            raise ValueError("precision: 'tf32' is of GPUs; use 'float32' or 'bf16'")

    def prepare(self) -> None:
        """Set up this process."""
        if self.kind == "cpu":
            return
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS, before its first use
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Within, tensors are made on the device, and products have its precision."""
        with contextlib.ExitStack() as stack:
            if self.kind != "cpu":
                stack.enter_context(torch.device(self.kind))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.kind, torch.bfloat16, cache_enabled=False))
            yield

    def put(self, tree: Tree) -> Tree:
        """The tree on the device."""
        return tree if self.kind == "cpu" else to_device(tree, self.kind)

    def put_module(self, module: nn.Module) -> nn.Module:
        """The module on the device, a copy unless that is the CPU."""
        return module if self.kind == "cpu" else copy.deepcopy(module).to(self.kind)

    def fetch(self, tree: Tree) -> Tree:
        """The tree in the CPU's memory."""
        return tree if self.kind == "cpu" else to_device(tree, "cpu")

    def resident(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The arrays on the device if they fit, else as they are."""
        if self.kind == "cpu":
            return arrays
        free, _ = torch.cuda.mem_get_info()
        fits = sum(array.nbytes for array in arrays.values()) <= ROOM * free
        return {name: array.to(self.kind) for name, array in arrays.items()} if fits else arrays
