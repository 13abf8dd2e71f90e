"""Half precision: 2 bytes a number.

    fp16   relative error <= 2^-11 for 2^-14 <= |v| <= 65504, absolute <= 2^-25 below; beyond 65504 it is infinite
    bf16   relative error <= 2^-8 over the range of float32

An overflow is not hidden: what arrives is infinite, as it would be from a real sender.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl.communication.codec import Codec, Encoded
from fl.registry import register


class Cast(Codec):
    """Numbers rounded to `dtype`, to nearest, ties to even."""

    elementwise: ClassVar[bool] = True
    dtype: ClassVar[torch.dtype]

    def encode(self, values):
        if not values.is_floating_point():
            raise ValueError(
                f"{self} rounds floating numbers, got {values.dtype}; put it in front of the codec that made those"
            )
        return Encoded({"values": values.to(self.dtype)})

    def decode(self, encoded, n):
        return encoded.parts["values"].float()

    def sizes(self, n, width=4):
        return 0, n, self.dtype.itemsize


@register("codec", "fp16")
@dataclass(frozen=True)
class FP16(Cast):
    """IEEE half precision."""

    dtype: ClassVar[torch.dtype] = torch.float16


@register("codec", "bf16")
@dataclass(frozen=True)
class BF16(Cast):
    """The upper half of float32."""

    dtype: ClassVar[torch.dtype] = torch.bfloat16
