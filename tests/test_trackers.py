"""Trackers of a configuration: what they wrote is read back by the libraries' own readers."""

import csv
import math

import pytest

import fl
from fl import ConfigError
from tests.test_bad_configs import GOOD

CONFIG = {**GOOD, "rounds": 2}


def numbers(row):
    return {k: v for k, v in row.items() if isinstance(v, (int, float)) and math.isfinite(v) and k != "round"}


def test_csv_has_a_column_for_each_metric(tmp_path):
    class Late(fl.Callback):
        def measure(self, run, row):
            return {"late": 7.0} if row["round"] == 1 else {}

    fl.run({**CONFIG, "tracking": ["csv"]}, out=tmp_path / "run", callbacks=[Late()])
    fl.resume(tmp_path / "run", rounds="+1")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    result = fl.resume(tmp_path / "run")
    assert [row["round"] for row in rows] == ["0", "1", "2"] and [row["late"] for row in rows] == ["", "7.0", ""]
    for row, expected in zip(rows, result.metrics):
        assert float(row["val/accuracy"]) == expected["val/accuracy"]


def test_a_tracker_is_named_once(tmp_path):
    with pytest.raises(ConfigError, match=r"tracking\[1\]: the same as tracking\[0\]"):
        fl.run({**CONFIG, "tracking": ["csv", "csv"]}, out=tmp_path / "run")


def test_tensorboard_reads_its_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = fl.run({**CONFIG, "tracking": ["tensorboard"]}, out=tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(numbers(result.metrics[0]))
    found = [(event.step, event.value) for event in events.Scalars("val/loss")]
    assert found == [(row["round"], pytest.approx(row["val/loss"], rel=1e-6)) for row in result.metrics]


def records_of(file):
    """Records of a .wandb file: blocks of 32 KB as in LevelDB's log, each piece with checksum, length and kind."""
    data, at, parts = file.read_bytes(), 7, []  # 7 bytes of header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield b"".join(parts)
            parts = []


def test_wandb_writes_a_run_offline(tmp_path):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    result = fl.run({**CONFIG, "tracking": [{"name": "wandb", "project": "p"}]}, out=tmp_path / "run")
    wandb.teardown()  # wait for its process, which writes the file
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    losses, kinds = [], []
    for record in map(Record.FromString, records_of(file)):
        kinds.append(record.WhichOneof("record_type"))
        for item in record.history.item:
            if (item.key or "/".join(item.nested_key)) == "val/loss":
                losses.append(float(item.value_json))
    assert losses == [pytest.approx(row["val/loss"]) for row in result.metrics]
    assert "exit" in kinds  # the run is closed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own queries
def test_mlflow_closes_runs_on_end_and_failure(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")

    class Fails(fl.Callback):
        def round(self, row):
            raise RuntimeError("enough")

    config = {**CONFIG, "tracking": [{"name": "mlflow", "experiment": "e"}]}
    result = fl.run(config, out=tmp_path / "good")
    with pytest.raises(RuntimeError, match="enough"):
        fl.run(config, out=tmp_path / "bad", callbacks=[Fails()])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("e")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in found.items()} == {"good": "FINISHED", "bad": "FAILED"}
    history = client.get_metric_history(found["good"].info.run_id, "val/loss")
    assert [(m.step, m.value) for m in history] == [(row["round"], row["val/loss"]) for row in result.metrics]
    assert found["good"].data.params["strategy.name"] == "fedavg"


def test_a_users_own_tracker(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\nimport fl\n\n"
        "@dataclass(kw_only=True)\nclass Mine(fl.Callback):\n    file: str\n\n"
        "    def round(self, row):\n        file = Path(self.file)\n"
        "        file.write_text((file.read_text() if file.exists() else '') + f\"{row['round']} \")\n"
    )
    tracker = {"name": f"{tmp_path}/mine.py:Mine", "file": str(tmp_path / "seen")}
    fl.run({**CONFIG, "tracking": [tracker]}, out=tmp_path / "run")
    assert (tmp_path / "seen").read_text() == "0 1 "


WRONG = {
    "unknown": (["tensorbord"], "tracking.*Did you mean 'tensorboard'"),
    "mode": ([{"name": "wandb", "mode": "loud"}], r"tracking\[0\].mode: 'loud' is not 'offline' or 'online'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_trackers_stop_before_round_0(case, tmp_path):
    trackers, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        fl.run({**CONFIG, "tracking": trackers}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
