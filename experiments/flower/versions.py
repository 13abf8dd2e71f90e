"""Run the tests of fl.flower on other versions of Flower.

    python -m experiments.flower.versions [--versions 1.22.0 1.41.0 1.42.0] [--quick] [--folder DIR]

Each version is installed into a separate folder, with those of its requirements that differ from the installed
packages. Python then searches this folder first. The installed version is tested, too. The exit code is 1 if a test
failed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

from experiments.flower.packages import ROOT, environment, install

# the oldest version that setup.cfg allows, the one before that of constraints.txt, and that one
VERSIONS = ("1.22.0", "1.41.0", "1.42.0")


def run_tests(folder: Path | None, results: Path, quick: bool) -> tuple[str, dict[str, int]]:
    """Run the tests, without the slow ones if `quick`.

    Returns the version of flwr, and the numbers of passed, skipped and failed tests.
    """
    env = environment(folder)
    code = "import flwr, importlib.metadata as m; print(m.version('flwr'))"
    version = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/flower", f"--junitxml={results}"]
    pytest += ["-m", "not slow"] if quick else []
    output = results.with_suffix(".log")
    with output.open("w") as log:
        subprocess.run(pytest, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if not results.exists():
        raise RuntimeError(f"pytest did not run; see {output}")
    suite = next(xml.parse(results).getroot().iter("testsuite")).attrib
    failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
    return version.strip(), {"passed": int(suite["tests"]) - failed - skipped, "skipped": skipped, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=VERSIONS, help="versions of flwr to test")
    parser.add_argument("--quick", action="store_true", help="leave out the slow tests")
    folder_help = "folder of the installed versions, which are reused; default: a temporary one"
    parser.add_argument("--folder", type=Path, default=None, help=folder_help)
    args = parser.parse_args()
    base = (args.folder or Path(tempfile.mkdtemp())).resolve()
    base.mkdir(parents=True, exist_ok=True)
    installed = importlib.metadata.version("flwr")
    print("| flwr | passed | skipped | failed |")
    print("|---|---|---|---|")
    failed = False
    for version in [installed, *(v for v in args.versions if v != installed)]:
        folder = None if version == installed else install(base / f"flwr-{version}", f"flwr=={version}")
        found, counts = run_tests(folder, base / f"{version}.xml", args.quick)
        if found != version:
            raise RuntimeError(f"flwr {version} is in {folder}, but Python finds {found}")
        print(f"| {version} | " + " | ".join(map(str, counts.values())) + " |", flush=True)
        failed |= counts["failed"] > 0 or not counts["passed"]
    if failed:
        print(f"see {base}/*.log", file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
