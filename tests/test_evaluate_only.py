"""`fl evaluate`: metrics of a saved model have the bits of the run's own evaluation, and the run stays as it was."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import fl
from fl.errors import ConfigError
from fl.storage.clients import ClientStates
from fl.storage.growing import Damaged
from fl.storage.run import read_metrics
from fl.storage.segments import Segments
from tests.process import fl as command

CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 10, "alpha": 0.5, "min_size": 10},
    "splits": {"val": 0.1, "test": 0.2},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes, name",
    [
        ({}, "last"),
        ({"strategy": "local"}, "last"),  # clients keep their models as states
        ({"evaluation.stage": "adapted", "evaluation.adapt": {"name": "sgd", "lr": 0.1}}, "last"),
        ({"codec.down": ["error_feedback", {"quantise": {"bits": 4}}]}, "last"),
    ],
)
def test_the_last_model_has_the_metrics_of_the_last_round(changes, name, tmp_path):
    result = fl.run(CONFIG, out=tmp_path / "run", **changes)
    before = contents(tmp_path / "run")
    found = fl.evaluate(tmp_path / "run")
    assert (found.checkpoint, found.rounds, found.digest) == (name, 3, result.digest)
    assert found.metrics and found.metrics == {key: result.metrics[-1][key] for key in found.metrics}
    assert {key for key in result.metrics[-1] if key.startswith(("eval/", "val/", "clients/"))} == set(found.metrics)
    assert contents(tmp_path / "run") == before


def test_the_best_model_has_the_metrics_of_its_round_and_its_states(tmp_path):
    changes = {"strategy": "local", "client.lr": 5.0, "cohort.size": 10, "rounds": 8}
    fl.run(CONFIG, out=tmp_path / "run", **changes)
    rows = read_metrics(tmp_path / "run")
    best = max(rows, key=lambda row: row["val/accuracy"])
    assert best is not rows[-1]
    found = fl.evaluate(tmp_path / "run", checkpoint="best")
    assert (found.checkpoint, found.rounds) == ("best", best["round"] + 1)
    assert found.metrics == {key: best[key] for key in found.metrics}


def test_a_run_may_go_on_while_its_states_are_read(tmp_path, monkeypatch):
    """A state has more than 64 KB, so that its space is used again, once a later commit has reached the disk."""
    changes = {"strategy": "local", "model": {"name": "mlp", "hidden": [256]}, "cohort.size": 10, "rounds": 100}
    rounds, detach, calls = fl.rounds(CONFIG, out=tmp_path / "run", **changes), ClientStates.detach, []

    def late(states):
        """Train on until the states of the first commit are overwritten, and again when those of another are copied."""
        calls.append(states)
        while len(calls) == 1 and not overwritten(states):
            rows.append(next(rounds))
        detach(states)
        rows.extend(next(rounds) for _ in range(4))

    with contextlib.closing(rounds):
        rows = [next(rounds)]
        monkeypatch.setattr(ClientStates, "detach", late)
        found = fl.evaluate(tmp_path / "run")
    assert len(calls) == 2 and found.rounds == len(rows) - 4
    assert found.metrics and found.metrics == {key: rows[found.rounds - 1][key] for key in found.metrics}


def overwritten(states: ClientStates) -> bool:
    try:
        Segments(states.folder).check_sums(states.locations(np.arange(10)))
        return False
    except Damaged:
        return True


def test_the_work_after_the_last_round_is_part_of_the_latest_model(tmp_path):
    changes = {"strategy": {"name": "hierarchical", "edges": 2, "edge_rounds": 2}, "cohort.size": 10}
    fl.run(CONFIG, out=tmp_path / "run", **changes)
    row = read_metrics(tmp_path / "run")[-1]
    assert row["stage"] == "final"
    found = fl.evaluate(tmp_path / "run")
    assert (found.checkpoint, found.rounds) == ("final", 3)
    assert found.metrics == {key: row[key] for key in found.metrics} and found.metrics


def test_the_command_prints_metrics_or_json_and_takes_other_splits(tmp_path):
    out, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    result = fl.run(CONFIG, out=out)
    told = command("evaluate", out, "evaluation.splits=[train]").stdout
    assert "last, after 3 rounds" in told and result.digest in told
    assert "train_rows/accuracy" in told and "clients/" not in told
    whole = json.loads(command("evaluate", file, f"model.init={out}", "--json").stdout)
    assert (whole["checkpoint"], whole["rounds"], whole["digest"]) == ("first", 0, result.digest)
    assert whole["metrics"]["eval/loss"] == result.metrics[-1]["eval/loss"]


def test_refusals_name_the_way_out(tmp_path):
    out = tmp_path / "run"
    fl.run(CONFIG | {"checkpoint": {"best": False}}, out=out)
    for source, options, message in (
        (out, {"rounds": 9}, "rounds: cannot change in the evaluation of a run; keys of evaluation and execution can"),
        (out, {"checkpoint": "first"}, "--checkpoint: 'first' is not one of"),
        (out, {"checkpoint": "best"}, "has no best checkpoint; the run needs checkpoint.best: true"),
        (tmp_path, {}, "holds no committed round"),
        (CONFIG, {"checkpoint": "best"}, "is no run directory; name the run with model.init=DIR"),
    ):
        with pytest.raises(ConfigError, match=message):
            fl.evaluate(source, **options)
    file = out / "environment.json"
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps(recorded | {"data_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="has changed since the run began: the data .SHA-256 0000.*--changed"):
        fl.evaluate(out)
    assert fl.evaluate(out, changed=True).metrics
