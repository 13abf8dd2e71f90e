"""How the functions of this folder are compiled.

`part` is an ordinary function, `inlined` is copied into its callers: calls within loops cost a tenth of the time.
"""

from __future__ import annotations

from numba import njit

OPTIONS = {"nogil": True, "error_model": "numpy"}
part = njit(**OPTIONS)
inlined = njit(**OPTIONS, forceinline=True)
