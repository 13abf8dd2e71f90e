"""Tables: statistics of training rows only, compared with scikit-learn; hospitals; FATE's columns."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.folder import data_folder
from fl.data.sets.tabular import Adult, CreditDefault, HeartDisease, Letter, one_hot, parties, standardised

needs_data = pytest.mark.skipif(not (data_folder() / "tabular").is_dir(), reason="FL_DATA names no folder with tabular")


def raw(name):
    return np.load(data_folder() / "tabular" / f"{name}.npz")


def test_standardised_by_hand():
    x = np.array([[0.0, 5.0], [2.0, 5.0], [100.0, 7.0]])
    assert standardised(x, np.array([True, True, False])).tolist() == [[-1, 0], [1, 0], [99, 2]]


def test_one_hot_by_hand():
    assert one_hot(np.array([3.0, np.nan, 7.0]), np.array([3, 6, 7])).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


@needs_data
def test_adult():
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    data, file = Adult().load(), raw("adult")
    scaler = StandardScaler().fit(file["x_num"][:32561])
    assert_allclose(data.train["x"][:, :6], scaler.transform(file["x_num"][:32561]), atol=1e-4)
    assert_allclose(data.test["x"][:, :6], scaler.transform(file["x_num"][32561:]), atol=1e-4)
    categories = OneHotEncoder(sparse_output=False).fit(file["x_cat"]).transform(file["x_cat"])
    assert_array_equal(np.concatenate([data.train["x"], data.test["x"]])[:, 6:], categories)
    assert (len(data), len(data.test["y"])) == (32561, 16281)
    assert data.labels.mean() == pytest.approx(0.241, abs=1e-3)


@needs_data
def test_letter():
    from sklearn.preprocessing import StandardScaler

    data, file = Letter().load(), raw("letter")
    scaler = StandardScaler().fit(file["x"][:16000].astype(float))
    assert_allclose(data.test["x"], scaler.transform(file["x"][16000:].astype(float)), atol=1e-5)
    counts = np.bincount(data.labels) + np.bincount(data.test["y"])
    assert (len(data), counts[0], counts[25]) == (16000, 789, 734)


@needs_data
def test_credit_default_and_its_parties():
    data, columns = CreditDefault(test=0.1, seed=3).load(), parties()
    assert (len(data), len(data.test["y"])) == (27000, 3000)
    assert (data.labels.sum() + data.test["y"].sum()) / 30000 == pytest.approx(0.221, abs=1e-3)
    assert_allclose(data.train["x"].mean(0, np.float64), 0, atol=1e-5)
    assert_allclose(data.train["x"].std(0, np.float64), 1, atol=1e-5)
    assert np.abs(data.test["x"].mean(0)).max() > 1e-3  # statistics contain no test rows
    names = raw("credit_default")["feature_names"]
    assert (len(columns["guest"]), len(columns["host"])) == (13, 10)
    assert set(names[columns["guest"]]) == {
        "PAY_6",
        *(f"{kind}_AMT{i}" for kind in ("BILL", "PAY") for i in range(1, 7)),
    }


@needs_data
def test_heart_disease_of_four_hospitals():
    data, file = HeartDisease(test=0.2, seed=1).load(), raw("heart_disease")
    sizes = np.bincount(data.clients)
    assert sizes.tolist() == [303, 294, 123, 200]
    assert np.bincount(data.clients[data.held]).tolist() == [n // 5 for n in sizes]
    assert data.train["x"].shape == (920, 9 + 7 + 13) and np.isfinite(data.train["x"]).all()
    assert_array_equal(data.test["x"], data.train["x"][data.held])

    learnt = ~data.held
    chol = file["x"][:, 4].astype(float)
    chol[chol == 0] = np.nan  # 0 means missing, as in all rows of Switzerland
    filled = np.where(np.isnan(chol), np.nanmedian(chol[learnt]), chol)
    assert_allclose(data.train["x"][:, 3], (filled - filled[learnt].mean()) / filled[learnt].std(), atol=1e-5)
    assert_array_equal(data.train["x"][:, 9 + 1], np.isnan(chol))
    assert data.train["x"][data.clients == 2][:, 10].all()
    thal = data.train["x"][:, -3:]
    assert_array_equal(thal.sum(1) == 0, np.isnan(file["x"][:, 12]))
    assert_array_equal(thal[:, 1] == 1, file["x"][:, 12] == 6)


@needs_data
def test_held_rows_are_nobodys_in_other_partitions():
    from fl.simulation.build import load_data

    settings = {
        "data": "heart_disease",
        "model": "softmax",
        "strategy": "fedavg",
        "cohort": {"name": "uniform", "size": 2},
    }

    def periods(**partition):
        return load_data(resolve(read(settings | {"partition": partition}, {})))

    data, (period,) = periods(name="iid", clients=5)
    assert_array_equal(np.sort(period.partition.indices), np.flatnonzero(~data.held))
    data, (period,) = periods(name="natural")
    assert period.partition.test.sum() == data.held.sum() == 184 - 2
    assert all(data.held[period.partition.view_rows(c, "test")].all() for c in range(4))


@pytest.mark.parametrize("loader", [HeartDisease, CreditDefault])
def test_fractions(loader):
    with pytest.raises(ValueError, match=r"test: 0 is not in \(0, 1\)"):
        loader(test=0)


@pytest.mark.parametrize("loader", [Adult, HeartDisease, Letter, CreditDefault])
def test_without_the_file(loader, monkeypatch, tmp_path):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"tabular/.*\.npz is not in .*set FL_DATA"):
        loader().load()
