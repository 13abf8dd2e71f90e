"""Where a run may be written: checked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from fl.errors import ConfigError


def check_place(directory: Path) -> None:
    """Raise a `ConfigError` at `out` if a run directory cannot be made or written to."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        what = "is a file" if existing == directory else f"lies below {existing}, which is a file"
        raise ConfigError("out", f"{directory} {what}; name a new folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError("out", f"{directory} cannot be written: no permission in {existing}")
