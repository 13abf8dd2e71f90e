"""experiments/regression, the tool that finds changed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.regression.__main__ import main
from experiments.regression.record import all_cases
from fl.execution.training.plan import Kind


def test_a_repeated_record_is_equal_and_a_change_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for file in (old, new):
        assert main(["record", str(file), "--only", "fedav*[gm]/loop"]) == 0
    capsys.readouterr()
    assert main(["compare", str(old), str(new)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 equal, 0 differ, 0 only in the old record, 0 only in the new"

    changed = json.loads(new.read_text())
    run = changed["runs"]["fedavg/loop"]
    run["digest"], run["metrics"][1]["val/loss"] = "0", 2 * run["metrics"][1]["val/loss"]
    new.write_text(json.dumps(changed))
    model = tmp_path / "new.json.models" / "fedavg" / "loop.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(model).items()}
    largest = max(tensors.values(), key=lambda tensor: float(tensor.abs().max()))
    largest.view(-1)[int(torch.argmax(largest.abs()))] *= 1.25
    save_file(tensors, model)

    assert main(["compare", str(old), str(new)]) == 1
    *_, line, empty, counts = capsys.readouterr().out.splitlines()
    assert line.split() == ["fedavg/loop", "2.5e-01", "5.0e-01", "digest,", "metrics:", "val/loss"]
    assert (empty, counts) == ("", "1 equal, 1 differ, 0 only in the old record, 0 only in the new")


def test_a_run_that_fails_is_recorded_with_its_error(tmp_path: Path) -> None:
    file = tmp_path / "refused.json"
    assert main(["record", str(file), "--only", "majority/compiled"]) == 0
    run = json.loads(file.read_text())["runs"]["majority/compiled"]
    assert run["status"] == "refused" and "'compiled' is not possible" in run["error"]


def test_every_plan_has_runs(tmp_path: Path) -> None:
    assert {case.overrides.get("execution.plan") for case in all_cases().values()} >= {*get_args(Kind)}
    file = tmp_path / "fused.json"
    assert main(["record", str(file), "--only", "fused/fedit"]) == 0
    run = json.loads(file.read_text())["runs"]["fused/fedit"]
    assert run["status"] == "ok" and run["plan"]["kind"] == "fused"
