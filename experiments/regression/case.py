"""The description of one run."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

EXPERIMENTS = Path(__file__).resolve().parent.parent
FOLDER = "{folder}"  # in a configuration: the temporary folder of the run
BEFORE = "{folder}/before"  # in a configuration: the directory of the run that was made before


@dataclass(frozen=True)
class Case:
    """One run: its name in the record, its configuration (a dict or a YAML file), and overrides by dotted path.

    data: folders of FL_DATA that the run reads; the run is skipped where one is missing.
    packages: Python packages likewise.
    writes: the name of a function in `parts.py` that writes files into the run's folder before it starts.
    before: another run that is made first, into the folder BEFORE.
    how: "run"; "resume": stopped after the first round and resumed; "flower": exported as a Flower app, which runs.
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
        """What the run needs and is not here."""
        folder = Path(os.environ.get("FL_DATA") or Path.home() / ".cache/fl/data")
        lacking = [f"data folder {name}" for name in self.data if not (folder / name).is_dir()]
        lacking += [f"package {name}" for name in self.packages if importlib.util.find_spec(name) is None]
        return lacking[0] if lacking else None


def placed(value: Any, folder: Path) -> Any:
    """A configuration in which the temporary folder has its real name."""
    if isinstance(value, str):
        return value.replace(FOLDER, str(folder))
    if isinstance(value, Mapping):
        return {key: placed(item, folder) for key, item in value.items()}
    return [placed(item, folder) for item in value] if isinstance(value, (list, tuple)) else value
