"""The configurations that come with fl, by name: `fl run quickstart` works in an empty folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from fl.own_packages import ROOT

FOLDER = ROOT / "experiments"


def packaged(name: str) -> Path | None:
    """The file of a packaged configuration, or None.

    Args:
        name: path below `experiments/`, without `.yaml`.

    >>> packaged("quickstart").name, packaged("slowstart")
    ('quickstart.yaml', None)
    """
    path = FOLDER / f"{name}.yaml"
    return path if name in _names() else None


def hint(path: Path) -> str:
    """A sentence that names the packaged configuration closest to a file that does not exist, or says how to list them.

    >>> hint(Path("experiments/quickstart.yaml"))
    ' Did you mean quickstart, which comes with fl?'
    """
    name = path.with_suffix("").as_posix().removeprefix("experiments/")
    close = difflib.get_close_matches(name, _names(), 1)
    if close:
        return f" Did you mean {close[0]}, which comes with fl?"
    return f" quickstart and the other files of {FOLDER} come with fl: name them by their path, without .yaml."


def _names() -> list[str]:
    return [path.relative_to(FOLDER).with_suffix("").as_posix() for path in sorted(FOLDER.rglob("*.yaml"))]
