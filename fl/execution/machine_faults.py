"""Tell faults of the machine from faults of a client.

A client whose work fails can be left out of a round (`execution.on_client_error: drop`). A full disk, memory that is
used up, a dead store of Ray or a lost file of the run is no fault of the client: the run stops.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import torch

from fl.errors import MachineError

NUMBERS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO),
}


def is_machine_fault(error: BaseException, folders: Iterable[Path]) -> bool:
    """Return whether the machine has failed, or a file in one of the run's `folders` is lost."""
    if isinstance(error, (MachineError, MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        file = error.filename
        lost = isinstance(file, (str, Path)) and any(folder in Path(file).parents for folder in folders)
        return error.errno in NUMBERS or lost
    if type(error).__module__.partition(".")[0] == "ray":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch: memory is used up
