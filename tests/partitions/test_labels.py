"""Labels: which training rows keep their labels, and what workers get of the others."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import fl
from fl.check.check import check
from fl.config.config import resolve
from fl.data.dataset import Dataset
from fl.data.labels import hide, moved_to_server, unlabelled_rows, with_labelled
from fl.data.partition import Partition
from fl.registry import lookup, names
from fl.simulation import setup
from fl.simulation.build import load_data, set_up_run

# three clients with 10, 4 and 1 training rows; client 0 has two rows more for validation, client 1 one for tests
PARTITION = Partition(np.arange(18)[::-1], np.array([0, 12, 17, 18]), np.array([2, 0, 0]), np.array([0, 1, 0]))
DATA = Dataset({"x": np.zeros((18, 2)), "y": np.arange(18) % 3})
DIGITS = {
    "rounds": 2, "data": "digits", "partition": {"name": "iid", "clients": 6}, "splits": {"val": 0.1, "test": 0.1},
    "model": "softmax", "strategy": "fedavg", "cohort": {"size": 6}, "execution": {"executor": "serial"},
}  # fmt: skip


def labels(name, **arguments):
    return lookup("labels", name)(**arguments)


def counts(part):
    return hide(part, DATA, PARTITION).train_slices()[1].tolist()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"share": 0.25}, [2, 1, 1]),  # floor(2.5), floor(1.0), and at least 1
        ({"share": 1.0}, [10, 4, 1]),
        ({"total": 7}, [4, 2, 1]),  # one each, and 4 in proportion to the other 9, 3 and 0 rows
        ({"total": 3}, [1, 1, 1]),
        ({"total": 15, "by": "global"}, [10, 4, 1]),
        ({"per_class": 1}, [3, 3, 1]),
        ({"per_class": 2}, [6, 4, 1]),
    ],
)
def test_budgets_on_paper(arguments, expected):
    assert counts(labels("budget", **arguments)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_global_budgets(seed):
    exact = counts(labels("budget", total=6, by="global", seed=seed))
    assert sum(exact) == 6 and min(exact) >= 1
    assert sum(counts(labels("budget", share=0.4, by="global", seed=seed))) == 6  # floor(0.4 * 15)
    assert counts(labels("budget", share=0.1, by="global", seed=seed)) == [1, 1, 1]  # 1 label for 3 clients
    found = hide(labels("budget", per_class=2, by="global", seed=seed), DATA, PARTITION)
    assert min(found.train_slices()[1]) >= 1
    per_class = np.bincount(DATA.labels[found.rows_of("train")], minlength=3)
    first = hide(labels("budget", total=3, seed=seed), DATA, PARTITION).rows_of("train")  # each client's first row
    assert_array_equal(per_class, np.maximum(2, np.bincount(DATA.labels[first], minlength=3)))


def test_the_slices_of_a_client():
    hidden = hide(labels("budget", share=0.25), DATA, PARTITION)
    for client in range(3):
        train = {*hidden.view_rows(client, "train"), *hidden.view_rows(client, "unlabelled")}
        assert train == set(PARTITION.view_rows(client, "train"))
        for view in ("val", "test"):
            assert_array_equal(hidden.view_rows(client, view), PARTITION.view_rows(client, view))
    pooled = hidden.pooled()
    assert pooled.train_slices()[1].tolist() == [4, 0, 0] and pooled.unlabelled.tolist() == [11, 0, 0]
    assert_array_equal(pooled.rows_of("val", "test"), hidden.rows_of("val", "test"))
    assert_array_equal(np.sort(pooled.view_rows(0, "unlabelled")), np.sort(hidden.rows_of("unlabelled")))


def test_whole_clients_and_seen_classes():
    assert sum(n > 0 for n in counts(labels("clients", labelled=2))) == 2
    assert counts(labels("clients", labelled=(0, 2))) == [10, 0, 1]
    seen = hide(labels("open_world", seen=2), DATA, PARTITION)
    assert set(DATA.labels[seen.rows_of("train")]) == {0, 1} and set(DATA.labels[seen.rows_of("unlabelled")]) == {2}
    half = hide(labels("open_world", seen=(2,), share=0.5), DATA, PARTITION)
    assert set(DATA.labels[half.rows_of("train")]) == {2}
    assert_array_equal(half.train_slices()[1], [2, 1, 0])  # of 3 (0, 3, .. in rows 17..8), 1 and 0 rows, rounded up


def test_labels_of_the_server():
    hidden = hide(labels("server", share=0.4), DATA, PARTITION)
    rows = np.sort(hidden.rows_of("train"))
    dataset, clients = moved_to_server(DATA, hidden)
    assert len(rows) == 6 and clients.train_slices()[1].tolist() == [0, 0, 0] and clients.unlabelled.sum() == 9
    assert_array_equal(dataset.server["y"], DATA.labels[rows])
    assert_array_equal(clients.rows_of("val", "test"), PARTITION.rows_of("val", "test"))
    assert not set(rows) & set(clients.indices)


def test_a_row_is_labelled_everywhere_or_nowhere():
    shared = Partition(np.array([0, 1, 1, 2]), np.array([0, 2, 4]))
    shared = with_labelled(shared, np.array([True, False, True, True]))
    with pytest.raises(ValueError, match="row 1 is unlabelled at one client and used with its label at another"):
        unlabelled_rows(DATA, [shared])


@pytest.mark.parametrize("name", names("labels"))
def test_laws(name):
    arguments = {"budget": {"share": 0.3}}.get(name, {})
    assert [finding for finding in check(f"labels:{name}", **arguments) if not finding.ok] == []


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", ["compiled", "loop"])
def test_hidden_labels_change_no_bit(plan, tmp_path, monkeypatch):
    config = DIGITS | {"labels": {"name": "budget", "share": 0.2}, "execution": {"executor": "serial", "plan": plan}}
    hidden = fl.run(config, out=tmp_path / "hidden")
    monkeypatch.setattr(setup, "tensors_for_workers", lambda dataset, partitions: dataset.training_tensors())
    shown = fl.run(config, out=tmp_path / "shown")
    assert torch.equal(hidden.model.buffers[0], shown.model.buffers[0])
    assert hidden.metrics[-1]["val/accuracy"] == shown.metrics[-1]["val/accuracy"]


def test_a_stack_of_linear_layers_stays_compiled_and_workers_get_no_labels(tmp_path):
    run_setup = set_up_run(resolve(DIGITS | {"labels": {"name": "budget", "share": 0.2}}))
    assert run_setup.plan.kind == "compiled"
    partition, job = run_setup.periods[0].partition, run_setup.job(tmp_path, tmp_path)
    hidden = partition.rows_of("unlabelled")
    assert (job.arrays["y"][hidden] == -1).all() and len(hidden) > 900
    for view in ("train", "val", "test"):
        rows = partition.rows_of(view)
        assert_array_equal(job.arrays["y"][rows], run_setup.dataset.labels[rows])
    assert (run_setup.dataset.labels[hidden] >= 0).all()  # the driver keeps the true labels


def test_all_labels_are_no_labels_section(tmp_path):
    one, all_ = (fl.run(DIGITS | more, out=tmp_path / name) for name, more in
                 (("none", {}), ("all", {"labels": {"name": "budget", "share": 1.0}})))  # fmt: skip
    assert torch.equal(one.model.buffers[0], all_.model.buffers[0])


def test_labelled_clients_are_a_cohort_of_their_own(tmp_path):
    """Clients without labels have weight 0, so the mean is that of the labelled clients."""
    four = fl.run(DIGITS | {"labels": {"name": "clients", "labelled": [0, 2, 3, 5]}}, out=tmp_path / "labels")
    cohort = {"name": "fixed", "clients": [0, 2, 3, 5]}
    alone = fl.run(DIGITS | {"cohort": cohort}, out=tmp_path / "cohort")
    torch.testing.assert_close(four.model.buffers[0], alone.model.buffers[0], rtol=0, atol=1e-6)


MINE = """
import numpy as np
from dataclasses import dataclass

@dataclass(frozen=True)
class EvenRows:
    step: int = 2

    def keep(self, dataset, partition):
        return partition.indices % self.step == 0

@dataclass(frozen=True)
class Numbers(EvenRows):
    def keep(self, dataset, partition):
        return partition.indices
"""


def test_a_rule_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    config = DIGITS | {"labels": f"{tmp_path}/mine.py:EvenRows"}
    _, (period,) = load_data(resolve(config))
    assert not (period.partition.rows_of("train") % 2).any() and (period.partition.rows_of("unlabelled") % 2).all()
    assert all(finding.ok for finding in check(f"{tmp_path}/mine.py:EvenRows"))
    with pytest.raises(fl.ConfigError, match="labels: Numbers.keep returned int64 .*, not one bool for each of"):
        load_data(resolve(DIGITS | {"labels": f"{tmp_path}/mine.py:Numbers"}))
    (tmp_path / "other.py").write_text("class Other: pass")
    with pytest.raises(fl.ConfigError, match=r"labels: .*Other does not define keep\(self, dataset, partition\)"):
        load_data(resolve(DIGITS | {"labels": f"{tmp_path}/other.py:Other"}))


# -- labels that the data give ----------------------------------------------------------------------------------------
def given(y, **more):
    x = np.random.default_rng(0).normal(size=(len(y), 3))
    test = {"x": x[:4], "y": np.abs(y[:4])}
    return DIGITS | {"data": {"train": {"x": x, "y": y}, "test": test}} | more


def test_the_data_say_which_rows_have_labels(tmp_path):
    y = np.arange(120) % 3
    y[::4] = -1
    with pytest.raises(fl.errors.ConfigError, match="y has -1 in row 0 .*`labels: given`"):
        set_up_run(resolve(given(y)))
    config = resolve(given(y, labels="given"))
    dataset, (period,) = load_data(config)
    assert_array_equal(np.sort(period.partition.rows_of("unlabelled")), np.arange(0, 120, 4))
    assert period.partition.val.sum() == period.partition.test.sum() == 6  # a tenth of 15 labelled rows, rounded down
    assert (dataset.labels[period.partition.rows_of("train", "val", "test")] >= 0).all()
    assert fl.run(config, out=tmp_path / "run").metrics[-1]["val/accuracy"] >= 0


def test_real_targets_without_label_are_nan(tmp_path):
    y = np.linspace(-1.0, 1.0, 120)
    y[::4] = np.nan
    config = given(y, labels="given", task="regression")
    config["data"]["test"]["y"] = np.zeros(4)
    run_setup = set_up_run(resolve(config))
    rows = run_setup.periods[0].partition.rows_of("unlabelled")
    assert_array_equal(np.sort(rows), np.arange(0, 120, 4))
    assert run_setup.job(tmp_path, tmp_path).arrays["y"][rows].isnan().all()
    assert np.isfinite(fl.run(config, out=tmp_path / "run").metrics[-1]["val/mse"])


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "budget"}, "labels.share: missing; give one of share, per_class and total"),
        ({"name": "budget", "share": 0.5, "total": 9}, "labels.total: given beside share"),
        ({"name": "budget", "share": 0.0}, "labels.share: 0.0 is not in"),
        ({"name": "budget", "total": 5}, "labels.total: 5 labels for 6 clients with .* so 6 .. "),
        ({"name": "clients", "labelled": 7}, "labels.labelled: 7 is more than the 6 clients"),
        ({"name": "clients", "labelled": [6]}, "labels.labelled: 6 is not one of the clients 0..5"),
        ({"name": "open_world", "seen": 11}, "labels.seen: 11 is more than the 10 classes"),
        ({"name": "open_world", "seen": [10]}, "labels.seen: 10 is not one of the 10 classes"),
        ({"name": "server", "share": 1.0}, "labels.share: 1.0 is not in"),
    ],
)
def test_errors(section, message):
    with pytest.raises(fl.errors.ConfigError, match=message):
        load_data(resolve(DIGITS | {"labels": section}))
