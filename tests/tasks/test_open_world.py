"""Clusterings and the open-world task: Sinkhorn's scaling, matched accuracy and NMI on paper and against others."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from fl.tasks.open_world import OpenWorld
from fl.tasks.task import minimised
from fl.tensors.clustering import contingency, matched, matched_accuracy, matching, nmi, sinkhorn
from tests.tasks.test_tasks import pooled


# -- Sinkhorn ---------------------------------------------------------------------------------------------------------
def test_sinkhorn_rows_sum_to_1_and_columns_to_n_over_k():
    cosines = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) * 0.4
    q = sinkhorn(cosines, iterations=1000)
    assert torch.allclose(q.sum(1), torch.ones(40)) and torch.allclose(q.sum(0), torch.full((5,), 8.0), rtol=0.02)
    rows, columns = torch.randperm(40), torch.randperm(5)
    assert torch.allclose(sinkhorn(cosines[rows][:, columns], iterations=1000), q[rows][:, columns], atol=1e-6)
    once = sinkhorn(cosines, iterations=1)
    assert torch.allclose(once.sum(1), torch.ones(40))


def test_sinkhorn_on_paper():
    assert sinkhorn(torch.full((4, 3), 0.7)).flatten().tolist() == pytest.approx([1 / 3] * 12)
    # softmax rows (3/4, 1/4) and (1/4, 3/4) are balanced already
    assert sinkhorn(torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]), scale=1.0).tolist() == [
        pytest.approx([0.75, 0.25]), pytest.approx([0.25, 0.75])
    ]  # fmt: skip
    # one iteration for the rows (3/4, 1/4) twice: r = (1/2) / (3/4, 1/4), so both clusters get the same share
    assert sinkhorn(torch.tensor([[math.log(3), 0.0]] * 2), scale=1.0).flatten().tolist() == pytest.approx([0.5] * 4)
    far = sinkhorn(torch.tensor([[1e4, 0.0], [1e4, 0.0]]))
    assert torch.isfinite(far).all() and sinkhorn(torch.zeros(0, 3)).shape == (0, 3)


# -- matching ---------------------------------------------------------------------------------------------------------
def test_matching_tries_all_renamings():
    table = torch.from_numpy(np.random.default_rng(3).integers(0, 9, (5, 5)))
    best = max(sum(table[k, c] for k, c in enumerate(order)) for order in itertools.permutations(range(5)))
    rows, columns = matching(table)
    assert (
        rows.tolist() == [*range(5)] and sorted(columns.tolist()) == [*range(5)] and table[rows, columns].sum() == best
    )
    assert matched(table.double()).sum() == best


def test_matched_accuracy_ignores_the_names_of_clusters():
    draw = np.random.default_rng(0)
    true, predicted = (torch.from_numpy(draw.integers(0, 6, 90)) for _ in range(2))
    names = torch.tensor([4, 0, 5, 2, 1, 3])
    assert matched_accuracy(names[true], true) == 1.0
    assert matched_accuracy(names[predicted], true) == matched_accuracy(predicted, true)
    # clusters 0, 0, 0, 1 of classes 0, 0, 1, 1: cluster 0 is class 0, cluster 1 is class 1
    assert matched_accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])) == 0.75
    # two clusters of one class: only one of them may have its name
    assert matched_accuracy(torch.tensor([0, 0, 1]), torch.tensor([3, 3, 3])) == pytest.approx(2 / 3)
    assert math.isnan(matched_accuracy(true[:0], true[:0]))


def test_nmi_is_that_of_scikit_learn():
    draw = np.random.default_rng(1)
    for size in (1, 2, 5):
        a, b = draw.integers(0, size, 60), draw.integers(0, 5, 60)
        table = contingency(torch.from_numpy(a), torch.from_numpy(b), 5)
        assert nmi(table) == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-12)
    assert nmi(torch.tensor([[4.0]])) == 1.0 and math.isnan(nmi(torch.zeros(2, 2)))


# -- the task ---------------------------------------------------------------------------------------------------------
def test_metrics_on_paper_and_pooled():
    task = OpenWorld(seen=2, globally_unseen=(2,))
    #         seen 0, 0, 1     class 2 (globally unseen)   class 3 and 4 (locally unseen)
    y = torch.tensor([0, 0, 1, 2, 2, 2, 2, 3, 3, 4])
    said = torch.tensor(
        [0, 1, 1, 4, 4, 4, 0, 2, 2, 2]
    )  # unseen: 4 -> 2 (3 right of 4), 2 -> 3 (2 of 2, none of class 4)
    outputs = torch.nn.functional.one_hot(said, 5).float()
    found, each = pooled(task, outputs, y, seed=0)
    paper = {
        "seen_accuracy": 2 / 3, "unseen_accuracy": 5 / 7, "all_accuracy": 7 / 10, "unseen_gap": abs(2 / 3 - 3 / 4),
        "unseen_nmi": normalized_mutual_info_score(said[3:], y[3:]), "accuracy": 2 / 10,
    }  # fmt: skip
    assert {name: found[name] for name in paper} == pytest.approx(paper)
    for client in range(5):  # a client's own metric is that of its rows; NaN without samples of such classes
        own = torch.from_numpy(np.flatnonzero(each["owner"] == client))
        assert len(each["unseen_accuracy"]) == 5 and (len(own) > 0)
    assert minimised("unlabelled_rows/unseen_gap") and not minimised("unlabelled_rows/unseen_accuracy")
    assert "unseen_gap" not in OpenWorld(seen=2).metrics()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seen": 0}, "seen"),
        ({"seen": 3, "globally_unseen": (2,)}, "globally_unseen: 2 is a seen class"),
        ({"seen": (0, 7)}, "7 is not one of the classes 0..4"),
    ],
)
def test_wrong_classes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpenWorld(**arguments).num_outputs({"y": np.arange(5)})
