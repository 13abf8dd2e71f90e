"""How the functions of this folder are compiled.

`part` is an ordinary function, `inlined` is copied into its callers: calls within loops cost a tenth of the time.
Neither counts references to arrays, which would take longer than a small layer. So they make no arrays, and what they
return belongs to their caller's arguments. `owner` counts references. An `owner` may not call a `part` that returns
arrays, because it would give them up without having counted them; `in_caller` becomes the caller's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

from numba import njit, types

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": True}
_UNCOUNTED = {**OPTIONS, "_nrt": False}
owner: Any = njit(**OPTIONS)
part: Any = njit(**_UNCOUNTED)
inlined: Any = njit(**_UNCOUNTED, forceinline=True)
in_caller: Any = njit(**OPTIONS, inline="always")


def signature(function: Callable[..., None]) -> Any:
    """The signature of a function without a result; its arguments are Annotated[Python's type, numba's type]."""
    hints = get_type_hints(function, include_extras=True)
    return types.void(*(hint.__metadata__[0] for name, hint in hints.items() if name != "return"))
