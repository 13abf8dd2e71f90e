"""Ranking: values from paper, candidates that the user never took, and pools of negatives."""

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import fl
from fl.tasks.auroc import auroc
from fl.tasks.ranking import Ranking, candidates, gains, hit_rate, hits, ndcg, negative_items, ranks


def scores(*rank: int, others: int = 99) -> torch.Tensor:
    """Return scores (U, 1 + others) in which the first item has these ranks."""
    rest = torch.arange(others, 0, -1, dtype=torch.float32)
    return torch.stack([torch.cat([torch.tensor([others + 1.5 - r]), rest]) for r in rank])


def test_ranks_on_paper():
    assert ranks(scores(1, 2, 10, 11, 100)).tolist() == [1, 2, 10, 11, 100]
    assert hits(scores(1, 10, 11), 10).tolist() == [1, 1, 0]
    assert hit_rate(scores(1, 10, 11, 50), 10) == 0.5
    assert ndcg(scores(1), 10) == 1
    assert ndcg(scores(2), 10) == pytest.approx(math.log(2) / math.log(3), rel=1e-12)
    assert ndcg(scores(3, 11), 10) == pytest.approx(0.25, rel=1e-12)  # (log 2 / log 4 + 0) / 2


def test_constant_scores_hit_nothing_and_the_truth_hits_all():
    constant, truth = torch.zeros(7, 100), torch.cat([torch.ones(7, 1), torch.zeros(7, 99)], 1)
    assert hit_rate(constant, 10) == ndcg(constant, 10) == 0  # ties count against the held item
    assert hit_rate(truth, 10) == ndcg(truth, 10) == 1
    one_tie = scores(10)
    one_tie[0, 1] = one_tie[0, 0]  # a better one becomes equal: still ahead
    assert ranks(one_tie).tolist() == [10]


def test_ndcg_is_at_most_the_hit_rate_and_grows_with_k():
    drawn = torch.rand(200, 100, generator=torch.Generator().manual_seed(0))
    for k in (1, 5, 10, 100):
        assert (gains(drawn, k) <= hits(drawn, k)).all()
    assert hit_rate(drawn, 5) <= hit_rate(drawn, 10) <= hit_rate(drawn, 100) == 1
    assert ndcg(drawn, 1) == hit_rate(drawn, 1)


def test_nan_has_no_rank():
    with pytest.raises(ValueError, match="some are NaN.*diverged"):
        hit_rate(torch.tensor([[math.nan, 1.0]]), 1)


def test_auroc_equals_scikit_learn_and_its_symmetries():
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 12, (60,), generator=generator).float()  # with ties
    positive = torch.rand(60, generator=generator) < 0.3
    area = auroc(values, positive)
    assert area == pytest.approx(roc_auc_score(positive.numpy(), values.numpy()), abs=1e-12)
    assert auroc(values.exp(), positive) == area
    assert auroc(-values, positive) == pytest.approx(1 - area, abs=1e-12)
    assert auroc(torch.zeros(60), positive) == 0.5
    assert np.isnan(auroc(values, torch.zeros(60, dtype=torch.bool)))
    with pytest.raises(ValueError, match="some are NaN"):
        auroc(values / 0 * 0, positive)


def test_candidates_are_untaken_and_addressed_by_seed_and_user():
    taken = np.array([3, 4, 5])
    first = candidates(0, 7, taken, 120, 99)
    assert len(set(first.tolist())) == 99 and not set(first.tolist()) & {3, 4, 5}
    np.testing.assert_array_equal(first, candidates(0, 7, taken[::-1], 120, 99))
    assert set(first.tolist()) != set(candidates(0, 8, taken, 120, 99).tolist())
    assert set(first.tolist()) != set(candidates(1, 7, taken, 120, 99).tolist())
    with pytest.raises(ValueError, match="more than the 97 items that user 7 has not taken.*data.max_user"):
        candidates(0, 7, taken, 100, 99)


def test_candidates_are_uniform():
    counts = sum(np.bincount(candidates(0, user, np.array([0]), 11, 5), minlength=11) for user in range(2000))
    assert counts[0] == 0
    assert abs(counts[1:] - 1000).max() < 5 * math.sqrt(2000 * 0.5 * 0.5)


def test_negatives_are_outside_the_excluded_items():
    drawn = negative_items(np.array([0, 2]), 5, 3000, 1, "negatives")
    counts = np.bincount(drawn, minlength=5)
    assert counts[[0, 2]].sum() == 0
    assert abs(counts[[1, 3, 4]] - 1000).max() < 5 * math.sqrt(3000 * (1 / 3) * (2 / 3))
    with pytest.raises(ValueError, match="all 2 items"):
        negative_items(np.arange(2), 2, 1, 0)


def test_loss_is_that_of_torch():
    y, outputs = torch.tensor([1.0, 0.0]), torch.tensor([0.3, -2.0])
    expected = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-2.0))]
    torch.testing.assert_close(Ranking().loss(outputs, {"y": y}), torch.tensor(expected))


def test_the_published_pool_warns(caplog):
    with caplog.at_level(logging.WARNING):
        Ranking(negatives="as_published")
    assert "never draws held items" in caplog.text


RUN = {
    "rounds": 1,
    "data": {"name": "interactions", "users": 6, "items": 40, "per_user": 10},
    "partition": "natural",
    "splits": {"val": 0.0},
    "task": {"name": "ranking", "candidates": 20},
    "model": {"name": "item_table", "dim": 3},
    "cohort": {"size": 3},
    "strategy": "fedmf",
    "evaluation": {"server": False},
    "execution": {"executor": "serial"},
}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "ranking"}, r"task.candidates: user \d+ has taken 10 of 40 items, so fewer than 99"),
        ({"task": {"name": "ranking", "candidates": 20, "items": 30}}, "train x has .* set a larger task.items"),
        ({"task": "regression"}, "item_table gets 1 items from the task; use task: ranking"),
        ({"model": "softmax"}, "has no table of items; use `model: {name: item_table, dim: 32}`"),
        ({"client": {"optimiser": {"name": "sgd", "weight_decay": 0.1}}}, "use client.weight_decay"),
        ({"client": {"trains": ["items.*"]}}, "use model.freeze"),
        ({"client": {"negatives": 0}}, "negatives"),
        ({"model": {"name": "item_table", "items": 30}}, "less than the 40 items of the data"),
    ],
)
def test_what_cannot_work_is_refused_before_round_0(change, message, tmp_path):
    with pytest.raises((fl.ConfigError, ValueError), match=message):
        fl.run(RUN | change, out=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
