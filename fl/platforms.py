"""The systems that fl runs on: Linux. Nobody has tested macOS. Windows lacks locks and sockets that runs need."""

import sys

WINDOWS = (
    "fl needs Linux, because runs lock their files and workers talk in ways that Windows does not have. On Windows, "
    "use WSL2 or a Linux container: docs/install.md"
)


def require_a_known_system() -> None:
    """Raise an ImportError with the way out on Windows."""
    if sys.platform == "win32":
        raise ImportError(WINDOWS)
