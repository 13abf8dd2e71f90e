"""Run the quick tests with the newest and the oldest versions that setup.cfg allows, whatever constraints.txt pins.

make newest      each package as new as setup.cfg allows
make oldest      each package that setup.cfg names as old as it allows
python -m tests.stacks newest --python python3.13 -- tests/test_config.py      another Python, and chosen tests
python -m tests.stacks newest --installed -- tests/test_config.py              what the last call installed

A stack lies in build/STACK-PYTHON, such as build/newest-3.13.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOLUTION = {"newest": "highest", "oldest": "lowest-direct"}
DOORS = "tests/execution/test_doors.py"
TOLD = ("torch", "ray", "flwr", "numpy", "numba", "transformers", "peft", "pydantic", "pyarrow")


def folder_of(stack: str, python: str) -> Path:
    """Return the environment of a stack.

    Args:
        stack: a key of `RESOLUTION`.
        python: the interpreter to build with.
    """
    code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return ROOT / "build" / f"{stack}-{told}"


def build(stack: str, python: str) -> Path:
    """Install a stack into a new environment; return its interpreter. The arguments are those of `folder_of`."""
    folder = folder_of(stack, python)
    shutil.rmtree(folder, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", python, str(folder)], check=True)
    began, interpreter = time.perf_counter(), folder / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--python", str(interpreter), "--resolution", RESOLUTION[stack]]
    subprocess.run([*install, "--editable", ".[test]"], cwd=ROOT, check=True)
    versions = f"*(name + ' ' + version(name) for name in {TOLD})"
    code = f"from importlib.metadata import version; import platform; print(platform.python_version(), {versions})"
    told = subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{stack}: {told}; installed in {time.perf_counter() - began:.0f} s", flush=True)
    return interpreter


def test(interpreter: Path, chosen: list[str]) -> int:
    """Run the chosen tests, or the quick ones and those of Ray's ports; return the exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    pytest = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if chosen:
        return subprocess.run([*pytest, *chosen], cwd=ROOT, env=environment).returncode
    quick = [*pytest, "-n", "2", "--dist", "loadgroup", "-m", "not slow"]
    codes = [subprocess.run(c, cwd=ROOT, env=environment).returncode for c in (quick, [*pytest, DOORS])]
    return max(codes)


def main() -> int:
    """Build a stack and test it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", choices=RESOLUTION)
    parser.add_argument("--python", default=sys.executable, help="interpreter to build with")
    parser.add_argument(
        "--installed", action="store_true", help="use the environment of the last call; install nothing"
    )
    # argparse would take the arguments after an option and -- for unknown ones
    own, tests = sys.argv[1:], list[str]()
    if "--" in own:
        own, tests = own[: own.index("--")], own[own.index("--") + 1 :]
    chosen = parser.parse_args(own)
    interpreter = folder_of(chosen.stack, chosen.python) / "bin" / "python"
    if not chosen.installed:
        interpreter = build(chosen.stack, chosen.python)
    elif not interpreter.exists():
        parser.error(f"{interpreter} does not exist; leave out --installed")
    return test(interpreter, tests)


if __name__ == "__main__":
    sys.exit(main())
