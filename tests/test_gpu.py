"""The command that checks a GPU: its steps, their time limits, the page and the exit code. No GPU is needed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import gpu
from experiments.benchmarks.gpu import Outcome, Step, page, run, share, steps

ROOT = Path(gpu.__file__).parent.parent.parent


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_limits_of_all_steps_fit_into_ten_minutes(tmp_path):
    found = steps("cuda", tmp_path)
    assert [step.name for step in found] == [
        "tests", *(f"bench-{name}" for name in gpu.WORKLOADS), "memory", "kernels", "tune"
    ]  # fmt: skip
    assert all(step.limit > 0 for step in found)
    assert sum(step.limit + gpu.GRACE for step in found) < 600 and gpu.LIMIT + gpu.GRACE < 600


def test_each_step_names_the_device_and_things_that_exist(tmp_path):
    for step in steps("cuda", tmp_path, [tmp_path / "peers"]):
        words = [word.removeprefix("execution.device=") for word in step.command]
        assert "cuda" in words or step.name == "tests"  # its tests look for a GPU themselves
        for word in words:
            if word.endswith(".py") or word.startswith(str(gpu.FOLDER)):
                assert (ROOT / word).is_file(), word
        if step.name.startswith("bench-"):
            assert (gpu.FOLDER / f"{step.command[4]}.yaml").is_file()
            assert words[words.index("--side") + 1] == str(tmp_path / "peers")


def test_a_step_that_takes_too_long_ends_with_all_its_processes(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    began = time.perf_counter()
    outcome = run(Step("sleeps", python(child), 2.0), tmp_path, left=100.0)
    assert time.perf_counter() - began < 30
    assert outcome.result == "took longer than 2 s" and not outcome.passed
    grandchild = int(outcome.output)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(grandchild, 0)
            if f"{grandchild} (sleep) Z" in Path(f"/proc/{grandchild}/stat").read_text():  # ended, but nobody waited
                raise ProcessLookupError
            time.sleep(0.05)


def test_the_time_that_is_left_limits_a_step(tmp_path):
    assert run(Step("sleeps", python("import time; time.sleep(60)"), 50.0), tmp_path, 1.0).result.endswith("than 1 s")
    outcome = run(Step("late", python("print(1)"), 50.0), tmp_path, -1.0)
    assert (outcome.result, outcome.seconds) == ("not started: no time left", 0.0)


@pytest.mark.parametrize(
    "code, bars, result",
    [
        ("print('all is well')", False, "passed"),
        ("print('all is well'); raise SystemExit(1)", True, "bar missed"),
        ("print('all is well'); raise SystemExit(1)", False, "failed (exit code 1)"),
        ("print('all is well'); raise SystemExit(3)", True, "failed (exit code 3)"),
    ],
)
def test_exit_codes_of_steps(tmp_path, code, bars, result):
    step = Step("says", python(code), 30, lambda out: gpu._last_line(out / "says.txt"), bars)
    outcome = run(step, tmp_path, 60.0)
    assert (outcome.result, outcome.found, outcome.passed) == (result, "all is well", result == "passed")


def test_a_step_without_a_result_has_failed(tmp_path):
    step = Step("silent", python("pass"), 30, lambda out: gpu.read_bench(out / "none.json"))
    outcome = run(step, tmp_path, 60.0)
    assert not outcome.passed and "none.json" in outcome.found


def test_the_page_has_all_steps_and_the_output_of_those_that_failed():
    outcomes = [
        Outcome("tests", "passed", 12.3, "40 passed", ""),
        Outcome("memory", "failed (exit code 1)", 3.0, "", "CUDA out of memory"),
    ]
    text = page({"GPU": "1 x Some GPU"}, outcomes, ["tune"])
    assert "1 of 3 steps passed." in text and "| GPU | 1 x Some GPU |" in text
    assert "| tests | passed | 12 | 40 passed |" in text and "| tune | not run yet | | |" in text
    assert text.index("## memory: failed (exit code 1)") < text.index("CUDA out of memory")
    assert "## tests" not in text


def test_what_a_benchmark_found(tmp_path):
    entries = {
        "ours flat x1": {"clients_per_second": 1234.56, "ratio": 1.0},
        "pfl x1": {"clients_per_second": 50.0, "ratio": 24.7},
        "bare x1": {"failed": "no memory"},
        "peak": {"clients_per_second": 9.0},
    }
    bars = [{"against": "pfl x1", "bar": 20.0, "ratio": 24.7, "reached": True}]
    file = tmp_path / "bench.json"
    file.write_text(json.dumps([{"contestants": entries, "best": "ours flat x1", "bars": bars}]))
    assert gpu.read_bench(file) == "ours flat x1: 1,234.6 clients/s, 24.70 x pfl x1 (bar 20), bare x1 failed"


@pytest.mark.parametrize(
    "spans, expected",
    [
        ([], 0.0),
        ([(0.0, 8.0)], 1.0),
        ([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)], 0.5),  # 3 + 1 of 8
        ([(1.0, 5.0), (2.0, 3.0)], 0.5),  # one inside the other
        ([(-4.0, 2.0), (7.0, 20.0)], 0.375),  # 2 + 1 of 8: only what lies in the interval
    ],
)
def test_the_share_of_the_time_that_spans_cover(spans, expected):
    assert share(spans, 0.0, 8.0) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert gpu.main([str(tmp_path / "out")]) == gpu.NO_GPU == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "torch finds no CUDA GPU" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_steps_run_at_a_tiny_size_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    text = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0 and done.stdout.strip() == text.strip(), text
    assert "5 of 5 steps passed." in text and "not run yet" not in text
    for found in ("passed", "clients/s", "no GPU memory to measure", "tiny "):
        assert found in text
    assert (tmp_path / "tuned.yaml").is_file()
