"""Image data sets: the file formats of their authors, byte by byte, and published facts about the real sets."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fl.data.folder import data_folder
from fl.data.images import read_cifar, read_idx, some_rows, unit
from fl.data.sets.cifar import CIFAR10, CIFAR100
from fl.data.sets.mnist import MNIST
from fl.data.sets.usps import USPS
from fl.registry import lookup


def needs(*parts):
    missing = not data_folder().joinpath(*parts).is_file()
    return pytest.mark.skipif(missing, reason=f"the data folder has no {'/'.join(parts)}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    return tmp_path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# -- idx --------------------------------------------------------------------------------------------------------------
IMAGES = bytes(i % 251 for i in range(3 * 28 * 28))


def test_idx_of_bytes_and_of_wider_values(tmp_path):
    images = read_idx(write(tmp_path / "a", struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 28, 28) + IMAGES))
    assert images.shape == (3, 28, 28) and images.dtype == np.uint8
    assert images[1, 2, 3] == (784 + 2 * 28 + 3) % 251
    numbers = read_idx(
        write(tmp_path / "b.gz", struct.pack(">BBBBIII", 0, 0, 12, 2, 2, 1, 0)[:12] + struct.pack(">ii", -5, 70000))
    )
    assert_array_equal(numbers, [[-5], [70000]])
    assert numbers.dtype == np.int32
    reals = read_idx(write(tmp_path / "c", struct.pack(">BBBBI", 0, 0, 13, 1, 2) + struct.pack(">ff", 0.5, -2)))
    assert_array_equal(reals, np.array([0.5, -2], np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file"),
        (b"PK\3\4 a zip", "is not an idx file: it begins with '50 4b 03 04'"),
        (b"\0\0\x07\1\0\0\0\1a", "is not an idx file"),
        (b"\0\0\x08\3\0\0\0\1", "is not an idx file"),
        (b"\0\0\x08\1\0\0\0\3ab", r"has 2 bytes of values, which does not fit \(3,\) of uint8"),
    ],
)
def test_what_is_no_idx_file_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_idx(write(tmp_path / "a", content))


@pytest.mark.parametrize("home", ["mnist", "MNIST/raw"])
def test_mnist_of_the_original_files(folder, home):
    for part, suffix in (("train", ""), ("t10k", ".gz")):
        write(
            folder / home / f"{part}-images-idx3-ubyte{suffix}", struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 28, 28) + IMAGES
        )
        write(folder / home / f"{part}-labels-idx1-ubyte{suffix}", struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"\7\0\2")
    data = MNIST().load()
    assert data.clients is None and list(data.train) == ["x", "y"]
    assert data.labels.tolist() == [7, 0, 2] and data.test["x"].shape == (3, 1, 28, 28)
    assert data.train["x"][2, 0, 27, 27] == np.float32((3 * 784 - 1) % 251) / np.float32(255)
    pooled = MNIST(pooled=True).load()
    assert pooled.labels.tolist() == [7, 0, 2, 7, 0, 2] and pooled.test is None and pooled.clients is None


# -- MNIST ------------------------------------------------------------------------------------------------------------
def test_pooled_is_train_then_test(folder):
    x = np.arange(7, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    stored = {"x": x, "y": np.arange(7), "writer": np.arange(7) * 10, "hsf": np.arange(7) % 2}
    parts = {"train": slice(0, 4), "test": slice(4, 7)}
    (folder / "mnist").mkdir()
    np.savez(folder / "mnist/mnist.npz", **{f"{n}_{p}": a[at] for n, a in stored.items() for p, at in parts.items()})
    data = MNIST(pooled=True).load()
    assert data.test is None and data.labels.tolist() == list(range(7))
    assert data.clients.tolist() == [0, 10, 20, 30, 40, 50, 60] and data.train["hsf"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    few = MNIST(pooled=True, train=5).load()
    assert_array_equal(few.clients, few.labels * 10)
    with pytest.raises(ValueError, match="train: 8 is not in 1..7"):
        MNIST(pooled=True, train=8).load()
    with pytest.raises(ValueError, match="test: 5 with pooled: true"):
        MNIST(pooled=True, test=5)


@needs("mnist", "mnist.npz")
def test_the_real_mnist_pooled():
    data = MNIST(pooled=True).load()
    # the published label counts of train and test, digit by digit
    train = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    test = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    assert_array_equal(np.bincount(data.labels[:60000]), train)
    assert_array_equal(np.bincount(data.labels[60000:]), test)
    assert data.labels[:5].tolist() == [5, 0, 4, 1, 9] and data.labels[60000:60005].tolist() == [7, 2, 1, 0, 4]
    assert len(np.unique(data.clients)) == 836
    assert not np.intersect1d(data.clients[:60000], data.clients[60000:]).size
    assert data.train["x"].min() == 0 and data.train["x"].max() == 1


# -- USPS -------------------------------------------------------------------------------------------------------------
@needs("usps", "usps.npz")
def test_the_real_usps():
    data = USPS().load()
    assert data.train["x"].shape == (7291, 1, 16, 16) and data.test["x"].shape == (2007, 1, 16, 16)
    assert_array_equal(np.bincount(data.labels), [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644])  # Hastie et al.
    assert_array_equal(np.bincount(data.test["y"]), [359, 264, 198, 166, 200, 160, 170, 147, 166, 177])
    assert (data.train["x"].min(), data.train["x"].max()) == (0, 1)


def test_usps_of_libsvm_and_resized(folder):
    import bz2

    (folder / "usps").mkdir()
    line = "10 " + " ".join(f"{i + 1}:{1 if i < 128 else -1}" for i in range(256)) + "\n"
    for name in ("usps.bz2", "usps.t.bz2"):
        (folder / "usps" / name).write_bytes(bz2.compress((line + line.replace("10 ", "1 ", 1)).encode()))
    data = USPS().load()
    assert data.labels.tolist() == [9, 0]
    assert (data.train["x"][0, 0, :8] == 1).all() and (data.train["x"][0, 0, 8:] == 0).all()
    large = USPS(side=28, train=1).load().train["x"]
    assert large.shape == (1, 1, 28, 28)
    assert (large[0, 0, :12] == 1).all() and (large[0, 0, 16:] == 0).all()  # the edge stays in the middle
    with pytest.raises(ValueError, match="side: 0 is not positive"):
        USPS(side=0)


# -- CIFAR ------------------------------------------------------------------------------------------------------------
def record(labels: bytes, red: int, green: int, blue: int) -> bytes:
    """Return an image in three planes: red, green, blue. The second pixel of the first row is brighter by one."""
    planes = [bytes([v, v + 1]) + bytes([v]) * 1022 for v in (red, green, blue)]
    return labels + b"".join(planes)


def test_cifar10_of_the_binary_version(folder):
    home = folder / "cifar10/cifar-10-batches-bin"
    for i in range(1, 6):
        write(home / f"data_batch_{i}.bin", record(bytes([i]), 10 * i, 0, 254) + record(b"\0", 1, 2, 3))
    write(home / "test_batch.bin", record(b"\x09", 0, 51, 102))
    data = CIFAR10().load()
    assert data.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0] and data.test["y"].tolist() == [9]
    assert data.train["x"].dtype == np.float32 and data.train["x"].shape == (10, 3, 32, 32)
    assert_array_equal(
        data.train["x"][4, :, 0, 1] * np.float32(255), [31, 1, 255]
    )  # channel first, then row, then column
    assert_array_equal(data.train["x"][4, :, 1, 0] * np.float32(255), [30, 0, 254])
    few = CIFAR10(train=4).load()
    assert_array_equal(few.train["x"], CIFAR10(train=6).load().train["x"][:4])
    assert (few.labels == np.round(few.train["x"][:, 0, 0, 0] * 25.5) * (few.train["x"][:, 2, 0, 0] > 0.5)).all()
    with pytest.raises(ValueError, match="test: 2 is not in 1..1"):
        CIFAR10(test=2).load()


def test_cifar100_has_both_labels(folder):
    home = folder / "cifar-100-binary"
    write(home / "train.bin", record(b"\x0b\x62", 1, 2, 3) + record(b"\x04\x00", 4, 5, 6))
    write(home / "test.bin", record(b"\x13\x1f", 7, 8, 9))
    fine, coarse = CIFAR100().load(), CIFAR100(labels="coarse").load()
    assert fine.labels.tolist() == [98, 0] and fine.train["coarse"].tolist() == [11, 4]
    assert coarse.labels.tolist() == [11, 4] and coarse.train["fine"].tolist() == [98, 0]
    assert fine.test["y"].tolist() == [31] and fine.test["coarse"].tolist() == [19]
    with pytest.raises(ValueError, match="labels: 'super' is not one of"):
        CIFAR100(labels="super")


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_cut_cifar_file_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"has {size} bytes, not a multiple of 3073"):
        read_cifar(write(tmp_path / "a.bin", bytes(size)), 1)


@needs("cifar10", "cifar10_jpeg.npz")
def test_the_cifar10_copy():
    data = CIFAR10(train=1000, test=500).load()
    assert data.train["x"].shape == (1000, 3, 32, 32) and data.train["x"].dtype == np.float32
    with np.load(data_folder() / "cifar10/cifar10_jpeg.npz") as raw:
        assert_array_equal(np.bincount(raw["y_train"]), [5000] * 10)
        assert_array_equal(np.bincount(raw["y_test"]), [1000] * 10)
    # the training set's mean colour, published with many models: 0.491, 0.482, 0.447
    np.testing.assert_allclose(data.train["x"].mean((0, 2, 3)), [0.4914, 0.4822, 0.4465], atol=0.02)


@pytest.mark.slow
@needs("cifar100", "cifar100_webp.npz")
def test_the_cifar100_copy():
    data = CIFAR100(test=1000).load()
    assert data.train["x"].shape == (50000, 3, 32, 32) and data.test["x"].shape == (1000, 3, 32, 32)
    assert_array_equal(np.bincount(data.labels), [500] * 100)
    assert_array_equal(np.bincount(data.train["coarse"]), [2500] * 20)
    assert all(len(np.unique(data.train["coarse"][data.labels == c])) == 1 for c in range(100))
    np.testing.assert_allclose(data.train["x"].mean((0, 2, 3)), [0.5071, 0.4865, 0.4409], atol=0.005)  # published means


# -- shared functions -------------------------------------------------------------------------------------------------
def test_pixels_and_rows():
    x = unit(np.array([[0, 255], [51, 102]], np.uint8).T)
    assert x.dtype == np.float32 and x.flags.c_contiguous
    assert_array_equal(x, np.array([[0, 0.2], [1, 0.4]], np.float32))
    assert some_rows("train", None, 4, 0, "a").tolist() == [0, 1, 2, 3]
    assert sorted(some_rows("train", 4, 4, 0, "a")) == [0, 1, 2, 3]
    drawn = {tuple(some_rows("train", 50, 100, seed, name)) for seed in (0, 1) for name in ("a", "b")}
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("name", "file", "way_out"),
    [
        ("mnist", "mnist/mnist.npz", "idx files.* in mnist/ or MNIST/raw/"),
        ("usps", "usps/usps.npz", "usps/usps.bz2"),
        ("cifar10", "cifar10/cifar10_jpeg.npz", "data_batch_1.bin .*cs.toronto.edu"),
        ("cifar100", "cifar100/cifar100_webp.npz", "train.bin, test.bin.*cs.toronto.edu"),
        ("omniglot", "omniglot/omniglot28.npz", "brendenlake/omniglot"),
    ],
)
def test_a_missing_set_says_what_would_do(folder, name, file, way_out):
    with pytest.raises(ValueError, match=f"data: {file} is not in {folder}; put it there, or set FL_DATA .*{way_out}"):
        lookup("data", name)().load()
