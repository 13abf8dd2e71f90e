"""Check and measure a GPU with one command, in at most ten minutes.

    python -m experiments.benchmarks.gpu OUT [--side ENVIRONMENT ...] [--device cpu]

Each step is a process of its own with a time limit; a step that fails or takes too long does not stop the others. The
page OUT/gpu.md is written again after each step: environment, a line per step, and the end of the output of each step
that failed. OUT/STEP.txt is a step's whole output. Exit code 0: every step passed; 1: one did not, or missed a bar;
2: there is no GPU.

    tests      tests/execution/test_device.py: operations on one device, results beside the CPU's
    bench      `fl bench WORKLOAD --device cuda` for four workloads; `--side` names environments with pfl-research
    memory     PFLlib's case: 500 clients with data like CIFAR-100's, a CNN of four layers, in less than 5 GB
    kernels    share of the time in which the GPU runs kernels, by torch.profiler
    tune       `fl tune`: fastest plan, chunk, memory format and number of workers

`--device cpu` runs the same steps at a tiny size: a check of this program where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(__file__).parent
LIMIT = 590.0  # seconds for all steps
GRACE = 5.0  # seconds between the request to stop and the end of a process
NO_GPU, FAILED, PASSED = 2, 1, 0
MAX_GIGABYTES = 5.0  # PFLlib says 5.08 GB for its case
MIN_KERNEL_SHARE = 0.7
WORKLOADS = ("cnn_pfl", "cnn_small", "femnist_mlp", "lora")

NEVER = {"evaluation": {"every": 10**6, "server": False}, "rounds": 10**6}
PFLLIB = {
    "data": {"name": "noise", "shape": [3, 32, 32], "classes": 100, "clients": 500, "samples": 100},
    "partition": "natural",
    "splits": {"val": 0.0, "test": 0.0},
    "model": "cnn_pfllib",
    "cohort": {"size": 500},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 10, "lr": 0.005},
}
TINY = PFLLIB | {  # what `--device cpu` takes instead of the workloads
    "data": {"name": "noise", "shape": [3, 16, 16], "classes": 4, "clients": 8, "samples": 8},
    "cohort": {"size": 4},
    "client": {"epochs": 1, "batch": 4, "lr": 0.1},
    "execution": {"workers": 1, "plan": "flat"},
}


@dataclass(frozen=True)
class Step:
    """A process with a time limit.

    Args:
        name: name of the step, and of its output file.
        command: program and arguments.
        limit: seconds, positive.
        found: what the step found, in words, from the folder OUT; called if the process ended in time.
        bars: exit code 1 means a missed bar, and not an error.
    """

    name: str
    command: Sequence[str]
    limit: float
    found: Callable[[Path], str] = lambda out: ""
    bars: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Args:
        step: its name.
        result: "passed", "bar missed", "failed (exit code N)", "took longer than N s" or "not started: no time left".
        seconds: wall time.
        found: what it found.
        output: the end of its output.
    """

    step: str
    result: str
    seconds: float
    found: str
    output: str

    @property
    def passed(self) -> bool:
        return self.result == "passed"


def steps(device: str, out: Path, sides: Sequence[Path] = ()) -> list[Step]:
    """Return the steps for a device, cuda or cpu (tiny)."""
    python, tiny = sys.executable, device == "cpu"
    own = [python, "-m", "experiments.benchmarks.gpu", str(out), "--device", device, "--step"]
    fl = [python, "-m", "fl"]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/execution/test_device.py"]
    tested = [*tests, "-k", "micro_batches_add_up"] if tiny else tests  # `make test` runs them all on the CPU
    found = [Step("tests", tested, 100, lambda _: _last_line(out / "tests.txt"))]
    small = str(out / "tiny.yaml")
    peers = [part for side in sides for part in ("--side", str(side))]
    for name in ("tiny",) if tiny else WORKLOADS:
        file = out / f"bench-{name}.json"
        size = [small, "--only", "ours", "--seconds", "0.1"] if tiny else [name, "--seconds", "1.5", *peers]
        command = [*fl, "bench", *size, "--device", device, "--out", str(file)]
        found.append(
            Step(f"bench-{name}", command, 150 if tiny else 55, lambda _, file=file: read_bench(file), bars=True)
        )
    found.append(Step("memory", [*own, "memory"], 50, lambda _: _last_line(out / "memory.txt")))
    found.append(Step("kernels", [*own, "kernels"], 75, lambda _: _last_line(out / "kernels.txt")))
    of = small if tiny else str(FOLDER / "cnn_pfl.yaml")
    changes = [f"execution.device={device}", "execution.executor=auto"]
    changes += ["execution.plan=auto"] if tiny else ["execution.workers=null"]
    tuned = ["--seconds", "1" if tiny else "40", "--out", str(out / "tuned.yaml")]
    found.append(
        Step("tune", [*fl, "tune", of, *changes, *tuned], 90, lambda _: _last_line(out / "tune.txt", "chosen 2"))
    )
    return found


def run(step: Step, out: Path, left: float) -> Outcome:
    """Run a step for at most its limit and `left` seconds; its whole process group ends with it."""
    limit, began = min(step.limit, left), time.perf_counter()
    if limit <= 0:
        return Outcome(step.name, "not started: no time left", 0.0, "", "")
    log = out / f"{step.name}.txt"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds, text = time.perf_counter() - began, log.read_text(errors="replace")
    if code is None:
        return Outcome(step.name, f"took longer than {limit:.0f} s", seconds, "", text[-2000:])
    result = "passed" if code == 0 else "bar missed" if code == 1 and step.bars else f"failed (exit code {code})"
    try:
        found = step.found(out)
    except (OSError, ValueError, LookupError) as error:
        found, result = f"no result: {error}", f"failed (exit code {code})"
    return Outcome(step.name, result, seconds, found, "" if result == "passed" else text[-2000:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def environment(device: str) -> dict[str, str]:
    """What the steps ran on."""
    about = {"date": time.strftime("%Y-%m-%d %H:%M"), "device": device, "Python": platform.python_version()}
    about |= {"torch": torch.__version__, "CPU cores": str(os.cpu_count())}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        about |= {
            "GPU": f"{torch.cuda.device_count()} x {card.name}",
            "GPU memory": f"{card.total_memory / 1e9:.0f} GB",
        }
        about |= {"CUDA": str(torch.version.cuda), "compute capability": f"{card.major}.{card.minor}"}
    return about


def page(about: dict[str, str], outcomes: Sequence[Outcome], missing: Sequence[str] = ()) -> str:
    """Return the page (Markdown). `missing` are the steps that have not run yet."""
    done = sum(outcome.passed for outcome in outcomes)
    lines = ["# Checks and measurements of a GPU", "", f"{done} of {len(outcomes) + len(missing)} steps passed.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in about.items()), ""]
    lines += ["| step | result | seconds | found |", "|---|---|---:|---|"]
    lines += [f"| {o.step} | {o.result} | {o.seconds:.0f} | {o.found} |" for o in outcomes]
    lines += [f"| {name} | not run yet | | |" for name in missing]
    for outcome in outcomes:
        if not outcome.passed:
            lines += ["", f"## {outcome.step}: {outcome.result}", "", "```", outcome.output.strip(), "```"]
    return "\n".join(lines) + "\n"


def _last_line(file: Path, word: str = "") -> str:
    """The last line of a file that has a word."""
    found = [line for line in file.read_text(errors="replace").splitlines() if line.strip() and word in line]
    if not found:
        raise ValueError(f"{file.name} has no line with {word!r}")
    return found[-1].strip().replace("|", "/")


def read_bench(file: Path) -> str:
    """The best of ours, its speed, and its ratio to each other contestant, from the JSON file of `fl bench`."""
    (result,) = json.loads(file.read_text())
    entries, best = result["contestants"], result["best"]
    if best is None:
        raise ValueError("none of ours was measured")
    bars = {bar["against"]: bar for bar in result["bars"]}
    texts = [f"{best}: {entries[best]['clients_per_second']:,.1f} clients/s"]
    for name, entry in entries.items():
        if name != "peak" and not name.startswith("ours") and entry.get("ratio"):
            bar = f" (bar {bars[name]['bar']:g})" if name in bars else ""
            texts.append(f"{entry['ratio']:.2f} x {name}{bar}")
    return ", ".join(texts + [f"{name} failed" for name, entry in entries.items() if "failed" in entry])


# -- steps that run here -----------------------------------------------------------------------------------------------
def rounds(raw: dict[str, Any], count: int) -> float:
    """Run one round to warm up, then `count` rounds; return the seconds of these."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(resolve(raw), Path(folder) / "run")
        try:
            simulation.start_workers()
            simulation.before_rounds()
            simulation.one_round()
            began = time.perf_counter()
            for _ in range(count):
                simulation.one_round()
            return time.perf_counter() - began
        finally:
            simulation.__exit__(None, None, None)


def memory(device: str) -> int:
    """Print the peak memory of PFLlib's case on the GPU. Returns 1 if it is above the bar."""
    size = {"data.clients": 6, "data.samples": 10, "cohort.size": 6} if device == "cpu" else {}
    settings = {"execution.device": device, "execution.executor": "serial"}
    raw = read(PFLLIB, NEVER | settings | size)
    seconds = rounds(raw, 1)
    if device == "cpu":
        print(f"1 round in {seconds:.1f} s; no GPU memory to measure")
        return PASSED
    gigabytes, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
    print(
        f"500 clients, cnn_pfllib: peak {gigabytes:.2f} GB in tensors, {reserved:.2f} GB taken from the GPU "
        f"(bar {MAX_GIGABYTES:g}); {500 / seconds:,.1f} clients/s"
    )
    return PASSED if reserved < MAX_GIGABYTES else FAILED


def share(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """Return the share of [begin, end] that at least one span covers.

    >>> share([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)], 0.0, 8.0)
    0.5
    """
    covered, reached = 0.0, begin
    for start, stop in sorted(spans):
        covered += max(0.0, min(stop, end) - max(start, reached))
        reached = max(reached, stop)
    return covered / (end - begin)


def kernels(device: str, tiny: Path) -> int:
    """Print the share of the time in which kernels run (on a CPU: operators). Returns 1 if one is below the bar."""
    found, cpu = {}, device == "cpu"
    kind = torch.autograd.DeviceType.CPU if cpu else torch.autograd.DeviceType.CUDA
    for name in ("tiny",) if cpu else WORKLOADS:
        raw = read(tiny if cpu else FOLDER / f"{name}.yaml", NEVER | {"execution.device": device})
        raw["execution"] |= {"executor": "serial", "workers": 1}
        found[name] = kernel_share(resolve(raw), kind)
    print(", ".join(f"{name} {part:.0%}" for name, part in found.items()) + f" (bar {MIN_KERNEL_SHARE:.0%})")
    return PASSED if cpu or min(found.values()) >= MIN_KERNEL_SHARE else FAILED


def kernel_share(config: Any, kind: Any) -> float:
    """Return the share of two rounds in which a device of this kind works."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kind == torch.autograd.DeviceType.CUDA:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(config, Path(folder) / "run")
        try:
            simulation.start_workers()
            simulation.before_rounds()
            simulation.one_round()  # warms up
            with torch.profiler.profile(activities=activities) as profile, torch.profiler.record_function("rounds"):
                for _ in range(2):
                    simulation.one_round()
        finally:
            simulation.__exit__(None, None, None)
    events = profile.events()
    whole = next(
        event for event in events if event.name == "rounds" and event.device_type == torch.autograd.DeviceType.CPU
    )
    spans = [(e.time_range.start, e.time_range.end) for e in events if e.device_type == kind and e.name != "rounds"]
    return share(spans, whole.time_range.start, whole.time_range.end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, or the one named by `--step`; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the page and of each step's output")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--side", type=Path, action="append", default=[], help="environment with other simulators")
    parser.add_argument("--step", choices=("memory", "kernels"), help="run this step here")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA GPU; `--device cpu` runs the same steps at a tiny size", file=sys.stderr)
        return NO_GPU
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    tiny = out / "tiny.yaml"
    if given.step == "memory":
        return memory(given.device)
    if given.step == "kernels":
        return kernels(given.device, tiny)
    tiny.write_text(json.dumps(TINY))
    (out / "tuned.yaml").unlink(missing_ok=True)
    outcomes: list[Outcome] = []
    about, todo, end = environment(given.device), steps(given.device, out, given.side), time.perf_counter() + LIMIT
    for k, step in enumerate(todo):
        print(f"{step.name}: at most {step.limit:.0f} s", file=sys.stderr)
        outcomes.append(run(step, out, end - time.perf_counter()))
        (out / "gpu.md").write_text(page(about, outcomes, [later.name for later in todo[k + 1 :]]))
    print((out / "gpu.md").read_text())
    return PASSED if all(outcome.passed for outcome in outcomes) else FAILED


if __name__ == "__main__":
    sys.exit(main())
