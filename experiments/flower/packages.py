"""Packages in folders of their own: other versions of Flower, and what an app needs beside the installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parent.parent.parent
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
KEPT = ("flwr", "torch")  # apps run with the installed versions of these
# Importing a GPU build of torchvision beside a CPU build of torch fails, because two operators are missing. The apps
# never call them, so this code declares them.
DECLARATIONS = """
import importlib.abc, sys

class Before(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            library = sys.torchvision_library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.meta_path.insert(0, Before())
"""


def environment(*folders: Path | None) -> dict[str, str]:
    """Return environment variables with which Python searches `folders` and this repository first."""
    path = [str(place) for place in (*folders, ROOT, os.environ.get("PYTHONPATH")) if place]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def install(folder: Path, *requirements: str) -> Path:
    """Install requirements and their dependencies into `folder`, except those already installed; return the folder.

    pip's error is a `subprocess.CalledProcessError` with the text in `stderr`.
    """
    if not (done := folder / "installed.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / "report.json"
        _pip("--dry-run", "--report", report, *requirements)
        packages = [package["metadata"] for package in json.loads(report.read_text())["install"]]
        exact = [f"{package['name']}=={package['version']}" for package in packages]
        if exact:
            _pip("--no-deps", "--target", folder, *exact)
        report.rename(done)
    return folder


def _pip(*arguments: str | Path) -> None:
    subprocess.run([*PIP, *arguments], check=True, stderr=subprocess.PIPE, text=True)


class NotInstallable(Exception):
    """pip finds no versions that an app and the installed Flower both accept; the message has the packages and why."""


def packages_of(app: Path, base: Path, more: Sequence[str] = ()) -> Path | None:
    """Install what an app requires into a folder below `base`; None if the installed packages suffice.

    The app runs with the installed versions of flwr and torch. Its other requirements are installed as it states them,
    or, if pip finds no such versions, in the newest versions that fit. `more` are requirements for all apps.
    """
    requirements = _requirements(app)
    if all(_is_installed(requirement) for requirement in [*requirements, *map(Requirement, more)]):
        return None
    pins = [*more, *(f"{name}=={importlib.metadata.version(name)}" for name in KEPT)]
    stated = [str(requirement) for requirement in requirements]
    newest = [f"{r.name}[{','.join(sorted(r.extras))}]" if r.extras else r.name for r in requirements]
    for wanted in (stated, newest):
        folder = base / f"for-{hashlib.sha256(' '.join([*wanted, *pins]).encode()).hexdigest()[:12]}"
        try:
            install(folder, *wanted, *pins)
        except subprocess.CalledProcessError as error:
            errors = [line for line in error.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0].removeprefix("ERROR: ") if errors else error.stderr.strip()
            continue
        _declare_operators(folder, wanted)
        return folder
    raise NotInstallable(f"{', '.join(newest)} ({reason})")


def _requirements(app: Path) -> list[Requirement]:
    """Return the requirements of an app for this machine, without those of `KEPT`; [] if its file cannot be read."""
    try:
        project = tomllib.loads((app / "pyproject.toml").read_text(errors="replace")).get("project", {})
        found = [Requirement(text) for text in project.get("dependencies", [])]
    except (tomllib.TOMLDecodeError, InvalidRequirement):
        return []  # the run says what is wrong
    return [r for r in found if r.name not in KEPT and (r.marker is None or r.marker.evaluate())]


def _is_installed(requirement: Requirement) -> bool:
    """Whether the installed version fits. A requirement with extras counts as missing, because of their packages."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return not requirement.extras and requirement.specifier.contains(version, prereleases=True)


def _declare_operators(folder: Path, wanted: list[str]) -> None:
    """Let `import torchvision` work where it is a build for GPUs and torch is not."""
    if not any(text.startswith("torchvision") for text in wanted):
        return
    test = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(test, env=environment(folder), capture_output=True).returncode:
        (folder / "sitecustomize.py").write_text(DECLARATIONS)
