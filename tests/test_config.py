"""Configurations: built, written and read again; the table of kinds."""

import dataclasses
import pickle

import pytest

from fl import registry
from fl.config.config import Config, resolve
from fl.config.fields import annotations_of, arms, fields_of
from fl.config.reading import read
from fl.errors import ConfigError
from fl.kinds import KINDS, kind_of

GOOD = {
    "data": "digits",
    "partition": {"dirichlet": {"clients": 20, "alpha": 0.3}},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
}
CODE = """
from dataclasses import dataclass
from fl.data.dataset import Dataset
from strategies.fedavg import FedAvg
import numpy as np
from torch import nn

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    power: float = 2.0

def rows(n=40):
    return {"x": np.zeros((n, 3), np.float32), "y": np.arange(n) % 2}

def net(outputs, width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, outputs))
"""


@pytest.fixture
def own(tmp_path):
    """Return a configuration with the user's own parts: a class and two functions."""
    (tmp_path / "mine.py").write_text(CODE)
    file = tmp_path / "mine.py"
    parts = {
        "data": {"name": f"{file}:rows", "n": 60},
        "partition": {"name": "iid", "clients": 4},
        "model": {"name": f"{file}:net", "width": 5, "freeze": ["0.*"]},
        "strategy": {"name": f"{file}:Mine", "power": 3.0},
    }
    return {**GOOD, **parts}


def test_a_resolved_configuration_is_resolved_to_itself():
    once = resolve(read(GOOD)).to_dict()
    assert once["partition"]["name"] == "dirichlet" and once["client"]["name"] == "sgd"
    assert "references" not in once
    assert resolve(once).to_dict() == once


def test_parts_of_the_user_are_written_as_they_were_asked_for(own):
    config = resolve(read(own))
    written = config.to_dict()
    assert written["data"] == own["data"] and written["model"] == own["model"]
    assert written["strategy"] == {
        **own["strategy"],
        "lr": 1.0,
        "weights": "examples",
        "server_optimiser": {"name": "plain", "lr": 1.0},
    }
    assert resolve(written).to_dict() == written


def test_changed_copies_keep_how_their_parts_were_asked_for(own):
    config = resolve(read(own))
    changed = dataclasses.replace(config, rounds=3, strategy=dataclasses.replace(config.strategy, lr=0.5))
    expected = {**config.to_dict(), "rounds": 3}
    expected["strategy"] = {**expected["strategy"], "lr": 0.5}
    assert changed.to_dict() == expected
    other = resolve(read(GOOD)).strategy
    assert dataclasses.replace(config, strategy=other).to_dict()["strategy"]["name"] == "fedavg"


def test_a_copy_in_another_process_is_written_the_same_way(own):
    config = resolve(read(own))
    assert pickle.loads(pickle.dumps(config.strategy)) == config.strategy
    plain = resolve(read(GOOD))
    assert pickle.loads(pickle.dumps(plain)).to_dict() == plain.to_dict()


def test_nothing_about_a_configuration_is_kept_outside_of_it(own):
    one, two = resolve(read(own)), resolve(read({**GOOD, "strategy": "fedprox"}))
    assert one.references["strategy"].part is one.strategy and two.references["strategy"].part is two.strategy


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_is_found_by_its_key(kind):
    """The table's key is a field of `Config`, or of a section or part below it, that holds parts of the kind."""
    holders: list[type] = [Config]
    for word in kind.key.split("."):
        annotations = [annotations_of(cls)[word] for cls in holders if word in fields_of(cls)]
        assert annotations, f"{word} of {kind.key}"
        below = [arm for annotation in annotations for arm in arms(annotation)]
        below += [arg for arm in below for arg in getattr(arm, "__args__", ())]
        bases = [cls for cls in below if isinstance(cls, type) and cls is not type(None)]
        holders = [cls for cls in bases if dataclasses.is_dataclass(cls)]
        above = kind_of(bases[0])
        if above in (
            KINDS["client"],
            KINDS["strategy"],
        ):  # a section without fields has the keys of its parts
            holders = [registry.lookup(above.name, name) for name in registry.names(above.name)]
    assert kind in [kind_of(base) for base in bases]
    assert kind.key.partition(".")[0] in fields_of(Config)


RUN = {"data": "digits", "model": "softmax", "cohort": {"size": 2}, "strategy": "fedavg", "partition": {"clients": 4}}


def test_arguments_without_a_name_are_those_of_the_default_part():
    config = resolve(
        RUN
        | {
            "client": {"optimiser": {"momentum": 0.9}},
            "strategy": {"name": "fedavg", "server_optimiser": {"lr": 0.5}},
            "server": {"deadline_seconds": 1.0},
            "system": {"devices": "identical"},
            "task": {},
        }
    )
    plain = config.to_dict()
    assert plain["client"]["optimiser"] == {"name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    assert plain["strategy"]["server_optimiser"] == {"name": "plain", "lr": 0.5}
    assert (plain["partition"]["name"], plain["partition"]["clients"]) == ("iid", 4)
    assert (plain["server"]["name"], plain["task"]["name"]) == ("sync", "classification")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": {"name": "fedavg", "server_optimiser": {"nestrov": True}}}, "nestrov: not a key of 'plain'"),
        ({"strategy": {"name": "fedavg", "server_optimiser": {"adm": {"lr": 1.0}}}}, "'adm'.*Did you mean 'adam'"),
        ({"partition": {"dirichle": {"alpha": 1.0}}}, "'dirichle'.*Did you mean 'dirichlet'"),
        ({"extend": "base.yaml"}, "extend: .*Did you mean 'extends'"),
    ],
)
def test_a_wrong_name_is_told_from_a_wrong_argument(change, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RUN | change)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_default_is_a_registered_name(kind):
    default = kind.default()
    assert default == "" or registry.is_registered(kind.name, default)


@pytest.mark.parametrize(
    "kind", ["strategy", "client", "baseline", "stream", "codec", "cohort", "server", "task", "optimiser", "adapter"]
)
def test_parts_derive_from_the_base_class_of_their_kind(kind):
    parts = [registry.lookup(kind, name) for name in registry.names(kind)]
    assert [part for part in parts if not issubclass(part, KINDS[kind].base_class)] == []
