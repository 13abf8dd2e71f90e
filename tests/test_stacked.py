"""Machine code for stacked vectors: order statistics are NumPy's, weighted sums have the bits of the tree."""

import math

import numpy as np
import pytest
import torch

from fl.method.fold import Fold
from fl.method.reduction import Meta, Product, WeightedMean
from fl.tensors import stacked
from fl.tensors.params import Params
from fl.tensors.stacked import means_of_ranks, network, order_statistics


@pytest.fixture
def machine_code(monkeypatch):
    """Machine code for small stacks, too."""
    monkeypatch.setattr(stacked, "FEW", 0)
    monkeypatch.setattr(stacked, "FEW_LOADED", 0)
    monkeypatch.setattr(stacked, "FEW_SUMMED", 0)


@pytest.mark.parametrize("n", range(1, 13))
def test_the_network_sorts_all_zeros_and_ones(n):
    """Enough for all values: the zero-one principle (Knuth, volume 3, theorem 5.3.4Z)."""
    rows = np.array([[(word >> i) & 1 for word in range(2**n)] for i in range(n)])
    for start, stop in {(0, n), ((n - 1) // 2, n // 2 + 1)}:
        values = rows.copy()
        for i, j in network(n, start, stop):
            values[[i, j]] = np.sort(values[[i, j]], axis=0)
        np.testing.assert_array_equal(values[start:stop], np.sort(rows, axis=0)[start:stop])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n, columns", [(1, 5), (2, 300), (7, 129), (33, 1000)])
def test_order_statistics_are_numpys(machine_code, dtype, n, columns):
    rows = torch.randn(n, columns, generator=torch.Generator().manual_seed(n)).to(dtype)
    rows[0, :5] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, math.nan])
    rows[-1, 0] = -math.nan
    before, expected = rows.clone(), np.sort(rows.numpy(), axis=0)
    for start, stop in {(0, n), ((n - 1) // 2, n // 2 + 1)}:
        np.testing.assert_array_equal(order_statistics(rows, start, stop).numpy(), expected[start:stop])
    assert torch.equal(rows.isnan(), before.isnan()) and torch.equal(rows.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("n, columns", [(1, 5), (2, 300), (7, 129), (33, 1000)])
def test_means_of_ranks_are_numpys(monkeypatch, dtype, n, columns):
    """With and without machine code, to the bit."""
    rows = torch.randn(n, columns, generator=torch.Generator().manual_seed(n)).to(dtype)
    rows[0, :5] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, math.nan])
    for start, stop in {(0, n), ((n - 1) // 2, n // 2 + 1), (n // 10, n - n // 10)}:
        with np.errstate(invalid="ignore"):  # infinity - infinity
            expected = np.sort(rows.numpy(), axis=0)[start:stop].astype(np.float64).cumsum(0)[-1] / (stop - start)
        monkeypatch.setattr(stacked, "FEW_LOADED", 1 << 20)
        slow = means_of_ranks(rows, start, stop)
        monkeypatch.setattr(stacked, "FEW_LOADED", 0)
        monkeypatch.setattr(stacked, "FEW", 0)
        fast = means_of_ranks(rows, start, stop)
        monkeypatch.undo()
        np.testing.assert_array_equal(slow.numpy(), expected.astype(rows.numpy().dtype))
        np.testing.assert_array_equal(fast.numpy(), slow.numpy())
        assert fast.dtype == slow.dtype == dtype


@pytest.mark.parametrize("start, stop", [(0, 5), (-1, 2), (2, 2), (3, 1)])
def test_ranks_that_do_not_exist_are_refused(start, stop):
    for function in (order_statistics, means_of_ranks):
        with pytest.raises(
            ValueError, match=f"ranks {start} to {stop}: not 0 <= start < stop <= 4, the number of rows"
        ):
            function(torch.zeros(4, 100_000), start, stop)


def test_bfloat16_is_sorted_as_float32(machine_code):
    rows = torch.randn(6, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.from_numpy(np.sort(rows.float().numpy(), axis=0))
    assert torch.equal(order_statistics(rows, 0, 6).float(), expected)


def test_the_order_of_the_rows_and_the_number_of_threads_change_no_bit(machine_code):
    rows = torch.randn(9, 500, generator=torch.Generator().manual_seed(1))
    rows[2, 7], rows[5, 7] = 0.0, -0.0
    one = order_statistics(rows, 2, 7)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        other = order_statistics(rows.flip(0), 2, 7)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [*range(1, 18), 100])
def test_weighted_sums_have_the_bits_of_the_tree(monkeypatch, dtype, n):
    generator = torch.Generator().manual_seed(n)
    tree = {"w": torch.randn(n, 3, 401, generator=generator).to(dtype), "b": torch.randn(n, 2, generator=generator)}
    meta = Meta(torch.arange(n), torch.randint(0, 50, (n,), generator=generator))
    fold = Fold(Product({"model": WeightedMean()}), n)
    slow = fold.lifted({"model": tree}, meta, n)  # below FEW_SUMMED: separate products and sums
    monkeypatch.setattr(stacked, "FEW_SUMMED", 0)
    fast = fold.lifted({"model": tree}, meta, n)
    for name in tree:
        assert torch.equal(slow["model"][0][name], fast["model"][0][name])
    assert torch.equal(slow["model"][1], fast["model"][1])
    fold.add_stacked(0, n, fast)
    mean = fold.finish()["model"]["w"]
    weights = meta.num_examples.numpy()
    np.testing.assert_allclose(mean.numpy(), np.average(tree["w"].numpy(), axis=0, weights=weights), atol=1e-6)


def test_one_by_one_or_together_has_equal_bits(machine_code):
    n, reduction = 11, WeightedMean()
    values = torch.randn(n, 2000, generator=torch.Generator().manual_seed(3))
    together, alone = Fold(reduction, n), Fold(reduction, n)
    layout = Params.of({"w": values[0]}).layout
    stack = Params(layout, (values,)) if layout.numel == 2000 else None
    assert stack is not None
    together.add_stacked(0, n, together.lifted(stack, Meta(torch.arange(n), torch.arange(1, n + 1)), n))
    for k in range(n):
        alone.add(0, k, reduction.lift(Params.of({"w": values[k]}), Meta(k, k + 1)))
    assert torch.equal(together.finish()["w"], alone.finish()["w"])


def test_integers_are_sorted_too(machine_code):
    rows = torch.tensor([[3, 1], [1, 5], [2, 4]], dtype=torch.int64)
    assert order_statistics(rows, 1, 3).tolist() == [[2, 4], [3, 5]]
    assert order_statistics(rows.to(torch.uint8), 0, 1).tolist() == [[1, 1]]
