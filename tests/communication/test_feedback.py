"""Error feedback and delta codecs: sums by hand, stored residuals, and the same bits for every executor."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import fl
from fl.check import bench, runs
from fl.communication.chain import Chain
from fl.communication.codecs.error_feedback import ErrorFeedback, compression_error
from fl.communication.codecs.top_k import TopK
from fl.communication.transmit import transmit
from fl.tensors.params import Params
from fl.tensors.sparse import Table
from tests.test_seams import (  # noqa: F401
    ALL,
    BASE,
    client_state,
    column,
    model_change,
    rows,
    simulate,
    toy,
    weighted_mean,
)

FIVE = [{"topk": {"ratio": 0.25}}]  # 5 of the model's 21 numbers


def normal(n, seed):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_nothing_is_lost_only_late():
    """sum of sent values + last error = sum of given values, for every codec."""
    codec, feedback = Chain((ErrorFeedback(), TopK(ratio=0.1))), ErrorFeedback()
    memory, sent, wanted = None, torch.zeros(40), torch.zeros(40)
    for round_ in range(6):
        u = normal(40, round_)
        fed = feedback.add_residuals({"model": u}, memory)
        arrived, sizes = transmit(codec, fed)
        memory = compression_error(fed, arrived)
        sent, wanted = sent + arrived["model"], wanted + u
        assert int((arrived["model"] != 0).sum()) == 4 and sizes.encoded_bytes == 4 * 4 + 3  # 4 x 6 bits
        assert_allclose(sent + memory[0], wanted, atol=1e-5)


def test_decay_by_hand():
    fed = ErrorFeedback(decay=0.5).add_residuals(torch.tensor([1.0, 1.0]), [torch.tensor([4.0, -2.0])])
    assert fed.tolist() == [3.0, 0.0]


def test_what_has_positions_passes_by():
    table = Table(torch.tensor([1]), torch.ones(1, 2), torch.tensor([3]))
    tree = {"t": table, "w": Params.of({"a": torch.ones(3), "n": torch.arange(2)}), "x": torch.tensor(2.0)}
    memory = compression_error(tree, tree)
    assert [m.shape for m in memory] == [tree["w"].buffers[0].shape, torch.Size([])]
    fed = ErrorFeedback().add_residuals(tree, [m + 1 for m in memory])
    assert fed["t"] is table and float(fed["x"]) == 3 and fed["w"]["a"].tolist() == [2, 2, 2]
    assert fed["w"]["n"].tolist() == [0, 1]
    assert ErrorFeedback().add_residuals(tree, [torch.ones(2)]) is tree  # residuals of other shapes are dropped


# -- in a run ---------------------------------------------------------------------------------------------------------
def late(rounds, n=21, k=5):
    """Send ones `rounds` times through top-k with error feedback, in numpy: (sum of received values, last error)."""
    error, arrived = np.zeros(n), np.zeros(n)
    for _ in range(rounds):
        fed = 1 + error
        keep = np.argsort(-fed, kind="stable")[:k]
        sent = np.zeros(n)
        sent[keep] = fed[keep]
        arrived, error = arrived + sent, fed - sent
    return arrived, error


def test_late_by_hand():
    assert late(3)[0].tolist() == [1] * 5 + [2] * 5 + [3] * 5 + [0] * 6


def test_clients_make_up_for_what_was_left_out(simulate):  # noqa: F811
    run = simulate(strategy="fedavg", client=toy("Constant"), rounds=3, **{"codec.up": ["error_feedback", *FIVE]})
    arrived, error = late(3)
    assert_allclose(model_change(run), weighted_mean(ALL + 1) * arrived, rtol=1e-5)
    for client in ALL:
        state = client_state(run, client)
        assert state["method"] == {"visits": 3, "round": 2}
        assert set(state["residuals"]) == {"train/model", "train/extra"}
        memory = Params(run.first.layout, (state["residuals"]["train/model"][0],)).compact()
        assert_allclose(memory, (client + 1) * error, rtol=1e-5)
    assert set(rows(run, "up", "model").values()) == {5 * 4 + 3}


def test_a_dropped_client_keeps_its_memory(simulate):  # noqa: F811
    settings = {"strategy": "fedavg", "rounds": 2, "execution.on_client_error": "drop"}
    for how in ("raise", "nan"):
        run = simulate(
            client=toy("Constant", fails=[3], when=1, how=how), **settings, **{"codec.up": ["error_feedback", *FIVE]}
        )
        assert column(run, "dropped") == [0, 1]
        for client, rounds in ((3, 1), (2, 2)):
            memory = Params(run.first.layout, (client_state(run, client)["residuals"]["train/model"][0],)).compact()
            assert_allclose(memory, (client + 1) * late(rounds)[1], rtol=1e-5)


@pytest.mark.slow
def test_clients_that_train_together_keep_what_they_would_alone(simulate):  # noqa: F811
    settings = {"model": {"mlp": {"hidden": [4]}}, "client": {"lr": 0.1, "batch": 4}, "rounds": 3}
    settings |= {"cohort": {"name": "cyclic", "size": 4}, "codec.up": ["error_feedback", *FIVE, {"quantise": {}}]}
    loop, together = (simulate(**settings, **{"execution.plan": plan}) for plan in ("loop", "vmap"))
    assert_allclose(model_change(together), model_change(loop), rtol=1e-3, atol=1e-5)
    for client in ALL:
        a, b = (client_state(run, client)["residuals"]["train/model"][0] for run in (loop, together))
        assert a.abs().max() > 0
        assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_server_keeps_what_it_lost(simulate):  # noqa: F811
    """The server sends a constant model three times through top-k and keeps the errors."""
    run = simulate(
        strategy="fedavg", client="sgd", rounds=3, **{"client.lr": 0.0, "codec.down": ["error_feedback", *FIVE]}
    )
    model = run.first.compact().double().numpy()
    error = np.zeros(21)
    for _ in range(3):
        fed = model + error
        keep = np.argsort(-np.abs(fed), kind="stable")[:5]
        error = fed.copy()
        error[keep] = 0
    (memory,) = run.exchanges.downlink.residuals["train/model"]
    assert_allclose(Params(run.first.layout, (memory,)).compact(), error, atol=1e-6)
    assert run.result.metrics[0]["downlink_multicast_bytes"] == 5 * 4 + 3


# -- differences ------------------------------------------------------------------------------------------------------
def test_down_each_client_is_sent_what_it_lacks(simulate):  # noqa: F811
    """In round 0 clients receive the whole model, later the difference to the last model that they received."""
    settings = {"strategy": "fedavg", "client": toy("Constant"), "cohort": {"name": "cyclic", "size": 4}, "rounds": 4}
    run = simulate(**settings, **{"codec.down": ["delta", *FIVE]})
    bytes_ = rows(run, "down", "model")
    whole, part = 21 * 4, 5 * 4 + 3
    seen = set()
    for (round_, _, client), size in sorted(bytes_.items()):
        assert size == (part if client in seen else whole), (round_, client)
        seen.add(client)
    # all coordinates move by the same step: after round 1 clients 0 and 1 have received five of round 0's changes
    cohort = [0, 1, 2, 3]
    step = sum((c + 1) * len(run.run_setup.periods[0].partition.view_rows(c, "train")) for c in cohort)
    step /= sum(len(run.run_setup.periods[0].partition.view_rows(c, "train")) for c in cohort)
    two = simulate(**settings | {"rounds": 2}, **{"codec.down": ["delta", *FIVE]})
    had = client_state(two, 0)["last_received"]["model"].compact() - two.first.compact()
    assert_allclose(had.sort().values, [0] * 16 + [step] * 5, rtol=1e-5, atol=1e-6)
    assert two.result.metrics[0]["downlink_multicast_bytes"] == 4 * whole  # each client receives its own difference


def test_an_exact_difference_changes_last_bits_at_most(simulate):  # noqa: F811
    settings = {
        "model": {"mlp": {"hidden": [4]}},
        "client": {"lr": 0.1, "batch": 4},
        "rounds": 3,
        "execution.plan": "loop",
    }
    plain = simulate(**settings)
    for codec in ({"codec.down": ["delta"]}, {"codec.up": ["delta"]}, {"codec.up": ["error_feedback"]}):
        assert_allclose(model_change(simulate(**settings, **codec)), model_change(plain), atol=1e-6)


WHOLE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Update
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy

@dataclass(frozen=True)
class Heads(Strategy):
    def broadcast(self, state, ctx):
        return {"model": state, "head": torch.ones(3)}
    def reduction(self, state, ctx):
        return {"head": WeightedMean()}
    def step(self, state, reduced, ctx):
        return state, {"head": float(reduced["head"].sum())}

@dataclass(frozen=True)
class Whole(ClientAlgorithm):
    sends: ClassVar[tuple] = ("head",)
    def work(self, name, ctx, carry):
        return Reply(Update({"head": ctx.received["head"] + 2.0**-13 * (ctx.client + 1)}, 1))
"""


def test_up_a_group_is_a_difference_to_what_was_received(simulate, tmp_path):  # noqa: F811
    """Heads are 1 + (c + 1) / 8192: fp16 with its step of 1/1024 rounds most to 1; their differences to 1 are exact."""
    (tmp_path / "whole.py").write_text(WHOLE)
    settings = {"strategy": f"{tmp_path}/whole.py:Heads", "client": {"name": f"{tmp_path}/whole.py:Whole"}, "rounds": 1}
    (lossy,) = column(simulate(**settings, **{"codec.up": ["fp16"]}), "head")
    (exact,) = column(simulate(**settings, **{"codec.up": ["delta", "fp16"]}), "head")
    (left,) = column(simulate(**settings, **{"codec.up": [{"delta": {"groups": ["other"]}}, "fp16"]}), "head")
    mean = 3 * (1 + 2.0**-13 * 3.5)  # 3.5 is the mean of 1, ..., 6
    assert exact == pytest.approx(mean, rel=1e-7) and lossy == left != pytest.approx(mean, rel=1e-4)


# -- the same bits ----------------------------------------------------------------------------------------------------
CODECS = {
    "both ways": {
        "up": ["error_feedback", {"topk": {"ratio": 0.1, "positions": "golomb"}}, "ternary"],
        "down": ["error_feedback", "bf16"],
    },
    "stc": {
        "up": ["error_feedback", {"topk": {"ratio": 0.1}}, "ternary"],
        "down": ["delta", {"topk": {"ratio": 0.1}}, "ternary"],
    },
    "draws": {
        "up": ["error_feedback", {"random_k": {"ratio": 0.1, "scale": False}}, "quantise", "zstd"],
        "down": ["eden"],
    },
}
LAWS = (
    runs.three_rounds_run_and_stay_finite,
    runs.the_same_configuration_gives_the_same_bits,
    runs.cohort_order_does_not_matter,
    runs.an_empty_round_changes_nothing,
    runs.evaluation_has_no_effect_on_training,
    runs.worker_and_order_of_tasks_do_not_matter,
    runs.chunk_size_does_not_matter,
    runs.a_resumed_run_gives_the_same_bits,
    runs.client_states_do_not_leak,
)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_laws_hold_with_codecs(strategy, codec, law, tmp_path):
    class Bench(bench.Bench):
        def config(self, **overrides):
            return super().config(**{"codec": CODECS[codec], **overrides})

    client = {"fedavg": "sgd"}.get(strategy, strategy)
    law(Bench({"name": strategy}, {"name": client, **bench.TRAINING}, tmp_path))


@pytest.mark.ray
@pytest.mark.parametrize("codec", CODECS)
def test_ray_has_the_bits_of_serial(codec, tmp_path):
    config = BASE | {
        "model": {"mlp": {"hidden": [4]}},
        "client": {"lr": 0.1, "batch": 4},
        "rounds": 3,
        "codec": CODECS[codec],
    }
    serial = fl.run(config, out=tmp_path / "serial")
    ray = fl.run(config, out=tmp_path / "ray", **{"execution.executor": "ray", "execution.workers": 2})
    assert serial.digest == ray.digest
    assert serial.ledger.to_pylist() == ray.ledger.to_pylist()
