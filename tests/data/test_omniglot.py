"""Omniglot's parts: the drawings of the server, the clients and the test set."""

import numpy as np
import pytest

from fl.data.folder import data_folder
from fl.data.sets.omniglot import Omniglot


@pytest.fixture
def two_kinds(tmp_path, monkeypatch):
    """Write a small file in Omniglot's format.

    Characters 0..5 are in background alphabets 0 and 1, characters 6..9 in evaluation alphabet 2. All 2 x 2 pixels of a
    drawing hold its character's number. Rows are shuffled.
    """
    order = np.random.default_rng(0).permutation(200)
    character, drawer = np.repeat(np.arange(10), 20)[order], np.tile(np.arange(20), 10)[order]
    alphabet = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])[character]
    x = np.broadcast_to((character * 17)[:, None, None], (200, 2, 2))
    (tmp_path / "omniglot").mkdir()
    np.savez(
        tmp_path / "omniglot" / "omniglot28.npz",
        x=x.astype(np.uint8),
        alphabet=alphabet.astype(np.uint8),
        character=character.astype(np.int16),
        drawer=drawer.astype(np.uint8),
        evaluation=alphabet == 2,
    )
    monkeypatch.setenv("FL_DATA", str(tmp_path))


def characters(arrays):
    return np.round(arrays["x"][:, 0, 0, 0] * 15).astype(int)


def test_base_and_field_are_apart(two_kinds):
    data = Omniglot(base=4, field=3).load()
    assert np.unique(data.server["y"]).tolist() == [0, 1, 2, 3] and np.unique(data.train["y"]).tolist() == [4, 5, 6]
    assert np.unique(data.test["y"]).tolist() == list(range(7))
    for part, each in ((data.server, 15), (data.train, 15), (data.test, 5)):
        assert set(np.bincount(part["y"])) - {0} == {each} and part["x"].shape[1:] == (1, 2, 2)
        assert part["x"].dtype == np.float32 and part["x"].max() <= 1
    assert set(characters(data.server)) <= set(range(6)) and set(characters(data.train)) <= set(range(6, 10))
    names = {}
    for part in (data.server, data.train, data.test):  # a label stands for the same character in all parts
        for label, character in zip(part["y"], characters(part)):
            assert names.setdefault(label, character) == character
    assert len(set(names.values())) == 7
    assert data.clients.min() >= 40 and data.clients.max() < 60  # alphabet 2


def test_no_base_is_no_data_of_the_servers_own(two_kinds):
    assert Omniglot(base=0, field=4).load().server is None


def test_the_seed_draws_classes_and_drawings(two_kinds):
    one, again, other = (Omniglot(base=2, field=4, seed=s).load() for s in (0, 0, 1))
    assert one.digest() == again.digest() != other.digest()
    assert not np.array_equal(one.clients, other.clients)


def test_too_much_is_refused(two_kinds):
    with pytest.raises(ValueError, match="field: 5 is not in 1..4"):
        Omniglot(base=2, field=5).load()
    with pytest.raises(ValueError, match="base: 7 is not in 0..6"):
        Omniglot(base=7, field=2).load()
    with pytest.raises(ValueError, match="train_per_class: 20 is not in 1..19"):
        Omniglot(train_per_class=20)


def test_without_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="omniglot/omniglot28.npz is not in"):
        Omniglot().load()


@pytest.mark.skipif(not (data_folder() / "omniglot" / "omniglot28.npz").is_file(), reason="FL_DATA has no omniglot")
@pytest.mark.parametrize("base, classes", [("small1", 136), ("background", 964), (10, 10)])
def test_the_real_thing(base, classes):
    data = Omniglot(base=base, field=100).load()
    assert len(np.unique(data.server["y"])) == classes and len(data.server["y"]) == 15 * classes
    assert len(data) == 1500 and len(data.test["y"]) == 5 * (classes + 100)
    assert data.train["x"].shape[1:] == (1, 28, 28) and 0.05 < data.train["x"].mean() < 0.2
    assert data.clients.min() >= 30 * 20  # evaluation alphabets
