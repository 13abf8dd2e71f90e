"""`fl.run` takes arrays, functions, modules, classes and instances, serial and on Ray."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import fl
from clients.sgd import LocalSGD
from fl import Strategy
from fl.errors import ConfigError
from tests.test_bad_configs import GOOD

X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


class Net(nn.Module):
    """One layer."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = nn.Linear(shape[0], outputs)

    def forward(self, x):
        return self.layer(x)


def load():
    return X, Y


@dataclass(frozen=True)
class Half(Strategy):
    """Half of the mean."""

    scale: float = 0.5

    def step(self, state, reduced, ctx):
        return state + self.scale * reduced, {}


SMALL = {**GOOD, "partition": {"name": "iid", "clients": 6}, "data": (X, Y), "strategy": Half, "model": Net}


def test_objects_of_each_form_give_equal_bits(tmp_path):
    first = fl.run(SMALL, out=tmp_path / "0").digest
    forms = [{"data": load}, {"strategy": Half()}, {"client": LocalSGD(lr=0.1)}]
    for i, form in enumerate(forms, 1):
        assert fl.run({**SMALL, **form}, out=tmp_path / str(i)).digest == first, form


def test_an_instance_of_a_module_keeps_its_weights(tmp_path):
    module = Net((4,), 2)
    before = module.layer.weight.detach().clone()
    result = fl.run({**SMALL, "model": module, "client": {"lr": 0.0}}, out=tmp_path / "run")
    assert torch.equal(result.model["layer.weight"], before) and torch.equal(module.layer.weight, before)


def test_what_can_be_imported_is_resumed_and_the_rest_is_named(tmp_path):
    result = fl.run({**SMALL, "data": "digits", "model": "softmax"}, out=tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["strategy"] == {"name": "tests.test_python_objects:Half", "scale": 0.5}
    assert fl.resume(tmp_path / "run", rounds="+1").digest != result.digest
    fl.run(SMALL, out=tmp_path / "arrays")
    with pytest.raises(ConfigError, match="data: Dataset was given as a Python object, which config.yaml cannot hold"):
        fl.resume(tmp_path / "arrays", rounds="+1")


@pytest.mark.ray
def test_objects_travel_to_ray(tmp_path):
    ray = {**SMALL, "model": Net((4,), 2), "execution": {"executor": "ray", "workers": 2}}
    serial = {**ray, "execution": {"executor": "serial"}}
    assert fl.run(ray, out=tmp_path / "a").digest == fl.run(serial, out=tmp_path / "b").digest
