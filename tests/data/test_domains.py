"""Several data sets as one; each is a domain."""

import numpy as np
import pytest
import torch

import fl
from fl.config.config import resolve
from fl.data.dataset import Dataset
from fl.data.images import resized
from fl.data.sets.digits import Digits
from fl.data.sets.domains import Domains
from fl.errors import ConfigError

RUN = {
    "data": {
        "name": "domains",
        "sets": ["digits", {"name": "noise", "shape": [3, 6, 6], "clients": 5}],
        "side": 10,
        "clients": 3,
    },
    "partition": "natural",
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"fraction": 1.0},
    "rounds": 1,
    "execution": {"executor": "serial"},
}


def test_resized():
    x = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    assert np.array_equal(resized(x, 3, 4), x)
    grey = resized(x, 1, 4)
    assert np.allclose(grey[:, 0], x.mean(1)) and np.array_equal(resized(grey, 3, 4)[:, 2], grey[:, 0])
    # half the size: smoothing keeps the middle of a ramp unchanged
    ramp = np.tile(np.arange(8, dtype=np.float32), (1, 1, 8, 1))
    half = resized(ramp, 1, 4)[0, 0]
    assert np.allclose(half, half[0]) and np.allclose(half[0, 1:3], [2.5, 4.5], atol=1e-5)


def test_rows_of_each_domain_and_whose_they_are():
    config = resolve(RUN)
    dataset = config.data.load()
    digits = Digits().load()
    assert dataset.train["x"].shape == (len(digits) + 100, 1, 10, 10)
    assert np.array_equal(dataset.train["y"][: len(digits)], digits.labels)
    assert np.array_equal(np.bincount(dataset.train["domain"]), [len(digits), 100])
    counts = np.bincount(dataset.clients)  # three clients per domain, with equal shares
    assert len(counts) == 6 and counts[:3].sum() == len(digits) and counts.max() - counts[:3].min() <= 1
    assert sorted(counts[3:]) == [33, 33, 34]
    assert dataset.test is None  # the noise data set has no test set
    assert resolve(config.to_dict()).to_dict() == config.to_dict()


def test_a_run_of_natural_domains(tmp_path):
    result = fl.run(
        {**RUN, "data": {**RUN["data"], "sets": ["digits", {"name": "digits", "seed": 1}]}}, out=tmp_path / "run"
    )
    assert result.metrics[-1]["eval/accuracy"] > 0.2


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sets": ["digits"]}, "data.sets: 1 data sets; at least two are needed"),
        ({"sets": ["digits", "synthetic"]}, r"data.sets: samples of set 1 have shape \(60,\); they must be images"),
        ({"sets": ["digits", "diggits"]}, r"data.sets\[1\]: 'diggits' is not one of .* Did you mean 'digits'"),
        ({"side": 0}, "data.side: 0 is not at least 1"),
    ],
)
def test_refused(change, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        fl.run({**RUN, "data": {**RUN["data"], **change}}, out=tmp_path / "run")


def test_objects_too():
    class Two:
        def load(self):
            return Dataset({"x": torch.ones(4, 1, 2, 2).numpy(), "y": np.arange(4)})

    assert Domains(sets=(Two(), Two()), side=2).load().train["x"].shape == (8, 1, 2, 2)
