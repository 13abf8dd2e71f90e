"""The next cohort is drawn while threads train. It is the one of its round, and a resumed run does not notice."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pytest
from numpy.testing import assert_array_equal

import fl
from fl.config.reading import read
from fl.method.sampler import Uniform
from fl.tracking.callback import Callback

CONFIG = {
    "seed": 3,
    "rounds": 4,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 30, "alpha": 0.5, "min_size": 4},
    "model": "softmax",
    "strategy": "fedavg",
    "client": {"lr": 0.1, "batch": 10, "epochs": 1},
    "cohort": {"size": 8},
    "evaluation": {"every": 4},
    "execution": {"executor": "serial", "workers": 2, "plan": "compiled", "chunk": 4},
}


class Ahead(Callback):
    """Remembers the round of the cohort that was drawn ahead, after each round."""

    def start(self, run):
        self.run, self.rounds = run, []

    def computed(self, row):
        drawn = self.run.exchanges.time.ahead.drawn
        self.rounds.append(None if drawn is None else drawn.round)


@dataclass(frozen=True, kw_only=True)
class Own(Uniform):
    """A user's sampler."""


def cohorts(ledger) -> list[np.ndarray]:
    """The clients of each round of a ledger, ascending."""
    return [np.unique(ledger.filter(pc.field("round") == r)["client"].to_numpy()) for r in range(CONFIG["rounds"])]


@pytest.mark.parametrize("cohort", [{"size": 8}, {"name": "weighted", "size": 8}, {"name": "cyclic", "size": 8}])
def test_cohorts_are_those_of_their_rounds_also_after_an_interruption(tmp_path, cohort):
    watch = Ahead()
    whole = fl.run(read(CONFIG, {"cohort": cohort}), out=tmp_path / "whole", callbacks=[watch])
    assert watch.rounds == [1, 2, 3, None]
    sampler, sizes = watch.run.config.cohort, watch.run.run_setup.sizes(0)
    state = sampler.init(len(sizes))
    for round_, clients in enumerate(cohorts(whole.ledger)):
        state, expected = sampler.sample(state, round_, CONFIG["seed"], sizes)
        assert_array_equal(clients, expected)

    rounds = iter([False, True])
    fl.run(read(CONFIG, {"cohort": cohort}), out=tmp_path / "parts", interrupt=lambda: next(rounds))
    parts = fl.resume(tmp_path / "parts")
    assert parts.digest == whole.digest and parts.ledger.equals(whole.ledger)


def test_an_error_of_a_draw_comes_in_its_round(tmp_path, monkeypatch):
    def fails(self, state, round_, seed, sizes):
        if round_ == 2:
            raise ValueError("no cohort")
        return draw(self, state, round_, seed, sizes)

    draw = Uniform.sample
    monkeypatch.setattr(Uniform, "sample", fails)
    with pytest.raises(ValueError, match="no cohort"):
        fl.run(read(CONFIG, {}), out=tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2


def test_a_sampler_of_a_user_draws_in_its_round(tmp_path):
    watch = Ahead()
    config = {**CONFIG, "cohort": {"name": f"{__file__}:Own", "size": 8}}
    fl.run(read(config, {}), out=tmp_path / "run", callbacks=[watch])
    assert watch.rounds == [None] * 4
