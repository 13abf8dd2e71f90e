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


CLIENT = """class Mine(ClientAlgorithm):
    def work(self, name, ctx, carry):
        return Reply(Update({"model": 0 * ctx.received["model"]}, %s, %s))"""

# num_examples, metrics -> the message
NUMBERS = {
    "negative": ("-1000", "{}", " is -1000; expected the number of samples"),
    "nan": ("float('nan')", "{}", " is nan"),
    "word": ("'ten'", "{}", " is 'ten'"),
    "large": ("10**18", "{}", " is 1000000000000000000"),
    "metric": ("1", "{'loss': 'low'}", ": metric 'loss' is 'low', not a number"),
    "metric of many": ("1", "{'loss': torch.ones(2)}", ": metric 'loss' is tensor([1., 1.]), not a number"),
    "metric name": ("1", "{3: 1.0}", ": metric 3 has no string as name"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_an_update_are_checked(case, tmp_path):
    examples, metrics, message = NUMBERS[case]
    with pytest.raises(RuntimeError) as error:
        with_part(tmp_path, CLIENT % (examples, metrics), "client")
    assert message in str(error.value).partition("\n")[0]
    assert "client" in str(error.value)


def test_a_metric_may_be_nan(tmp_path):
    result = with_part(tmp_path, CLIENT % ("2", "{'loss': float('nan')}"), "client")
    assert result.metrics[-1]["train/loss"] is None


def test_a_reply_is_a_reply(tmp_path):
    with pytest.raises(RuntimeError, match=r"client Mine: work returned dict, expected Reply\(update=Update"):
        with_part(tmp_path, "class Mine(ClientAlgorithm):\n    def work(self, name, ctx, carry): return {}", "client")


def test_a_rule_that_gives_nan_is_blamed(tmp_path):
    body = "class Mine(Strategy):\n    def step(self, state, reduced, ctx): return state * float('nan'), {}"
    with pytest.raises(FloatingPointError, match="strategy Mine: step returned a model that is not finite: tensor "):
        with_part(tmp_path, body, rounds=2)


def test_an_overflow_in_a_codec_is_blamed(tmp_path):
    body = "class Mine(Strategy):\n    def init(self, model, ctx): return model * 0 + 1e5"
    with pytest.raises(
        FloatingPointError, match=r"codec.down: fp16 of .*weight overflows \(100000 > 65504\): take bf16"
    ):
        with_part(tmp_path, body, codec={"down": "fp16"})
    body = CLIENT.replace("0 *", "1e5 + 0 *") % (1, {})
    with pytest.raises(RuntimeError, match=r"not finite: fp16 of .*weight overflows \(100000 > 65504\): take bf16"):
        with_part(tmp_path, body, "client", codec={"up": "fp16"})
