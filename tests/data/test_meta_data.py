"""Sine waves and few-shot tasks."""

import numpy as np
import pytest

from fl.data.folder import data_folder
from fl.data.sets.fewshot import OmniglotTasks, draw_tasks
from fl.data.sets.sine import Sine, waves

FILE = data_folder() / "omniglot" / "omniglot28.npz"
stored = pytest.mark.skipif(not FILE.is_file(), reason="omniglot is not in the data folder")


def test_every_client_has_a_sine_wave_of_its_own():
    data = Sine(clients=20, samples=30).load()
    assert data.train["x"].shape == data.train["y"].shape == (600, 1)
    amplitudes, phases = waves(20)
    for client in range(20):
        x, y = (data.train[n][data.clients == client][:, 0].astype(np.float64) for n in "xy")
        basis = np.c_[np.sin(x), np.cos(x)]  # A sin(x + p) = A cos p sin x + A sin p cos x
        (a, b), residual, *_ = np.linalg.lstsq(basis, y, rcond=None)
        assert np.hypot(a, b) == pytest.approx(amplitudes[client], abs=1e-4) and residual < 1e-8
        assert np.arctan2(b, a) == pytest.approx(phases[client], abs=1e-3)


def test_amplitudes_phases_and_points_are_uniform():
    amplitudes, phases = waves(20000)
    x = Sine(clients=300, samples=64).load().train["x"]
    for values, low, high in ((amplitudes, 0.1, 5), (phases, 0, np.pi), (x, -5, 5)):
        assert low <= values.min() and values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, rel=0.02, abs=0.1)
        assert values.std() == pytest.approx((high - low) / 12**0.5, rel=0.02)


def test_a_client_has_the_same_wave_among_any_number():
    few, many = Sine(clients=3, samples=5).load(), Sine(clients=9, samples=5).load()
    assert np.array_equal(many.train["y"][:15], few.train["y"])
    assert not np.array_equal(Sine(clients=3, samples=5, seed=1).load().train["y"], few.train["y"])


def test_tasks_are_characters_of_one_alphabet_in_drawn_order():
    alphabets = {0: np.arange(6), 1: np.arange(10, 12), 2: np.arange(20, 29)}
    tasks = draw_tasks(alphabets, 4, np.arange(200))
    for task in tasks:
        assert len(set(task)) == 4 and (set(task) <= set(range(6)) or set(task) <= set(range(20, 29)))
    assert {int(t[0]) // 20 for t in tasks} == {0, 1} and any((np.diff(t) < 0).any() for t in tasks)
    assert np.array_equal(draw_tasks(alphabets, 4, np.array([7])), tasks[7:8])
    with pytest.raises(ValueError, match="ways: 10 is more than the largest alphabet has, 9"):
        draw_tasks(alphabets, 10, np.arange(2))


@stored
def test_omniglot_tasks():
    data = OmniglotTasks(clients=12, held_out=4, ways=5, side=14).load()
    assert data.train["x"].shape == (12 * 100, 1, 14, 14) and 0 <= data.train["x"].min() and data.train["x"].max() <= 1
    assert np.array_equal(np.bincount(data.clients), np.full(12, 100))
    raw = np.load(FILE)
    blocks = raw["x"].astype(np.float64).reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    places = {np.float32(image).tobytes(): i for i, image in enumerate(blocks)}
    for client in range(12):
        mine = data.clients == client
        rows = np.array([places[image.tobytes()] for image in data.train["x"][mine, 0]])
        assert len(set(raw["alphabet"][rows])) == 1
        assert set(raw["evaluation"][rows]) == {client >= 8}
        characters = raw["character"][rows].reshape(5, 20)
        assert (characters == characters[:, :1]).all() and len(set(characters[:, 0])) == 5
        assert np.array_equal(data.train["y"][mine], np.repeat(np.arange(5), 20))


@pytest.mark.parametrize("arguments", [{"held_out": 300}, {"ways": 1}])
def test_refusals(arguments):
    with pytest.raises(ValueError, match="is not"):
        OmniglotTasks(**arguments).load()


def test_missing_data_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="omniglot28.npz is not in .*set FL_DATA"):
        OmniglotTasks().load()
