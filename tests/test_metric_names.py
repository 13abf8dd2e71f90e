"""Metric names in `stop.target` and `evaluation.select`: a name that a run cannot have stops it."""

import pytest

import fl
from fl.errors import ConfigError
from tests.test_bad_configs import GOOD
from tests.test_user_parts import HEAD
from tests.watching import AtStart

# overrides -> parts of the message, before round 0
WRONG = {
    "target": (
        {"stop.target": {"val/acc": 0.5}},
        [
            "stop.target: 'val/acc' is not a metric of this run, which has [",
            "'val/accuracy'",
            "Did you mean 'val/accuracy'?",
        ],
    ),
    "select": ({"evaluation.select": "val/los"}, ["evaluation.select: 'val/los'", "Did you mean 'val/loss'?"]),
    "no validation rows": ({"evaluation.select": "val/loss", "splits.val": 0}, ["'val/loss' is not", "'eval/loss'"]),
    "no test set": ({"stop.target": {"eval/loss": 1.0}, "evaluation.server": False}, ["'eval/loss' is not"]),
    "clients": ({"stop.target": {"clients/accuracy": 1.0}, "splits.test": 0.2}, ["'clients/accuracy_mean'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_unknown_metric_stops_before_round_0(case, tmp_path):
    overrides, message = WRONG[case]
    rounds = []
    with pytest.raises(ConfigError) as error:
        fl.run(GOOD, out=tmp_path / "run", callbacks=[AtStart(rounds.append)], **overrides)
    assert not rounds
    for part in message:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["train/lss", "mean_norm"])
def test_a_name_of_the_strategy_is_checked_in_the_first_evaluation(name, tmp_path):
    body = "class Mine(Strategy):\n    def step(self, state, reduced, ctx): return state + reduced, {'mean_norms': 1.0}"
    (tmp_path / "mine.py").write_text(HEAD + body)
    config = {**GOOD, "rounds": 5, "strategy": f"{tmp_path}/mine.py:Mine"}
    with pytest.raises(ConfigError, match=f"stop.target: '{name}' is not a metric of this run.* Did you mean"):
        fl.run(config, out=tmp_path / "run", **{"stop.target": {name: 1.0}})
    result = fl.run(config, out=tmp_path / "good", **{"stop.target": {"mean_norms": 1.0}})
    assert len(result.metrics) == 1


def test_every_metric_of_a_run_can_be_a_target(tmp_path):
    config = {**GOOD, "splits": {"test": 0.2}}
    names = [n for n, value in fl.run(config, out=tmp_path / "a").metrics[-1].items() if isinstance(value, float)]
    assert len(names) > 10
    fl.run(config, out=tmp_path / "b", **{"stop.target": dict.fromkeys({*names} - {"wall_seconds"}, 0.0)})


def test_a_strategy_names_metrics_of_later_rounds(tmp_path):
    body = """class Mine(Strategy):
    later_metrics = ("end/*",)
    def step(self, state, reduced, ctx): return state + reduced, {"end/norm": 1.0} if ctx.round == 2 else {}"""
    (tmp_path / "mine.py").write_text(HEAD + body)
    config = {**GOOD, "rounds": 5, "strategy": f"{tmp_path}/mine.py:Mine"}
    assert len(fl.run(config, out=tmp_path / "run", **{"stop.target": {"end/norm": 1.0}}).metrics) == 3
