"""Statistics of partitions, and `fl partition`."""

import json

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fl.cli.app import app
from fl.data.partition import Partition
from fl.data.partition_stats import skew, statistics

# classes 5 and 9; client 0: 5 5 9 9, client 1: 9, client 2: nothing, client 3: 5 5 5
LABELS = np.array([5, 9, 5, 9, 9, 5, 5, 5, 9])
PARTITION = Partition(
    np.array([0, 1, 2, 3, 4, 5, 6, 7]), np.array([0, 4, 5, 5, 8]), np.array([1, 0, 0, 1]), np.array([1, 0, 0, 0])
)


def test_statistics_by_hand():
    """5/8 of the 8 rows with a client have class 5: distances 1/8, 5/8 and 3/8, entropies ln 2, 0 and 0."""
    found = statistics(PARTITION, LABELS)
    assert found["emd"] == pytest.approx((1 / 8 + 5 / 8 + 3 / 8) / 3) and found["entropy"] == pytest.approx(
        np.log(2) / 3
    )
    rest = {k: v for k, v in found.items() if k not in ("emd", "entropy")}
    assert rest == {
        "clients": 4, "rows": 8, "train": 5, "val": 2, "test": 1, "size": {"min": 0, "median": 2.0, "max": 4},
        "classes": 2, "labels": {"min": 1, "median": 1.0, "max": 2},
    }  # fmt: skip


def test_distances_as_from_the_full_table():
    draw = np.random.default_rng(0)
    labels, owners = draw.integers(0, 7, 500), np.sort(draw.integers(0, 9, 500))
    partition = Partition(np.arange(500), np.searchsorted(owners, np.arange(10)))
    counts = np.array([np.bincount(labels[owners == c], minlength=7) for c in range(9)])
    p, q = counts / counts.sum(1, keepdims=True), counts.sum(0) / 500
    found = skew(labels, partition)
    np.testing.assert_allclose(found["emd"], 0.5 * np.abs(p - q).sum(1))
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(1))


@pytest.mark.parametrize("labels", [None, np.zeros(9), np.zeros((9, 2), np.int64)])
def test_without_classes_there_are_sizes(labels):
    assert statistics(PARTITION, labels).keys() == {"clients", "rows", "train", "val", "test", "size"}


CONFIG = {
    "data": "digits",
    "partition": {"name": "shards", "clients": 60},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
}


def invoke(tmp_path, *arguments):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    return CliRunner().invoke(app, ["partition", str(tmp_path / "c.yaml"), *arguments])


def test_the_command_says_who_holds_what(tmp_path):
    found = json.loads(invoke(tmp_path, "--json", "splits.val=0", "partition.clients=100").stdout)
    assert (found["rows"], found["unassigned"], len(found["periods"])) == (1438, 0, 1)
    assert found["periods"][0]["clients"] == 100 and found["periods"][0]["train"] == 1438
    text = invoke(tmp_path).stdout
    assert "labels per client" in text and "no client" not in text
    some = invoke(tmp_path, "partition={name: file, lists: [[0, 1], [5]]}").stdout
    assert "1435 of 1438 rows belong to no client" in some


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["partition.clients=300"], ["partition.clients=12"]])
def test_the_command_draws(tmp_path, overrides):
    done = invoke(tmp_path, *overrides, "--plot", str(tmp_path / "p.png"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_stream_is_told_stage_by_stage(tmp_path):
    found = json.loads(invoke(tmp_path, "--json", "stream={name: permuted, tasks: 2, rounds: 1}").stdout)
    assert [period["rows"] for period in found["periods"]] == [1438, 1438] and found["unassigned"] == 0


def test_a_mistake_is_told_with_its_place(tmp_path):
    done = invoke(tmp_path, "partition.clients=0")
    assert done.exit_code == 2 and "partition.clients: 0 is not positive" in done.output
