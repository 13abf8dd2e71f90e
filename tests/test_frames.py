"""The traceback from `fl run` to the first gradient step is short: at most 14 frames are ours."""

import sys
import traceback
from pathlib import Path

import pytest
import torch
import yaml

from fl.cli.app import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fl", "clients", "strategies", "partitions")
MOST = 14
CONFIG = {  # a small quickstart
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 10, "alpha": 0.3, "min_size": 5},
    "splits": {"val": 0.1, "test": 0.2},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 10, "lr": 0.3},
}


class FirstStep(BaseException):
    """Raised at the first gradient step to end the run; as code of a run must not end it, this becomes an error."""


def test_few_frames_lie_between_the_command_and_the_first_step(tmp_path, monkeypatch, capsys):
    chain: list[str] = []

    def record_frames(*args: object, **kwargs: object) -> None:
        for frame in traceback.extract_stack():
            file = Path(frame.filename)
            if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES:
                chain.append(f"{file.relative_to(ROOT)}:{frame.lineno} {frame.name}")
        raise FirstStep

    config = tmp_path / "quickstart.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    settings = ["execution.executor=serial", "execution.plan=loop", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["fl", "run", str(config), *settings])
    monkeypatch.setattr(torch, "_foreach_add_", record_frames)
    with pytest.raises(SystemExit):
        main()
    capsys.readouterr()
    assert "main" in chain[0] and "train" in chain[-1]
    assert len(chain) <= MOST, "\n".join([f"{len(chain)} frames:", *chain])
