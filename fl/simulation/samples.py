"""Answers that the server's model generates for its first test rows: samples/round_R.jsonl in the run directory.

The driver makes them after a round, whatever the executor. A resumed run makes those of a round again, to the same
bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fl.errors import ConfigError, located
from fl.method.strategy import Strategy
from fl.models.binding import bind
from fl.simulation.setup import RunSetup
from fl.storage import files

FOLDER = "samples"


def check_samples(setup: RunSetup) -> None:
    """Require test rows on the server, one model and the data's tokenizer, if the task generates samples.

    Raises:
        ConfigError: one of them is missing, or the tokenizer is another one.
    """
    task = setup.periods[0].task
    if not task.samples_due(setup.config.rounds - 1, True):
        return
    if setup.dataset.test is None:
        raise ConfigError("task.samples", "the server has no test rows to answer; set data.test, or samples: 0")
    if setup.by_client is not None:
        raise ConfigError("task.samples", "the server has no model of its own with model.by_client; set samples: 0")
    try:
        task.check_samples(setup.config.data.part)
    except ValueError as error:
        raise located("task", error) from error


def write_samples(setup: RunSetup, strategy: Strategy, state: Any, round_: int, directory: Path) -> None:
    """Write the samples of a round, if the task makes some after it.

    Args:
        setup: the run.
        strategy: the strategy, which knows the server's model.
        state: its state after the round.
        round_: the round.
        directory: the run directory.
    """
    task = setup.periods[setup.period_at(round_)].task
    if not task.samples_due(round_, round_ + 1 == setup.config.rounds):
        return
    module = setup.module
    with torch.inference_mode():
        bind(module, strategy.model(state), setup.initial)
        module.eval()
        found = task.generate(module, setup.server_rows.test)
    lines = "".join(json.dumps({"round": round_, **sample}, ensure_ascii=False) + "\n" for sample in found)
    files.write_file(files.make_folder(directory / FOLDER) / f"round_{round_}.jsonl", lines)
