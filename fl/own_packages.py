"""How Python finds the four packages beside `fl`, whatever packages a user has.

`strategies`, `clients`, `partitions` and `experiments` are names that many projects use. So fl imports its own parts by
their place beside it, as `fl.strategies.fedavg`: no package of a user has such a name. Without `fl.`, the first package
on Python's path has the name:

    a user's package or file      fl does not need the short name, and leaves it to the user
    ours                          `strategies.fedavg` is the module `fl.strategies.fedavg`. A user's folder of this name
                                  without `__init__.py` shares the name: `strategies.mine` is the file in that folder
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("strategies", "clients", "partitions")  # packages of parts, which fl imports
NAMES = (*METHODS, "experiments")


class _Finder(MetaPathFinder):
    """Finds `fl.strategies` beside fl, and the modules of `strategies` while that name is ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        first, _, rest = fullname.partition(".")
        if first == "fl" and rest in NAMES:
            return _beside_fl(rest)
        if first in NAMES and rest and path is not None and _is_ours(fullname.rpartition(".")[0]):
            return _shared(fullname, path)
        return None


class _SameModule(Loader):
    """Gives the module `fl.strategies.fedavg` the short name `strategies.fedavg`, too."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(f"fl.{module.__name__}")


def _beside_fl(name: str) -> ModuleSpec | None:
    file = ROOT / name / "__init__.py"
    if not file.is_file():
        raise ImportError(f"fl needs its own package {name!r} beside it in {ROOT}, and there is none: install fl again")
    return spec_from_file_location(f"fl.{name}", file, submodule_search_locations=[str(file.parent)])


def _is_ours(package: str) -> bool:
    """Whether an imported package, under its short name, is ours."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and Path(file).resolve() == ROOT.joinpath(*package.split("."), "__init__.py")


def _shared(fullname: str, path: Sequence[str]) -> ModuleSpec | None:
    """The module in a user's folder, else ours. A user's folder without `__init__.py` comes last, as everywhere."""
    in_folders = PathFinder.find_spec(fullname, _users_folders(fullname.split(".")[:-1]))
    if in_folders is not None and in_folders.loader is not None:
        return in_folders
    ours = PathFinder.find_spec(fullname, path)
    if ours is None or ours.loader is None:
        if in_folders is None:
            _check_not_hidden(fullname)
        return in_folders
    if fullname.partition(".")[0] in METHODS:
        return ModuleSpec(fullname, _SameModule(), origin=ours.origin)
    return ours


def _users_folders(names: Sequence[str]) -> list[str]:
    """Folders a/b on Python's path, for the names (a, b), that are no packages: neither has an `__init__.py`."""
    found = []
    for entry in sys.path:
        levels = [os.path.join(entry or os.getcwd(), *names[: i + 1]) for i in range(len(names))]
        if os.path.isdir(levels[-1]) and not any(os.path.isfile(os.path.join(x, "__init__.py")) for x in levels):
            found.append(levels[-1])
    return found


def _check_not_hidden(fullname: str) -> None:
    """Raise an error if a user's package that comes after ours on Python's path has the module."""
    package = fullname.partition(".")[0]
    for entry in sys.path:
        folder = Path(entry or os.getcwd(), package)
        if (folder / "__init__.py").is_file() and folder.resolve() != ROOT / package:
            if folder.joinpath(*fullname.split(".")[1:]).with_suffix(".py").is_file():
                raise ModuleNotFoundError(
                    f"no module {fullname!r}: {package!r} is the package of fl in {ROOT}, which comes before {folder} "
                    f"on Python's path. Put {folder.parent} first; fl finds its own as 'fl.{package}'",
                    name=fullname,
                )


def install() -> None:
    """Let Python find our packages this way, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
