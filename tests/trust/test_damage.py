"""Damaged files of a run: refused, or the run goes on to the bits of an undamaged one."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fl
from fl.errors import ClientError, ConfigError, MachineError
from fl.storage.run import read_metrics
from fl.storage.sums import NAME as SUMS
from tests import process

# clients keep a state, codecs keep residuals, and a best model is found
CONFIG = {
    "seed": 3,
    "rounds": 6,
    "data": {"name": "noise", "shape": [4], "classes": 3, "clients": 6, "samples": 10},
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "scaffold",
    "client": {"name": "scaffold", "batch": 4, "lr": 0.1},
    "codec": {"up": ["error_feedback", {"name": "top_k", "ratio": 0.5}]},
    "evaluation": {"every": 1},
    "execution": {"executor": "serial"},
}
GROWING = ("metrics.jsonl", "streams/ledger.arrow", "streams/clients-0.arrow", "clients/index-0.bin", "clients/*.seg")
KINDS = (*GROWING, "checkpoints/last-*.safetensors", "checkpoints/best.safetensors", "config.yaml", "environment.json")
DAMAGES = 200


def figures(directory: Path) -> list[dict]:
    """Metrics without wall-clock times."""
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(directory)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six rounds."""
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("damage") / "run").directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> fl.Result:
    """The same run with nine rounds."""
    return fl.run({**CONFIG, "rounds": 9}, out=tmp_path_factory.mktemp("damage") / "whole")


def flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def cut(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


def overwrite(file: Path, rng: np.random.Generator) -> None:
    content, at = bytearray(file.read_bytes()), rng.integers(file.stat().st_size)
    content[at : at + 64] = rng.bytes(len(content[at : at + 64]))
    file.write_bytes(content)


def delete(file: Path, rng: np.random.Generator) -> None:
    file.unlink()


def test_two_hundred_damages_are_refused_or_harmless(run, whole, tmp_path):
    """A resumed run needs each kind of file. Damages of a kind: three in four are flipped bits."""
    rng, outcomes = np.random.default_rng(0), {kind: {"refused": 0, "equal": 0} for kind in KINDS}
    ways: list[Callable[[Path, np.random.Generator], None]] = [flip] * 9 + [cut, overwrite, delete]
    for number in range(DAMAGES):
        copy, kind, way = tmp_path / str(number), KINDS[number % len(KINDS)], ways[number % len(ways)]
        shutil.copytree(run, copy)
        files = sorted(copy.glob(kind))
        assert files, kind
        way(files[rng.integers(len(files))], rng)
        try:
            result = fl.resume(copy, rounds=9)
        except (ConfigError, MachineError, ClientError) as error:
            outcomes[kind]["refused"] += 1
            assert str(error)
        else:
            outcomes[kind]["equal"] += 1
            assert result.digest == whole.digest, (kind, way.__name__)
            assert figures(copy) == figures(whole.directory), (kind, way.__name__)
        shutil.rmtree(copy)
    assert all(outcomes[kind]["refused"] for kind in GROWING if kind != "clients/*.seg"), outcomes
    assert outcomes["checkpoints/last-*.safetensors"]["equal"] > 15, outcomes  # the commit before is taken


def test_a_damaged_commit_costs_one_commit_and_says_so(run, whole, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = max(copy.glob("checkpoints/last-*"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert fl.resume(copy, rounds=9).digest == whole.digest
    assert f"{newest.name} is damaged: its checksum differs. The run continues from the commit before it" in caplog.text
    assert "after 5 rounds" in caplog.text and figures(copy) == figures(whole.directory)


def test_without_an_intact_commit_the_damage_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    ledger = copy / "streams" / "ledger.arrow"
    ledger.write_bytes(b"?" + ledger.read_bytes()[1:])  # all commits count on the first byte
    done = process.fl("resume", copy, "rounds=9")
    assert done.returncode == 2
    assert "ledger.arrow is damaged: the checksum of its first" in done.stderr
    assert "no earlier commit is intact; start a new run" in done.stderr
    assert json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])["round"] == 5  # nothing was cut off


@pytest.mark.parametrize("plan", ["loop", "compiled"])
def test_a_damaged_state_is_reported_with_its_client(tmp_path, plan):
    """All clients train in each round; the state of the first one changes between two rounds."""

    class Damage(fl.Callback):
        def round(self, row):
            (segment,) = (tmp_path / "run").glob("clients/*.seg")
            content = segment.read_bytes()
            segment.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the client that was written last

    config = {**CONFIG, "cohort": {"size": 6}, "codec": {}, "execution": {"executor": "serial", "plan": plan}}
    with pytest.raises(MachineError, match=r"^round 1, .*: state of client 5: .*\.seg is damaged: the checksum"):
        fl.run(config, out=tmp_path / "run", callbacks=[Damage()])


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("model.safetensors", ("digest",)),
        ("ledger.parquet", ("ledger",)),
        ("clients.parquet", ("participation",)),
        ("metrics.jsonl", ("compare",)),
    ],
)
def test_reports_refuse_damaged_tables(run, tmp_path, file, command):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert process.fl(*command, copy).returncode == 0
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    done = process.fl(*command, copy)
    assert done.returncode == 2 and f"{file} is damaged: its SHA-256 is not that in {SUMS}" in done.stderr


def test_sha256sum_reads_the_digests(run):
    done = subprocess.run(["sha256sum", "--check", SUMS], cwd=run, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 6
