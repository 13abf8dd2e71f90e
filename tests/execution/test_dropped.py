"""A dropped client is not in the sum, whatever part of its work failed."""

from dataclasses import dataclass, replace

import pytest

import fl
from clients.sgd import LocalSGD

CONFIG = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "strategy": "fedavg",
    "evaluation": {"clients": 0},
    "execution": {"executor": "serial", "plan": "loop", "on_client_error": "drop"},
}


@dataclass(frozen=True, kw_only=True)
class KeepsInvalidState(LocalSGD):
    """A client algorithm whose state is not a tree of values for one client."""

    whose: int

    def work(self, name, ctx, carry):
        reply = super().work(name, ctx, carry)
        return replace(reply, state=object()) if ctx.client == self.whose else reply


@pytest.mark.parametrize("whose", range(4))
def test_whose_state_cannot_be_kept_is_not_in_the_sum(tmp_path, whose):
    def run(name, clients, **more):
        return fl.run({**CONFIG, "cohort": {"name": "fixed", "clients": clients}, **more}, out=tmp_path / name)

    four = run("four", [0, 1, 2, 3], client=KeepsInvalidState(whose=whose))
    three = run("three", [client for client in range(4) if client != whose])
    assert (four.model.compact() - three.model.compact()).abs().max() < 1e-6
    (row,) = four.metrics
    assert row["dropped"] == 1 and f"client {whose}" in row["errors"][0]


def test_a_dropped_client_of_a_chunk_is_not_in_the_sum(tmp_path, monkeypatch):
    """Four clients in chunks of two. The states of the second chunk cannot be kept, nor that of its first client."""
    from fl.storage.segments import Segments

    whole, calls = Segments.append_rows, iter(range(4))

    def append_rows(self, tree, count, room=None):
        if next(calls) in (1, 2):
            raise ValueError("not a state")
        return whole(self, tree, count, room)

    together = {**CONFIG["execution"], "plan": "stacked", "chunk": 2}
    settings = {**CONFIG, "codec": {"up": ["error_feedback", "fp16"]}, "execution": together}
    monkeypatch.setattr(Segments, "append_rows", append_rows)
    four = fl.run({**settings, "cohort": {"size": 4}}, out=tmp_path / "four")
    monkeypatch.undo()
    (row,) = four.metrics
    (whose,) = [client for client in range(4) if f"client {client}," in row["errors"][0]]
    rest = {"name": "fixed", "clients": [client for client in range(4) if client != whose]}
    three = fl.run({**settings, "cohort": rest}, out=tmp_path / "three")
    assert row["dropped"] == 1
    assert (four.model.compact() - three.model.compact()).abs().max() < 1e-5


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn"])
def test_states_of_a_chunk_that_trains_again_are_the_old_ones(tmp_path, monkeypatch, strategy):
    """In round 1 the chunk trains twice: the first sum counts as not finite. The result is that of one training."""
    from fl.execution import uploads

    settings = {
        **CONFIG,
        "cohort": {"size": 4},
        "rounds": 3,
        "strategy": strategy,
        "execution": {"executor": "serial", "plan": "compiled"},
    }
    once = fl.run(settings, out=tmp_path / "once")
    finite, asked, last = uploads.is_finite, [], 3 if strategy == "scaffold" else 2  # SCAFFOLD sends two groups

    def refuses_one(tree):
        asked.append(tree)
        return len(asked) != last and finite(tree)

    monkeypatch.setattr(uploads, "is_finite", refuses_one)
    twice = fl.run(settings, out=tmp_path / "twice")
    assert len(asked) > last
    assert (twice.model.compact() - once.model.compact()).abs().max() < 1e-5
