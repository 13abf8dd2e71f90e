"""Parameters of clients that lie in several places, joined when they are read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fl.tensors.buffers import pooled_buffer
from fl.tensors.params import Params


class Gathered(Params):
    """Parameters of C clients: rows of `known` for some, and one value for all others.

    They are copied into one array when `buffers` is read. Code that reads each client's parameters where they lie
    (`places`) needs no copy.

    Args:
        has: bool (C,), which clients have a row in `known`.
        known: parameters of these clients, in their order.
        other: parameters of each of the other clients, of the same layout and without the axis of clients.

    >>> one = Params.of({"w": torch.tensor([1.0, 2.0])})
    >>> several = Gathered(np.array([False, True]), Params(one.layout, (3 * one.buffers[0][None],)), one)
    >>> several["w"].tolist()
    [[1.0, 2.0], [3.0, 6.0]]
    """

    __slots__ = ("has", "known", "other", "joined", "begun")

    def __init__(self, has: np.ndarray, known: Params, other: Params):
        self.layout, self.has, self.known, self.other = other.layout, has, known, other
        self.joined: tuple[Tensor, ...] | None = None
        self.begun = 0

    @property
    def buffers(self) -> tuple[Tensor, ...]:  # type: ignore[override]  # a property in place of an attribute
        """The parameters in memory of their own. They are copied once; later writes to them last."""
        if self.joined is None:
            self.joined = tuple(
                joined_rows(self.has, known, other) for known, other in zip(self.known.buffers, self.other.buffers)
            )
            self.begun = sum(buffer._version for buffer in self.joined)
        return self.joined

    @property
    def batch(self) -> torch.Size:
        """Shape of the leading axes, (C, ...)."""
        return torch.Size((len(self.has), *self.other.batch))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.other.device

    @property
    def version(self) -> int:
        """How often they have been written."""
        return 0 if self.joined is None else sum(buffer._version for buffer in self.joined) - self.begun


def joined_rows(has: np.ndarray, known: Tensor, other: Tensor) -> Tensor:
    """Return rows of C clients in new memory: those of `known` where `has` (C,) is true, and `other` elsewhere."""
    rows = rows_like(other, len(has))
    old, new = (torch.from_numpy(np.flatnonzero(where)) for where in (has, ~has))
    rows[old], rows[new] = known, other
    return rows


def rows_like(one: Tensor, count: int) -> Tensor:
    """Return memory for `count` tensors like one."""
    if one.dtype == torch.float32 and one.device.type == "cpu":
        return pooled_buffer(count * one.numel()).view(count, *one.shape)
    return one.new_empty(count, *one.shape)


def places(params: Params, count: int) -> tuple[np.ndarray, list[Tensor]]:
    """Return where the parameters of `count` clients lie, and what keeps that memory.

    Args:
        params: of each client, batched (C,), or the same for all. They have one buffer, on the CPU.
        count: number of clients, C.

    Returns:
        addresses, int64 (C,), and the tensors whose memory they are in.
    """
    if isinstance(params, Gathered) and params.joined is None:
        known, other = params.known.buffers[0].contiguous(), params.other.buffers[0].contiguous()
        found = np.full(count, other.data_ptr())
        found[params.has] = known.data_ptr() + np.arange(len(known)) * (known.stride(0) * known.itemsize)
        return found, [known, other]
    buffer = params.buffers[0].contiguous()
    step = buffer.stride(0) * buffer.itemsize if params.batch else 0
    return buffer.data_ptr() + np.arange(count) * step, [buffer]
