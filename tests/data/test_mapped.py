"""Memory-mapped data sets: the same bits as in memory; only rows that are read take memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap

import fl
from fl.data.dataset import Dataset, tensors
from fl.data.sets.mapped import Mapped
from fl.tensors.pickling import pack, unpack

MB = 1 << 20

PROBE = """
import json, sys
import fl

def memory(process, *names):
    lines = open(f"/proc/{process}/status").read().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))

def held(process):
    # without pages of files, which the system takes back when it wants them
    return memory(process, "RssAnon", "RssShmem")

found = {}

class Watch(fl.Callback):
    def ready(self, run):
        self.run = run
        found["shared"] = sum(path.stat().st_size for path in run.executor.files.folder.path.iterdir())

    def round(self, row):
        found["driver's peak"] = memory("self", "VmHWM")
        found["workers"] = [held(m.pid) for m in self.run.executor.members]

if __name__ == "__main__":
    fl.run(json.loads(sys.argv[1]), out=sys.argv[2], callbacks=[Watch()])
    print(json.dumps(found))
"""


def config(data, **more):
    return {
        "rounds": 2,
        "data": data,
        "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5, "min_size": 5},
        "model": "softmax",
        "cohort": {"size": 5},
        "strategy": "fedavg",
        "client": {"lr": 0.1, "batch": 8},
        "execution": {"executor": "serial"},
        **more,
    }


@pytest.fixture
def arrays(tmp_path):
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((300, 6)).astype(np.float32), draw.integers(0, 3, 300)
    found = {"x_train": x[:200], "y_train": y[:200], "x_test": x[200:], "y_test": y[200:]}
    (tmp_path / "set").mkdir()
    for name, array in found.items():
        np.save(tmp_path / "set" / f"{name}.npy", array)
    np.savez(tmp_path / "set.npz", **found)
    return found


def test_a_map_is_the_same_data(arrays, tmp_path):
    """Digest, partition, training and evaluation are the same as with the .npz file."""
    read = fl.run(config(str(tmp_path / "set.npz")), out=tmp_path / "read")
    mapped = fl.run(config({"name": "mapped", "path": str(tmp_path / "set")}), out=tmp_path / "mapped")
    assert mapped.digest == read.digest
    sha = [json.loads((tmp_path / run / "environment.json").read_text())["data_sha256"] for run in ("read", "mapped")]
    assert sha[0] == sha[1]
    keys = [key for key in read.metrics[-1] if key.startswith(("eval/", "val/", "train/"))]
    assert keys and [read.metrics[-1][key] for key in keys] == [mapped.metrics[-1][key] for key in keys]


def test_a_map_travels_as_its_place(arrays, tmp_path):
    data = Mapped(path=str(tmp_path / "set")).load()
    whole = tensors(data.train)["x"]
    part = tensors(Dataset({"x": data.train["x"][50:60]}).train)["x"]  # a slice of the map
    for tensor, rows in ((whole, slice(200)), (part, slice(50, 60))):
        code, memories = pack(tensor)
        assert not memories and len(code) < 1000
        assert torch.equal(unpack(code, memories), torch.from_numpy(arrays["x_train"][rows]))
    assert len(pack(whole[3:5])[1]) == 1  # other slices are copied as ordinary memory


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros((4, 2)), "x.npy is float64; mapped features are not converted"),
        ("x", np.zeros((4, 2), np.float32, order="F"), "in Fortran order"),
        ("z", np.zeros(4), r"has \['y', 'z'\]; it needs x.npy, y.npy"),
    ],
)
def test_what_cannot_be_mapped_is_said(name, array, message, tmp_path):
    np.save(tmp_path / "y.npy", np.zeros(4, np.int64))
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(ValueError, match=message):
        Mapped(path=str(tmp_path)).load()
    with pytest.raises(ValueError, match="is not a folder"):
        Mapped(path=str(tmp_path / "elsewhere")).load()


@pytest.mark.ray
def test_a_file_larger_than_what_anybody_holds(tmp_path):
    """1.5 GB of features (a sparse file), two workers: no process holds them in memory, private or shared."""
    rows, features = 1_500_000, 250
    x = open_memmap(tmp_path / "x.npy", "w+", np.float32, (rows, features))
    x[::50_000] = 1.0
    del x
    np.save(tmp_path / "y.npy", np.arange(rows) % 10)
    run = config(
        {"name": "mapped", "path": str(tmp_path)},
        partition={"name": "iid", "clients": 10_000},
        splits={"val": 0.0},
        execution={"executor": "ray", "workers": 2},
    )
    command = [sys.executable, "-W", "ignore", "-c", PROBE, json.dumps(run), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: np.array(sizes) // MB for name, sizes in found.items()})
    assert len(found["workers"]) == 2
    assert max(found["driver's peak"], *found["workers"]) < 700 * MB  # torch itself takes 300 MB
    assert found["shared"] < 100 * MB  # y and the partition take 8 bytes per row each
