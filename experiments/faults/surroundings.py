"""Faults of disks and of clients: one clear line, nothing is lost, and the run goes on once the cause is gone."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.faults import work
from experiments.faults.drivers import RAY, undisturbed
from experiments.faults.facts import difference, facts
from experiments.faults.methods import METHODS, configuration
from experiments.faults.processes import start
from experiments.faults.table import Outcome
from fl.storage.run import committed

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
ON_SMALL_DISK = ("fedavg, baselines", "scaffold", "buffered server", "error feedback, delta")
PAGE = 4096  # bytes, the unit of a tmpfs


def cases(errors: int, disks: int) -> dict[str, Callable[[Path, int], Outcome]]:
    """Return the cases by name; `errors`, `disks`: faults of each method."""
    found: dict[str, Callable[[Path, int], Outcome]] = {}
    for method in METHODS:
        found[f"failing calls, {method}"] = lambda out, seed, method=method: failing_calls(method, out, seed, errors)
    for method in ON_SMALL_DISK:
        found[f"full disk, {method}"] = lambda out, seed, method=method: full_disk(method, out, seed, disks)
    found["read-only folder"] = read_only
    for lie in LIES:
        found[f"client, {lie}"] = lambda out, seed, lie=lie: lying(lie, out)
    found["client, hangs on Ray"] = lambda out, seed: lying("hangs", out, RAY | {"client_timeout": 2.0})
    return found


# -- commands ---------------------------------------------------------------------------------------------------------
class Command:
    """A run by the command line; `fl resume` once it has a commit.

    Args:
        raw: its configuration.
        out: the run directory.
        folder: for the configuration file and the log.
    """

    def __init__(self, raw: Any, out: Path, folder: Path):
        self.out, self.log, self.file = out, folder / "command.log", folder / "run.yaml"
        self.file.write_text(json.dumps(raw))

    def perform(self, seed: int = 0, fatal: int | None = None, error: int | None = None) -> tuple[int, str]:
        """Run or resume; return the exit code and the output."""
        self.log.unlink(missing_ok=True)
        words = ["resume", str(self.out)] if committed(self.out) else ["run", str(self.file), "--out", str(self.out)]
        process = start(work.failing_command, words, seed, fatal, error, log=self.log)
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise RuntimeError("the command hangs")
        return process.exitcode, self.log.read_text(errors="replace")


def fault_of(code: int, output: str, *words: str) -> str:
    """Why a command that failed did not do so with one clear line; an empty text if it did."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if code not in (1, 2):
        return f"exit code {code}: {output[-300:]}"
    if "Traceback" in output or len(errors) != 1:
        return f"no single line of an error: {output[-500:]}"
    return "" if any(word in errors[0] for word in words) or not words else f"another reason: {errors[0]}"


def _ended(command: Command, expected: dict[str, Any]) -> str:
    """Run to the end without a fault; return what differs, or an empty text."""
    code, output = command.perform()
    return f"exit code {code}: {output[-300:]}" if code else difference(facts(command.out), expected)


# -- disks ------------------------------------------------------------------------------------------------------------
def failing_calls(method: str, out: Path, seed: int, errors: int) -> Outcome:
    """Have random calls that change files fail, writes after a part of their bytes; resume each time."""
    case, begin, draw = f"failing calls, {method}", time.perf_counter(), random.Random(f"{seed} fail {method}")
    expected, calls, _ = undisturbed(method, out)
    done = harmless = resumes = 0
    command = Command(configuration(method), out / "run", out)
    while done < errors:
        number, error = draw.randrange(1, calls), draw.choice(ERRORS)
        code, output = command.perform(draw.randrange(1 << 30), number, error)
        done += 1
        # a failed fsync or chmod after the last commit has no consequence
        problem = fault_of(code, output, *SAID) if code else difference(facts(command.out), expected)
        if not problem and code == 0:
            harmless += 1
            shutil.rmtree(command.out)
        resumes += code != 0
        if problem:
            note = f"call {number}, {errno.errorcode[error]}: {problem}"[:600]
            return Outcome(case, done, resumes, False, time.perf_counter() - begin, note.replace("\n", " "))
    problem = _ended(command, expected)
    note = problem or (f"{harmless} without effect" if harmless else "")
    return Outcome(case, done, resumes, not problem, time.perf_counter() - begin, note[:600])


SAID = ("No space left", "Input/output error", "quota", "Read-only", "Too many open files", "cannot be written")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Context with a tmpfs of `size` bytes at a folder. Yields a function that mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield lambda options: _remount(folder, options)
    finally:
        subprocess.run(["umount", folder], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True, capture_output=True)


def may_mount(out: Path) -> bool:
    """Whether this process may mount a file system."""
    try:
        with small_disk(out / "probe", PAGE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def full_disk(method: str, out: Path, seed: int, disks: int) -> Outcome:
    """Run on disks of random sizes, and give them more room once they are full."""
    case, begin, draw = f"full disk, {method}", time.perf_counter(), random.Random(f"{seed} disk {method}")
    if not may_mount(out):
        return Outcome(case, 0, 0, True, 0.0, "left out: no right to mount; failing calls raise ENOSPC instead")
    expected, _, _ = undisturbed(method, out)
    files = [file for file in (out / "whole").rglob("*") if file.is_file()]
    pages = sum(-(-file.stat().st_size // PAGE) for file in files)
    done, resumes, problem = 0, 0, ""
    for number in range(disks):
        size = PAGE * draw.randrange(4, 3 * pages // 4)
        with small_disk(out / "disk", size) as remount:
            command = Command(configuration(method), out / "disk" / "run", out)
            code, output = command.perform()
            if code:
                problem = fault_of(code, output, "No space left", "no room")
                remount("size=64m")
                problem = problem or _ended(command, expected)
                resumes += 1
            else:
                problem = difference(facts(command.out), expected)
            done += code != 0
        if problem:
            note = f"{size} bytes: {problem}"[:600].replace("\n", " ")
            return Outcome(case, done, resumes, False, time.perf_counter() - begin, note)
    return Outcome(case, done, resumes, True, time.perf_counter() - begin, "tmpfs")


def read_only(out: Path, seed: int) -> Outcome:
    """Run and resume in a folder that is read-only; then it is not."""
    case, begin = "read-only folder", time.perf_counter()
    if not may_mount(out):
        return Outcome(case, 0, 0, True, 0.0, "left out: no right to mount")
    expected, calls, _ = undisturbed("scaffold", out)
    with small_disk(out / "disk", 64 << 20) as remount:
        command = Command(configuration("scaffold"), out / "disk" / "run", out)
        remount("ro")
        problem = fault_of(*command.perform(), "Read-only", "cannot be written")
        remount("rw")
        command.perform(seed, calls // 2, errno.EROFS)  # half a run
        remount("ro")
        problem = problem or fault_of(*command.perform(), "Read-only", "cannot be written")
        remount("rw")
        problem = problem or _ended(command, expected)
    return Outcome(case, 3, 2, not problem, time.perf_counter() - begin, problem[:600])


# -- clients ----------------------------------------------------------------------------------------------------------
RULE = '''
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clients.sgd import LocalSGD
from fl import Params

LIE = Path({lie!r})

@dataclass(frozen=True, kw_only=True)
class Rule(LocalSGD):
    """Client 2 lies from one round on, as long as a file exists."""

    def work(self, name, ctx, carry):
        reply = super().work(name, ctx, carry)
        if ctx.client != 2 or ctx.round < {first} or not LIE.exists():
            return reply
        update = reply.update
        model = update.groups["model"]
        tensors = dict(model.items())
        first = min(tensors)
        {statement}
        return replace(reply, update=update)
'''
GROUPS = "update = replace(update, groups={})"
LIES = {
    "wrong shape": GROUPS.format('{"model": Params.of({**tensors, first: tensors[first].reshape(-1)[:-1]})}'),
    "wrong name": GROUPS.format('{"model": Params.of({"x" + key: value for key, value in tensors.items()})}'),
    "missing tensor": GROUPS.format('{"model": Params.of({first: tensors[first]})}'),
    "NaN": GROUPS.format('{"model": Params.of({**tensors, first: tensors[first] * float("nan")})}'),
    "infinity": GROUPS.format('{"model": Params.of({**tensors, first: tensors[first] + float("inf")})}'),
    "other type": GROUPS.format('{"model": Params.of({**tensors, first: tensors[first].double()})}'),
    "no group": GROUPS.format("{}"),
    "another group": GROUPS.format('{"model": model, "more": model}'),
    "a word as metric": 'update = replace(update, metrics={"mood": "good"})',
    "NaN as weight": 'update = replace(update, num_examples=float("nan"))',
    "negative weight": "update = replace(update, num_examples=-5)",
    "writes into what it received": 'ctx.received["model"][first].zero_()',
    "raises an error": 'raise ValueError("no battery")',
    "answers nothing": "return None",
    "leaves": "raise SystemExit(3)",
}


def lying(lie: str, out: Path, execution: Any = None) -> Outcome:
    """Have one client of FedAvg lie; then it no longer does."""
    case, begin = f"client, {lie}", time.perf_counter()
    mark, file = out / "lie", out / "rule.py"
    # what all clients read is compared after each client's first round
    first = 0 if lie.startswith("writes") else 2
    statement = "time.sleep(600)" if lie == "hangs" else LIES[lie]
    file.write_text(RULE.format(lie=str(mark), statement=statement, first=first))
    raw = configuration("scaffold", strategy="fedavg", rounds=6, cohort={"fraction": 1.0})
    raw["client"] = {**raw["client"], "name": f"{file}:Rule"}
    raw["execution"] = execution or raw["execution"]
    honest = Command(raw, out / "whole", out)
    code, output = honest.perform()
    if code:
        return Outcome(case, 0, 0, False, time.perf_counter() - begin, output[-300:].replace("\n", " "))
    expected = facts(honest.out)
    mark.touch()
    command = Command(raw, out / "run", out)
    code, output = command.perform()
    problem = (
        fault_of(code, output, f"client 2, round {first}", f"clients [2, 3], round {first}", f"{file}, line ")
        if code
        else "the lie was taken for an answer"
    )
    mark.unlink()
    problem = problem or _ended(command, expected)
    return Outcome(case, 1, 1, not problem, time.perf_counter() - begin, problem[:600].replace("\n", " "))
