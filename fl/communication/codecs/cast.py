"""Half precision: 2 bytes per number.

    fp16   relative error <= 2^-11 for 2^-14 <= |v| <= 65504, absolute error <= 2^-25 below; larger numbers are infinite
    bf16   relative error <= 2^-8 over the range of float32

An overflow is not hidden: the receiver gets an infinity, as from a real sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl.communication.codec import Codec, Encoded
from fl.registry import register


class Cast(Codec):
    """Base of codecs that round to the nearest number of `dtype`, ties to even."""

    elementwise: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype]

    def encode(self, values: Tensor) -> Encoded:
        if not values.is_floating_point():
            raise ValueError(
                f"{self} rounds floating numbers, got {values.dtype}; put it in front of the codec that made those"
            )
        return Encoded({"values": values.to(self.dtype)})

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        return encoded.tensor("values").float()

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, n, self.dtype.itemsize


@register("codec", "fp16")
@dataclass(frozen=True)
class FP16(Cast):
    """Round to IEEE half precision."""

    dtype: ClassVar[torch.dtype] = torch.float16


@register("codec", "bf16")
@dataclass(frozen=True)
class BF16(Cast):
    """Round to bfloat16, the upper half of float32."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
