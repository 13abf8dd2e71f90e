"""Models of the user: all forms of `model: path/to/file.py:Name` and `module:Name`."""

import re
import sys
from pathlib import Path

import pytest
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError

MINE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass(frozen=True, kw_only=True)
class Part:
    hidden: int = 3
    def build(self, shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.hidden), nn.Linear(self.hidden, outputs))

class Plain:
    def __init__(self, hidden=3):
        self.hidden = hidden
    def build(self, shape, outputs):
        return Part(hidden=self.hidden).build(shape, outputs)

ready = Part(hidden=4)

def build(shape, outputs, hidden=3):
    assert type(shape) is tuple
    return Part(hidden=hidden).build(shape, outputs)

def part(hidden=3):
    return Part(hidden=hidden)

def fixed(hidden=3):
    return Part(hidden=hidden).build((1, 8, 8), 10)

def anything(**more):
    return Part(**more).build((1, 8, 8), 10)

def wrong():
    return "a module"

class Net(nn.Module):
    def __init__(self, outputs, hidden=3):
        super().__init__()
        self.inner, self.head = nn.Linear(64, hidden), nn.Linear(hidden, outputs)
    def forward(self, x):
        return self.head(torch.relu(self.inner(x.flatten(1))))

net = Net(10)
NUMBER = 3

class Other:
    pass
"""
CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"lr": 0.01},
    "execution": {"executor": "serial"},
}
FORMS = ["Part", "Plain", "build", "part", "fixed", "anything", "Net"]


@pytest.fixture
def mine(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path}/mine.py"


def parameters(hidden: int) -> int:
    return 65 * hidden + 10 * (hidden + 1)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_runs_with_its_arguments_and_resumes(mine, name, tmp_path):
    result = fl.run(CONFIG | {"model": {"name": f"{mine}:{name}", "hidden": 5}}, out=tmp_path / "run")
    assert result.model.numel == parameters(5)
    again = fl.run(CONFIG | {"model": {"name": f"{mine}:{name}", "hidden": 5}, "rounds": 3}, out=tmp_path / "three")
    assert fl.resume(tmp_path / "run", rounds="+1").model.buffers[0].equal(again.model.buffers[0])


@pytest.mark.parametrize("name", FORMS)
def test_without_arguments_the_defaults_hold(mine, name):
    assert count(resolve(read(CONFIG | {"model": f"{mine}:{name}"})).model.build((1, 8, 8), 10)) == parameters(3)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_an_object_that_builds(mine, tmp_path):
    fl.run(CONFIG | {"model": f"{mine}:ready"}, out=tmp_path / "run")
    assert fl.resume(tmp_path / "run", rounds="+1").model.numel == parameters(4)


def test_a_module_by_name(tmp_path, monkeypatch):
    (tmp_path / "models_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    config = resolve(read(CONFIG | {"model": {"name": "models_of_mine:build", "hidden": 2}}))
    assert count(config.model.build((1, 8, 8), 10)) == parameters(2)
    assert config.to_dict()["model"] == {"name": "models_of_mine:build", "hidden": 2}
    del sys.modules["models_of_mine"]


def test_functions_and_objects_in_python(mine):
    def build(outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))

    class Builds:
        def build(self, shape, outputs):
            return build(outputs)

    for model in (build, Builds()):
        assert fl.run(CONFIG | {"model": model}).model.numel == 650


@pytest.mark.slow
def test_init_freeze_and_adapter_apply_to_them(mine, tmp_path):
    model = {"name": f"{mine}:Net", "hidden": 5}
    result = fl.run(CONFIG | {"model": {**model, "freeze": ["inner.*"]}}, out=tmp_path / "run")
    assert set(result.model) == {"head.weight", "head.bias"}
    assert fl.run(CONFIG | {"model": {**model, "adapter": {"name": "lora", "rank": 1, "alpha": 1}}}).model.numel == (
        64 + 5
    ) + (5 + 10)


@pytest.mark.ray
def test_on_ray_the_file_travels_by_value(mine):
    model = {"model": {"name": f"{mine}:Net", "hidden": 5}}
    serial = fl.run(CONFIG | model)
    ray = fl.run(CONFIG | model, **{"execution.executor": "ray", "execution.workers": 1})
    assert ray.model.buffers[0].equal(serial.model.buffers[0])


@pytest.mark.parametrize(
    "model, said",
    [
        ({"name": "Other"}, r"model: Other has no build\(shape, outputs\) and is not a function or an nn.Module class"),
        ({"name": "NUMBER"}, r"model: an instance of int has no build"),
        ({"name": "net"}, r"model: an instance of Net has no build"),
        ({"name": "wrong"}, "model: wrong returns str, not an nn.Module"),
        ({"name": "build", "hiden": 5}, r"model.hiden: not an argument of build, which has \['hidden'\]"),
        ({"name": "Net", "width": 5}, r"model.width: not an argument of Net, which has \['hidden'\]"),
        ({"name": "ready", "hidden": 5}, "model.hidden: not an argument of"),
        ({"name": "needs"}, r"model.depth: missing; needs needs it"),
    ],
)
def test_what_is_no_model_is_refused(mine, model, said):
    with open(mine, "a") as file:
        file.write("\ndef needs(depth, outputs):\n    pass\n")
    with pytest.raises(ConfigError, match=said):
        fl.run(CONFIG | {"model": {**model, "name": f"{mine}:{model['name']}"}})


def test_the_models_of_the_docs(tmp_path):
    text = (Path(fl.__file__).parent.parent / "docs/models.md").read_text()
    (tmp_path / "my_model.py").write_text(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    sizes = {"Part": 65 * 32 + 10 * 33, "build": 8 * 10 + 16 + 10 * 9, "Net": 9 * 32 + 10 * 33}
    for name, size in sizes.items():
        part = resolve(read(CONFIG | {"model": f"{tmp_path}/my_model.py:{name}"})).model
        assert count(part.build((1, 8, 8), 10)) == size
