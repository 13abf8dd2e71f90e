"""Configurations and data files of strangers: names that leave their folder, and files that grow when they are read."""

import gzip
import io
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from fl.config.yaml import parse
from fl.data import archives
from fl.errors import ConfigError
from fl.report.sweep_folder import folder_of
from fl.storage.place import check_place, folder_name
from fl.storage.run import create_run_directory
from fl.tools.sweep.reading import load
from tests import process
from tests.trust.test_files import CONFIG

BILLION = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(500))
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{i + 1}: &m{i + 1} {{<<: [{', '.join([f'*m{i}'] * 10)}], k{i}: 1}}\n" for i in range(9)
)

# text -> part of the message
BOMBS = {
    "aliases": (BILLION, "aliases stand for more than 1,000,000 values"),
    "merges": (MERGES, "aliases stand for more than 1,000,000 values"),
    "a chain of aliases": (CHAIN, "nested in more than 64 levels"),
    "a loop": ("a: &a [1, *a]", "a value contains itself by an alias"),
    "a loop of mappings": ("a: &a {b: {c: *a}}", "a value contains itself by an alias"),
    "brackets": ("a: " + "[" * 20_000 + "]" * 20_000, "nested in more than 64 levels"),
    "braces": ("a: " + "{a: " * 20_000 + "1" + "}" * 20_000, "nested in more than 64 levels"),
    "indentation": ("\n".join(" " * i + "a:" for i in range(200)), "nested in more than 64 levels"),
    "digits": ("seed: " + "9" * 100_000, "has more than 64 bits"),
    "hexadecimal": ("seed: 0x1" + "0" * 16, "has more than 64 bits"),
    "negative": ("seed: -18446744073709551616", "has more than 64 bits"),
    "length": ("a: '" + "x" * (33 << 20) + "'", "and 33,554,432 are allowed"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_bombs_end_at_once(bomb):
    text, message = BOMBS[bomb]
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=message):
        parse(text)
    assert time.perf_counter() - start < 5  # seconds; usually milliseconds


@pytest.mark.parametrize("bomb", ["aliases", "brackets", "digits"])
def test_a_yaml_bomb_is_a_mistake_in_the_configuration(bomb, tmp_path):
    (tmp_path / "config.yaml").write_text(BOMBS[bomb][0])
    for command in ("run", "partition", "sweep"):
        arguments = ["--out", tmp_path / "out"] if command != "partition" else []
        done = process.fl(command, tmp_path / "config.yaml", *arguments)
        assert done.returncode == 2 and BOMBS[bomb][1] in " ".join(done.stderr.split())


def test_anchors_and_large_numbers_still_work():
    assert parse("a: &a {lr: 1e-3}\nb: {<<: *a, seed: 18446744073709551615}\nc: [*a, 0x10, 1_000]") == {
        "a": {"lr": 0.001},
        "b": {"lr": 0.001, "seed": 2**64 - 1},
        "c": [{"lr": 0.001}, 16, 1000],
    }
    with pytest.raises(ConfigError, match="given twice"):
        parse("a: 1\nb: 2\na: 3")


@pytest.mark.parametrize("change", ["partition.clients=1", "cohort.size=1", "seed=1000", "cohort.rate=1"])
def test_huge_integers_end_with_exit_code_2(change, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    done = process.fl("run", tmp_path / "config.yaml", f"{change}{'0' * 18}", "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr


# -- compressed data --------------------------------------------------------------------------------------------------
def npy(header_shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> bytes:
    """The bytes of an .npy file whose header may claim another shape than its data have."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": header_shape})
    return file.getvalue() + data


def archive(path: Path, **arrays: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return path


def claims_more(path: Path) -> Path:
    """An archive whose directory says that `x` has a terabyte."""
    archive(path, x=npy((4, 4), bytes(16)), y=npy((4,), bytes(4)))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")  # the entry of x in the directory
    raw[at + 24 : at + 28] = struct.pack("<I", 0xFFFF0000)
    path.write_bytes(raw)
    return path


def test_an_npz_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "bomb.npz", x=npy((1000, 1000), bytes(10**6)), y=npy((1000,), bytes(1000)))
    assert path.stat().st_size < 5000
    monkeypatch.setattr(archives, "free_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"path: .*bomb.npz unpacks to 0.0 GB, and 0.0 GB of memory are free"):
        archives.read_npz(path)
    monkeypatch.undo()
    assert archives.read_npz(path)["x"].shape == (1000, 1000)


def test_a_header_that_claims_more_than_the_file_has_takes_no_memory(tmp_path):
    path = archive(tmp_path / "lie.npz", x=npy((10**15,), bytes(16)), y=npy((4,), bytes(4)))
    with pytest.raises(ValueError, match=r"array x.npy \(1000000000000000,\) needs 1000000000000000 bytes, it has 16"):
        archives.read_npz(path)
    with pytest.raises(ValueError, match="path: .*"):
        archives.read_npz(claims_more(tmp_path / "directory.npz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no .npz file"),
        (b"PK\x03\x04 and no more", "is damaged or no .npz file"),
        (b"\x93NUMPY", "is damaged or no .npz file"),
    ],
)
def test_what_is_no_archive_is_named(content, message, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        archives.read_npz(tmp_path / "x.npz")


class Attack:
    """An object whose pickle makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_objects_in_an_npz_are_not_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([Attack(tmp_path / "called")], object), y=np.zeros(1))
    with pytest.raises(ValueError, match="holds Python objects, not arrays of numbers"):
        archives.read_npz(tmp_path / "evil.npz")
    assert not (tmp_path / "called").exists()


def test_a_data_bomb_ends_the_command_with_exit_code_2(tmp_path):
    archive(tmp_path / "bomb.npz", x=npy((10**13, 2), bytes(64), "<f4"), y=npy((4,), bytes(4)))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "data": "bomb.npz"}))
    done = process.fl("run", "config.yaml", "--out", "out", folder=tmp_path, FL_DATA=str(tmp_path))
    assert done.returncode == 2 and "is damaged" in " ".join(done.stderr.split())


def test_a_gzip_bomb_stops_at_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(32 << 20)))
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr(archives, "free_memory", lambda: 8 << 20)
    with pytest.raises(ValueError, match="unpacks to more than the memory that is free"), archives.open_gzip(path) as f:
        f.read()
    monkeypatch.undo()
    with archives.open_gzip(path) as file:
        assert len(file.read()) == 32 << 20


def test_a_parquet_bomb_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fl.data.sets.file import File

    column = pa.array(np.zeros(10**6))
    pq.write_table(pa.table({"a": column, "y": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10**4
    monkeypatch.setattr(archives, "free_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"bomb.parquet unpacks to 0.0 GB"):
        File(path=str(tmp_path / "bomb.parquet")).load()


DEEP = "[" * 100_000 + "]" * 100_000


def test_deep_json_in_a_run_directory_ends_with_exit_code_2(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(DEEP + "\n")
    done = process.fl("compare", tmp_path)
    assert done.returncode == 2 and "recursion" in done.stderr


def test_deep_json_of_a_partition_ends_with_exit_code_2(tmp_path):
    (tmp_path / "parts.json").write_text(DEEP)
    partition = {"name": "file", "path": str(tmp_path / "parts.json")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "partition": partition}))
    done = process.fl("run", tmp_path / "config.yaml", "--out", tmp_path / "out")
    assert done.returncode == 2 and "partition: is too large for this machine (RecursionError" in done.stderr


# -- names ------------------------------------------------------------------------------------------------------------
NAMES = ["../x", "a/../../x", "/etc", "..", ".", "", "a\0b", "a\nb", "x" * 256, "é" * 128, "~root", "-rf", ".hidden"]


@pytest.mark.parametrize("name", NAMES)
def test_variants_stay_in_their_folder(name, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"config": "config.yaml", "variants": {name: {}}}))
    with pytest.raises(ConfigError, match="^variants: .* cannot name a folder: "):
        load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("seeds", [["../../x"], [-1], [1.5], True, 0, 10**9, "3"])
def test_seeds_are_numbers(seeds, tmp_path):
    sweep = {"config": "config.yaml", "seeds": seeds, "variants": {"A": {}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(ConfigError, match="^seeds: "):
        load(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("value", ["../../x", "/etc/passwd", "a\0b", "x" * 300])
def test_folders_of_settings_stay_beside_their_variant(value, tmp_path):
    for chosen in (value, "b"):
        folder = tmp_path / "out" / folder_of("A", {"model.init": chosen})
        assert folder.resolve().parent == (tmp_path / "out").resolve()
        assert len(folder.name.encode()) <= 255


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\0b", "x" * 300, "..", "é" * 128])
def test_a_new_run_directory_lies_in_runs(name, tmp_path, monkeypatch):
    """The name of a Flower app or of a user's method becomes part of it."""
    monkeypatch.chdir(tmp_path)
    made = create_run_directory(name, 0)
    assert made.is_dir() and made.resolve().parent == tmp_path / "runs"


def test_good_names_are_kept():
    assert [folder_name("variants", name) for name in ("FedAvg", "α = 0.1", "a.b")] == ["FedAvg", "α = 0.1", "a.b"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_folder_can_have_is_a_mistake(name, tmp_path):
    with pytest.raises(ConfigError, match="^out: .* cannot be the name of a folder"):
        check_place(tmp_path / name)
