"""Damaged files of a run: it is refused with one line, or it goes on to the bits of an undamaged one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

import fl
from experiments.faults.facts import difference, facts
from experiments.faults.methods import configuration
from fl.errors import ClientError, ConfigError, MachineError

KINDS = (
    "metrics.jsonl",
    "streams/ledger.arrow",
    "streams/clients-*.arrow",
    "clients/index-*.bin",
    "clients/*.seg",
    "checkpoints/last-*.safetensors",
    "checkpoints/best.safetensors",
    "config.yaml",
    "environment.json",
    "run.lock",
    "model.safetensors",
    "ledger.parquet",
    "clients.parquet",
    "SHA256SUMS",
)
WAYS = ("flip", "flip", "flip", "cut", "overwrite", "append", "delete", "empty")
NOISE = st.binary(min_size=1, max_size=64)
DAMAGES = st.tuples(st.sampled_from(KINDS), st.integers(0, 20), st.sampled_from(WAYS), st.floats(0, 1), NOISE)
CONFIG = configuration(
    "error feedback, delta",
    rounds=4,
    model="softmax",
    evaluation={"every": 1},
    checkpoint={"best": True},
    stop={"patience": 50},
)


def _law(out: Path) -> Callable[[Any], None]:
    if not (out / "four").exists():
        fl.run(CONFIG, out=out / "four", progress=False)
        fl.run({**CONFIG, "rounds": 6}, out=out / "six", progress=False)
    expected = facts(out / "six")

    def law(drawn: tuple[str, int, str, float, bytes]) -> None:
        kind, number, way, place, noise = drawn
        copy = out / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out / "four", copy)
        found = sorted(copy.glob(kind))
        assert found, kind
        damage(found[number % len(found)], way, place, noise)
        try:
            fl.resume(copy, rounds=6, progress=False)
        except (ConfigError, MachineError, ClientError) as error:
            assert str(error)
        else:
            assert not difference(facts(copy), expected), difference(facts(copy), expected)

    return law


def damage(file: Path, way: str, place: float, noise: bytes) -> None:
    """Damage a file at a place, a fraction of its length."""
    content = bytearray(file.read_bytes())
    at = min(int(place * len(content)), max(len(content) - 1, 0))
    if way == "delete":
        file.unlink()
        return
    if way == "flip" and content:
        content[at] ^= 1 << noise[0] % 8
    elif way == "overwrite":
        content[at : at + len(noise)] = noise
    elif way == "append":
        content += noise
    elif way == "cut":
        del content[at:]
    elif way == "empty":
        content.clear()
    file.write_bytes(content)


LAWS: list[tuple[str, int, Any, Any]] = [("damaged files of runs", 6, lambda out: DAMAGES, _law)]
