"""Preprocessing: long tails, normalisation, crops and flips, caps on a client's rows, and pooling."""

import numpy as np
import pytest
import torch

import fl
from fl.config.config import resolve
from fl.data.augment import Crop, Flip
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.data.section import Data, Standard, long_tailed, normalised
from fl.errors import ConfigError
from fl.tensors import random

RUN = {
    "data": "digits",
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 4},
    "rounds": 2,
    "partition": {"name": "iid", "clients": 8},
    "execution": {"executor": "serial"},
}


def data_of(config):
    return resolve(config).data.load()


def test_long_tail_by_hand():
    # n_k = 100 * 100^(-k/4): 100, 31.6, 10, 3.16, 1
    labels = np.repeat(np.arange(5), [100, 120, 100, 100, 130])
    rows = long_tailed(labels, 100)
    assert np.bincount(labels[rows]).tolist() == [100, 31, 10, 3, 1]
    assert (np.diff(rows) > 0).all() and np.array_equal(rows, long_tailed(labels, 100))
    assert np.array_equal(long_tailed(np.repeat([0, 1], 9), 1), np.arange(18))


def test_long_tail_leaves_the_test_set():
    whole = data_of(RUN)
    tailed = data_of({**RUN, "data": {"name": "digits", "long_tail": 10}})
    counts = np.bincount(tailed.labels)
    assert counts[0] == np.bincount(whole.labels).min() and counts[0] // counts[9] in (10, 11)
    assert np.array_equal(tailed.test["y"], whole.test["y"])


def test_normalised_by_training_rows():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    dataset = Dataset({"x": x, "y": np.array([0, 1])}, {"x": x[:1] + 5, "y": np.array([0])})
    done = normalised(dataset)
    # channel 0 holds 0..3 and 12..15: mean 7.5, variance 36 + 1.25
    assert done.train["x"][0, 0, 0, 0] == pytest.approx(-7.5 / np.sqrt(37.25), abs=1e-6)
    assert done.test["x"][0, 0, 0, 0] == pytest.approx(-2.5 / np.sqrt(37.25), abs=1e-6)
    given = normalised(dataset, Standard(mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 4.0)))
    assert given.train["x"][0, :, 0, 0].tolist() == [-0.5, 1.0, 1.25]
    with pytest.raises(ValueError, match="2 numbers for 3 channels"):
        normalised(dataset, Standard(mean=(1.0, 2.0), std=(2.0, 2.0)))


def test_crop_moves_and_flip_mirrors():
    x = torch.arange(2 * 25.0).view(2, 1, 5, 5) + 1
    words = random.hash64("w", np.arange(400))
    many = Crop(padding=2).apply(x[:1].expand(400, 1, 5, 5), words)
    padded = torch.nn.functional.pad(x[:1], (2,) * 4)[0, 0]
    windows = {tuple(padded[i : i + 5, j : j + 5].flatten().tolist()) for i in range(5) for j in range(5)}
    seen = {tuple(image.flatten().tolist()) for image in many}
    assert seen == windows  # all 25 windows occur, and no other images
    flipped = Flip().apply(x[:1].expand(400, 1, 5, 5), words)
    mirrored = (flipped[:, 0, 0, 0] == 5.0).sum()
    assert 160 < mirrored < 240 and torch.equal(flipped[flipped[:, 0, 0, 0] == 5.0][0], x[0].flip(-1))
    assert torch.equal(Flip(p=0.0).apply(x, words[:2]), x)


@pytest.mark.parametrize("plan", ["loop", "vmap"])
def test_flips_of_all_are_mirrored_data(plan, tmp_path):
    change = {
        "data": {"name": "digits", "augment": [{"name": "flip", "p": 1.0}]},
        "model": "cnn_tiny",
        "execution.plan": plan,
    }
    mirrored = data_of(RUN)
    turned = Dataset({**mirrored.train, "x": mirrored.train["x"][..., ::-1]}, mirrored.test)
    one = fl.run(RUN, out=tmp_path / "a", **change)
    two = fl.run({**RUN, "data": turned, "model": "cnn_tiny"}, out=tmp_path / "b", **{"execution.plan": plan})
    assert max(float((one.model[n] - two.model[n]).abs().max()) for n in one.model) < 1e-5


@pytest.mark.slow
def test_loop_and_batched_draw_alike(tmp_path):
    change = {"data": {"name": "digits", "augment": ["crop", "flip"]}}
    change["data"]["augment"] = [{"name": "crop", "padding": 2}, "flip"]
    loop, stacked, plain = (
        fl.run({**RUN, **extra}, out=tmp_path / f"{i}", **{"execution.plan": plan})
        for i, (plan, extra) in enumerate([("loop", change), ("stacked", change), ("loop", {})])
    )
    difference = max(float((loop.model[n] - stacked.model[n]).abs().max()) for n in loop.model)
    apart = max(float((loop.model[n] - plain.model[n]).abs().max()) for n in loop.model)
    assert difference < 1e-5 and apart > 1e-3


def test_caps_and_pooling_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 0])
    partition = Partition(np.arange(10), np.array([0, 6, 10]), val=np.array([1, 0]), test=np.array([1, 1]))
    # client 0 trains on rows 0 0 0 1 (val 4, test 5), client 1 on 1 1 0 (test 9)
    capped = partition.capped(labels, 1)
    assert capped.indices.tolist() == [0, 3, 4, 5, 6, 8, 9] and capped.offsets.tolist() == [0, 4, 7]
    assert capped.view_rows(0, "train").tolist() == [0, 3] and capped.view_rows(1, "test").tolist() == [9]
    pooled = partition.pooled()
    pooled.check(10)
    assert pooled.view_rows(0, "train").tolist() == [0, 1, 2, 3, 6, 7, 8]
    assert pooled.view_rows(1, "train").tolist() == []
    assert [pooled.view_rows(c, s).tolist() for c in (0, 1) for s in ("val", "test")] == [[4], [5], [], [9]]


@pytest.mark.parametrize(
    "data, said",
    [
        ({"name": "digits", "long_tail": 0.5}, r"data.long_tail: 0.5 is not at least 1"),
        (
            {"name": "digits", "augment": [{"name": "crop", "padding": 0}]},
            r"data.augment\[0\].padding: 0 is not at least 1",
        ),
        (
            {"name": "digits", "augment": ["crob"]},
            r"data.augment\[0\]: 'crob' is not one of \['crop', 'cutout', 'flip', .*\].*'crop'",
        ),
        ({"name": "synthetic", "augment": ["flip"]}, r"data.augment: flip needs images .* a sample has shape \(60,\)"),
        ({"name": "digits", "augment": [{"name": "crop", "padding": 8}]}, "padding: 8 is not smaller than the sides"),
        ({"name": "digits", "normalise": {"mean": [0.5], "std": [0.0]}}, "data.normalise.std: .* positive numbers"),
    ],
)
def test_refused(data, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        fl.run({**RUN, "data": data}, out=tmp_path / "run")


def test_a_resolved_section_resolves_again():
    done = {"name": "digits", "long_tail": 3.0, "normalise": True, "augment": [{"name": "flip", "p": 0.25}]}
    config = resolve({**RUN, "data": done})
    assert isinstance(config.data, Data) and config.data.augment == (Flip(p=0.25),)
    assert resolve(config.to_dict()).to_dict() == config.to_dict()
    assert {k: config.to_dict()["data"][k] for k in done} == done
