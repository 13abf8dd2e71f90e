"""Build the wheel and the sdist, install them, and run the quick start outside the checkout.

make dist-check      both, each in an empty environment with all dependencies: minutes and gigabytes
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("fl", "strategies", "clients", "partitions", "experiments", "tests", "docs")
BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the sdist from a copy of the checkout, which then holds no files of a build.

    Returns:
        Path of the wheel and of the sdist.
    """
    copy, out = folder / "checkout", folder / "dist"
    out.mkdir(parents=True)
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, copy)
    run((sys.executable, "-c", BUILD, str(out)), copy)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def install(distribution: Path, environment: Path, dependencies: bool) -> Path:
    """Install a wheel or an sdist into a new environment; return the environment's folder of commands.

    Args:
        distribution: the file to install.
        environment: a folder that does not exist.
        dependencies: whether pip installs them; otherwise those of this interpreter are used.
    """
    run((sys.executable, "-m", "venv", str(environment)), ROOT)
    commands = environment / "bin"
    pip = [str(commands / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if dependencies:
        run((*pip, "-c", str(ROOT / "constraints.txt"), str(distribution)), ROOT)
    else:
        packages = next((environment / "lib").glob("python*")) / "site-packages"
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run((*pip, "--no-deps", "--no-index", "--no-build-isolation", str(distribution)), ROOT)
    return commands


def quick_start(commands: Path, folder: Path, *overrides: str) -> None:
    """Run the two commands of docs/install.md in an empty folder."""
    folder.mkdir()
    run((str(commands / "fl"), "run", "quickstart", *overrides), folder)
    run((str(commands / "fl"), "report", "runs"), folder)


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command without the variables that lead Python to this checkout; return its standard output."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build both, and install and run each with all dependencies."""
    folder = ROOT / "build" / "dist-check"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    for distribution in build(folder):
        print(f"{distribution.name}: built, {time.perf_counter() - began:.0f} s", flush=True)
        kind, began = distribution.suffix.removeprefix("."), time.perf_counter()
        commands = install(distribution, folder / kind, dependencies=True)
        print(f"    installed with all dependencies: {time.perf_counter() - began:.0f} s", flush=True)
        began = time.perf_counter()
        quick_start(commands, folder / f"runs-{kind}")
        print(f"    fl run quickstart, fl report runs: {time.perf_counter() - began:.0f} s", flush=True)
        shutil.rmtree(folder / kind)
        began = time.perf_counter()


if __name__ == "__main__":
    main()
