"""How the functions of this folder are compiled.

`part` is an ordinary function, `inlined` is copied into its callers: calls within loops cost a tenth of the time.
"""

from __future__ import annotations

from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
part: Any = njit(**OPTIONS)
inlined: Any = njit(**OPTIONS, forceinline=True)
