"""Parts of a user's own: wrong bases, hooks and return values are named with the form that is expected."""

from pathlib import Path

import pytest

import fl
from experiments.robustness.user_code import CLASSES, CLIENT, HEAD, NUMBERS, RETURNS
from fl.errors import ConfigError
from tests.test_bad_configs import GOOD


def with_part(folder: Path, body: str, key: str = "strategy", **more):
    """Run a configuration whose part `key` is class Mine of a user's file."""
    (folder / "mine.py").write_text(HEAD + body)
    return fl.run({**GOOD, key: f"{folder}/mine.py:Mine", **more}, out=folder / "run")


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


@pytest.mark.parametrize("case", RETURNS)
def test_a_wrong_return_value_names_class_hook_and_form(case, tmp_path):
    body, message = RETURNS[case]
    with pytest.raises(TypeError) as error:
        with_part(tmp_path, f"class Mine(Strategy):\n{body}")
    assert message in str(error.value)


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
