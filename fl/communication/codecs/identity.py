"""Send the numbers unchanged.    encode(v) = v"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fl.communication.codec import Codec, Encoded, Input, Output
from fl.registry import register


@register("codec", "identity", "none")
@dataclass(frozen=True)
class Identity(Codec):
    """No compression: the bytes are those of the numbers."""

    elementwise: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    takes: ClassVar[Input] = "any"
    gives: ClassVar[Output] = "same"

    def encode(self, values: Tensor) -> Encoded:
        return Encoded({"values": values})

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        return encoded.tensor("values")

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, n, width

    def bound(self, values: Tensor) -> float:
        return 0.0
