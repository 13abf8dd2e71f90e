"""Trees between processes: a pickle, and the tensors' memory beside it without a copy.

    code, memories = pack(obj)
    obj = unpack(code, memories)

A tensor that maps a file (`map_tensor`) travels as the position in that file. Parameters that are views of a large
buffer travel with the buffer, once, and are views of it again. Parameters of a subclass keep it and their attributes.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import warnings
from types import FunctionType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from fl.tensors.serialise import raw_bytes

LARGE = 1 << 20  # bytes of a buffer, from which its views travel as views


class _Pickler(cloudpickle.Pickler):
    """Pickle code with cloudpickle, user code by value; keep tensor memory out of band."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.buffers: dict[int, Tensor] = {}  # large buffers by their address, as bytes

    def buffer(self, tensor: Tensor) -> Tensor | None:
        """Return the large buffer that a contiguous tensor lies in, as bytes; None for a small one."""
        storage = tensor.untyped_storage()
        if tensor.device.type != "cpu" or storage.nbytes() < LARGE or not tensor.is_contiguous():
            return None
        if storage.data_ptr() not in self.buffers:
            self.buffers[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage)
        return self.buffers[storage.data_ptr()]

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Parameter):
            if type(obj) is not nn.Parameter:  # such as a quantised weight of bitsandbytes, with attributes of its own
                plain = nn.Parameter(obj.detach().as_subclass(Tensor), obj.requires_grad)
                return _of_class, (type(obj), plain), vars(obj), None, None, _set_attributes
            own, buffer = obj.detach(), self.buffer(obj.detach())
            if buffer is not None:
                start = own.storage_offset() * own.itemsize
                part = (buffer, start, tuple(own.shape), str(own.dtype)[6:])
                return _parameter, (*part, obj.requires_grad)
            return nn.Parameter, (own, obj.requires_grad)
        if isinstance(obj, Tensor):
            origin = getattr(obj, "origin", None)
            if origin is not None:
                return map_tensor, origin
            flat = obj.detach().contiguous()
            known = self.buffers.get(flat.untyped_storage().data_ptr())
            if known is not None and known is not obj and known.nbytes == flat.nbytes:
                return _part, (known, 0, tuple(flat.shape), str(flat.dtype)[6:])
            return _tensor, (pickle.PickleBuffer(raw_bytes(flat)), tuple(flat.shape), str(flat.dtype)[6:])
        if not isinstance(obj, (type, FunctionType)) or _is_installed(obj):
            return NotImplemented  # plain pickle: not code, or code that each process can import
        return super().reducer_override(obj)


def _is_installed(code: type | FunctionType) -> bool:
    """Return whether each process of a run can import `code` by its name."""
    return (code.__module__ or "").startswith(("fl.", "numpy.", "torch.")) and "<" not in code.__qualname__


def _tensor(buffer: bytes | memoryview, shape: tuple[int, ...], dtype: str) -> Tensor:
    memory = memoryview(buffer)
    if not memory.nbytes:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    if memory.readonly:  # from another node's object store; torch warns about read-only memory
        memory = np.frombuffer(memory, np.uint8).copy().data
    return torch.frombuffer(memory, dtype=torch.uint8).view(getattr(torch, dtype)).view(shape)


def _part(buffer: Tensor, start: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return a view of a part of a buffer of bytes."""
    kind: torch.dtype = getattr(torch, dtype)
    return buffer[start : start + math.prod(shape) * kind.itemsize].view(kind).view(shape)


def _parameter(buffer: Tensor, start: int, shape: tuple[int, ...], dtype: str, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(_part(buffer, start, shape, dtype), requires_grad)


def _of_class(kind: type[nn.Parameter], plain: nn.Parameter) -> nn.Parameter:
    """Return a parameter of a subclass with the memory of a plain one."""
    return Tensor._make_subclass(kind, plain.detach(), plain.requires_grad)


def _set_attributes(parameter: nn.Parameter, attributes: dict[str, Any]) -> None:
    vars(parameter).update(attributes)


def map_tensor(path: str, offset: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Map a part of a file as a read-only tensor. Its attribute `origin` holds the four arguments."""
    try:
        array = np.memmap(path, dtype, "r", offset, shape)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist here; a mapped data file must be visible to all nodes under the same path"
        ) from None
    mapped: mmap.mmap = array._mmap  # type: ignore[attr-defined]  # numpy has no public name for it
    mapped.madvise(mmap.MADV_RANDOM)  # batches are random rows, so reading ahead is useless
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # data is never written
        tensor = torch.from_numpy(array)
    setattr(tensor, "origin", (path, offset, shape, dtype))
    return tensor


def pack(obj: Any) -> tuple[bytes, list[memoryview]]:
    """Return (code, memories): a pickle, and the memory of its tensors and arrays, not copied."""
    memories: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=memories.append).dump(obj)
    return file.getvalue(), [m.raw() for m in memories]


def unpack(code: bytes, memories: list[memoryview]) -> Any:
    """Invert `pack`. The tensors are views of `memories`."""
    return pickle.loads(code, buffers=memories)
