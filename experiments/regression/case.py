"""The description of one run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

EXPERIMENTS = Path(__file__).resolve().parent.parent
FOLDER = "{folder}"  # in a configuration, stands for the temporary folder of the run
BEFORE = "{folder}/before"  # in a configuration, stands for the directory of the run `Case.before`


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        name: its name in the record.
        config: its configuration, a dict or a YAML file.
        overrides: overrides of the configuration by dotted path.
        data: folders of FL_DATA that the run reads; the run is skipped if one is missing.
        packages: Python packages that the run needs; the run is skipped if one is missing.
        writes: a function of `parts.py` that writes files into the run's folder before the start.
        before: another run, performed first in the folder BEFORE.
        how: "run"; "resume" stops after the first round and resumes; "flower" exports a Flower app and runs it.
    """

    name: str
    config: Mapping[str, Any] | Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    writes: str | None = None
    before: Case | None = None
    how: Literal["run", "resume", "flower"] = "run"

    def missing(self) -> str | None:
        """Return the first data folder or package that is missing, or None."""
        folder = Path(os.environ.get("FL_DATA") or Path.home() / ".cache/fl/data")
        missing = [f"data folder {name}" for name in self.data if not (folder / name).is_dir()]
        missing += [f"package {name}" for name in self.packages if importlib.util.find_spec(name) is None]
        return missing[0] if missing else None


def insert_folder(value: Any, folder: Path) -> Any:
    """Return a configuration with FOLDER replaced by the temporary folder."""
    if isinstance(value, str):
        return value.replace(FOLDER, str(folder))
    if isinstance(value, Mapping):
        return {key: insert_folder(item, folder) for key, item in value.items()}
    return [insert_folder(item, folder) for item in value] if isinstance(value, (list, tuple)) else value
