"""Parts of a user's own: wrong bases, hooks and return values are named with the form that is expected."""

from pathlib import Path

import pytest

import fl
from fl.errors import ConfigError
from tests.test_bad_configs import GOOD

HEAD = """
from dataclasses import dataclass
import torch
from fl import ClientAlgorithm, Exchange, LocalTraining, Reply, Strategy, Update

"""


def with_part(folder: Path, body: str, key: str = "strategy", **more):
    """Run a configuration whose part `key` is class Mine of a user's file."""
    (folder / "mine.py").write_text(HEAD + body)
    return fl.run({**GOOD, key: f"{folder}/mine.py:Mine", **more}, out=folder / "run")


# body of the file -> parts of the message, before round 0
CLASSES = {
    "no Strategy": (
        "strategy",
        "class Mine:\n    def step(self, state, reduced, ctx): return state, {}",
        ["strategy: ", "mine.py:Mine has no base class; a strategy is a class Mine(Strategy)"],
    ),
    "a client as strategy": (
        "strategy",
        "class Mine(LocalTraining): pass",
        ["mine.py:Mine derives from LocalTraining; a strategy is a class Mine(Strategy)"],
    ),
    "no client": ("client", "class Mine: pass", ["a client is a class Mine(ClientAlgorithm)"]),
    "no codec": ("codec", "class Mine: pass", ["codec.up[0]: ", "a codec is a class Mine(Codec)"]),
    "no partition": (
        "partition",
        "class Mine: pass",
        ["partition: ", "does not define split(self, dataset); a partition needs it"],
    ),
    "arguments of a hook": (
        "strategy",
        "class Mine(Strategy):\n    def step(self, state, reduced): return state, {}",
        ["mine.py:Mine: step(self, state, reduced) has other arguments than step(self, state, reduced, ctx)"],
    ),
    "state": (
        "strategy",
        "class Mine(Strategy):\n    def init(self, model, ctx): return {'w': model}\n"
        "    def step(self, state, reduced, ctx): return state, {}",
        ["strategy Mine: the state is dict without a field `model`", "model(self, state)"],
    ),
    "no state": (
        "strategy",
        "class Mine(Strategy):\n    def init(self, model, ctx): pass\n"
        "    def step(self, state, reduced, ctx): return state, {}",
        ["strategy Mine: the state is NoneType without a field `model`"],
    ),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_wrong_class_stops_before_round_0(case, tmp_path):
    key, body, message = CLASSES[case]
    with pytest.raises(ConfigError) as error:
        if key == "codec":
            (tmp_path / "mine.py").write_text(HEAD + body)
            fl.run({**GOOD, "codec": {"up": f"{tmp_path}/mine.py:Mine"}}, out=tmp_path / "run")
        else:
            with_part(tmp_path, body, key)
    for part in message:
        assert part in str(error.value)


# body of a strategy -> the message
RETURNS = {
    "no pair": (
        "    def step(self, state, reduced, ctx): return state",
        "strategy Mine: step returned Params, expected",
    ),
    "nothing": (
        "    def step(self, state, reduced, ctx): pass",
        "step returned NoneType, expected a pair (state, metrics)",
    ),
    "three": ("    def step(self, state, reduced, ctx): return 1, 2, 3", "step returned a tuple of 3"),
    "metrics": ("    def step(self, state, reduced, ctx): return state, 1.0", "step returned metrics that are float"),
    "metric name": ("    def step(self, state, reduced, ctx): return state, {1: 2}", "a metric with the name 1"),
    "round": (
        "    def round(self, state, ctx):\n        yield Exchange(state)\n        return state",
        "round returned Params, expected a pair (state, metrics)",
    ),
    "no generator": ("    def round(self, state, ctx): return state, {}", "returned tuple, expected a generator"),
}


@pytest.mark.parametrize("case", RETURNS)
def test_a_wrong_return_value_names_class_hook_and_form(case, tmp_path):
    body, message = RETURNS[case]
    with pytest.raises(TypeError) as error:
        with_part(tmp_path, f"class Mine(Strategy):\n{body}")
    assert message in str(error.value)
