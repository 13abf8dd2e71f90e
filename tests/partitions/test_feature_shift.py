"""Feature shifts: a rotation, noise or colour per client."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

import fl
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.registry import lookup, names
from partitions.colour import Colour, factors
from partitions.noise import FeatureNoise, deviations
from partitions.rotate import Rotate, client_angles, rotated

IMAGES = np.random.default_rng(0).random((12, 3, 7, 9), np.float32)
# client 0 has rows 3 and 1, client 1 rows 0, 2, 7, 9, client 2 none, client 3 row 5; other rows have no client
PARTITION = Partition(np.array([3, 1, 0, 2, 7, 9, 5]), np.array([0, 2, 6, 6, 7]))
NOBODYS = [4, 6, 8, 10, 11]


def data(x=IMAGES) -> Dataset:
    return Dataset({"x": x, "y": np.arange(len(x))}, test={"x": x[:2], "y": np.arange(2)})


# -- rotate -----------------------------------------------------------------------------------------------------------
def test_quarter_turns_are_exact():
    square = IMAGES[:4, :, :, :7]
    turned = rotated(square, np.array([0.0, 90.0, 180.0, 270.0]))
    for k in range(4):
        assert_array_equal(turned[k], np.rot90(square[k], k, axes=(1, 2)))


@pytest.mark.parametrize("angle", [-30.0, 7.5, 100.0])
def test_other_angles_as_scipy_turns(angle):
    ours = rotated(IMAGES[:2], np.array([angle, angle]))
    padded = np.pad(IMAGES[:2], ((0, 0), (0, 0), (10, 10), (10, 10)))  # scipy does not interpolate with the outside
    theirs = ndimage.rotate(padded, angle, axes=(3, 2), reshape=False, order=1)[:, :, 10:-10, 10:-10]
    assert_allclose(ours, theirs, atol=1e-5)


def test_angles_are_dealt_evenly_or_drawn_uniformly():
    assert sorted(np.unique(client_angles(10, angles=(0, 90, 180, 270)), return_counts=True)[1]) == [2, 2, 3, 3]
    drawn = client_angles(4000, 30.0)
    assert np.abs(drawn).max() <= 30 and drawn.mean() == pytest.approx(0, abs=4 * 30 / np.sqrt(3 * 4000))
    assert drawn.std() == pytest.approx(30 / np.sqrt(3), rel=0.05)


def test_each_client_is_turned_by_its_own_angle():
    shift = Rotate(degrees=40.0, seed=2)
    x = shift.apply(data(), PARTITION).train["x"]
    for c, angle in enumerate(client_angles(4, 40.0, seed=2)):
        for row in PARTITION.view_rows(c, "train"):
            assert_array_equal(x[row], rotated(IMAGES[row : row + 1], np.array([angle]))[0])


def test_grey_images_without_a_channel_axis_turn_too():
    x = Rotate(angles=(90,)).apply(data(IMAGES[:, 0, :, :7]), PARTITION).train["x"]
    assert_array_equal(x[3], np.rot90(IMAGES[3, 0, :, :7]))


# -- noise ------------------------------------------------------------------------------------------------------------
def test_noise_grows_as_in_the_paper():
    """Client c of N has the variance level (c + 1) / N: 0.2, 0.4, 0.6, 0.8 for level 0.8 and four clients."""
    assert_allclose(deviations(4, 0.8) ** 2, [0.2, 0.4, 0.6, 0.8])
    assert_allclose(sorted(deviations(4, 0.8, True, 1) ** 2), [0.2, 0.4, 0.6, 0.8])
    partition = Partition(np.arange(4000), np.arange(5) * 1000)
    zeros = Dataset({"x": np.zeros((4000, 20), np.float32)})
    x = FeatureNoise(level=0.8).apply(zeros, partition).train["x"].reshape(4, -1)
    assert_allclose(x.var(1), [0.2, 0.4, 0.6, 0.8], rtol=4 * np.sqrt(2 / 20000))


def test_a_rows_noise_does_not_depend_on_whose_it_is():
    x = FeatureNoise(level=1.0).apply(data(), PARTITION).train["x"] - IMAGES
    other = Partition(np.array([9, 5, 3]), np.array([0, 1, 2, 3, 3]))
    y = FeatureNoise(level=1.0).apply(data(), other).train["x"] - IMAGES
    assert_allclose(x[9] / np.sqrt(2), y[9], atol=1e-6)  # row 9 belongs to client 1 of 4, then to client 0 of 4
    assert_allclose(x[5] / 2, y[5] / np.sqrt(2), atol=1e-6)


# -- colour -----------------------------------------------------------------------------------------------------------
def test_brightness_scales_contrast_spreads_about_the_mean():
    bright = Colour(brightness=0.5, contrast=0.0, seed=1).apply(data(), PARTITION).train["x"]
    for c in (0, 1, 3):
        ratio = [bright[row] / IMAGES[row] for row in PARTITION.view_rows(c, "train")]
        assert np.ptp(ratio) < 1e-5 and 0.5 <= ratio[0].mean() <= 1.5
    flat = Colour(brightness=0.0, contrast=1.0, seed=1).apply(data(), PARTITION).train["x"]
    assert_allclose(flat[5].mean(), IMAGES[5].mean(), rtol=1e-5)
    k = flat[5].std() / IMAGES[5].std()
    assert_allclose(flat[5] - flat[5].mean(), k * (IMAGES[5] - IMAGES[5].mean()), atol=1e-5)
    assert flat[3].std() / IMAGES[3].std() == pytest.approx(
        flat[1].std() / IMAGES[1].std(), rel=1e-4
    )  # both rows belong to client 0


def test_a_cast_is_one_factor_per_channel():
    x = Colour(brightness=0.0, contrast=0.0, cast=0.4, seed=1).apply(data(), PARTITION).train["x"]
    ratios = (x[5] / IMAGES[5]).reshape(3, -1)
    assert (np.ptp(ratios, axis=1) < 1e-5).all() and np.ptp(ratios[:, 0]) > 0.01
    assert_allclose(ratios[:, 0], factors(4, 0.4, "colour/cast", 1, 3)[3], rtol=1e-5)


# -- all --------------------------------------------------------------------------------------------------------------
SHIFTS = [Rotate(degrees=30.0), FeatureNoise(level=0.5), Colour(cast=0.2)]
NEUTRAL = [Rotate(degrees=0.0), FeatureNoise(level=0.0), Colour(brightness=0.0, contrast=0.0)]


@pytest.mark.parametrize("shift", SHIFTS, ids=lambda s: s.registered_as)
def test_a_shift_changes_what_is_held_and_nothing_else(shift):
    before = data()
    after = shift.apply(before, PARTITION)
    assert_array_equal(before.train["x"], IMAGES)
    assert_array_equal(after.train["x"][NOBODYS], IMAGES[NOBODYS])
    assert all((after.train["x"][row] != IMAGES[row]).any() for row in PARTITION.indices)
    assert_array_equal(after.train["y"], before.train["y"])
    assert after.test is before.test or np.array_equal(after.test["x"], before.test["x"])
    assert_array_equal(after.train["x"], shift.apply(before, PARTITION).train["x"])
    other = lookup("shift", shift.registered_as)(
        **{f: getattr(shift, f) for f in shift.__dataclass_fields__} | {"seed": 1}
    )
    assert not np.array_equal(after.train["x"], other.apply(before, PARTITION).train["x"])
    assert shift.registered_as in names("shift")


@pytest.mark.parametrize("shift", NEUTRAL, ids=lambda s: s.registered_as)
def test_the_neutral_setting_changes_nothing(shift):
    assert_allclose(shift.apply(data(), PARTITION).train["x"], IMAGES, atol=1e-6)


def test_bytes_stay_bytes():
    x = np.full((12, 1, 2, 2), 250, np.uint8)
    bright = Colour(brightness=1.0, contrast=0.0, seed=0).apply(data(x), PARTITION).train["x"]
    gains = np.clip(np.rint(250 * factors(4, 1.0, "colour/brightness", 0)[:, 0]), 0, 255)
    assert bright.dtype == np.uint8 and [bright[r, 0, 0, 0] for r in (3, 0, 5)] == gains[[0, 1, 3]].tolist()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Rotate().apply(data(np.zeros((12, 5))), PARTITION), "rotate: samples of shape .5,. are not images"),
        (
            lambda: Colour().apply(data(np.zeros((12, 5, 5))), PARTITION),
            "colour: samples of shape .5, 5. are not images",
        ),
        (lambda: FeatureNoise(level=-1.0), "level: -1.0 is negative; it is a variance"),
        (lambda: Colour(cast=2.0), r"cast: 2.0 is not in \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["rotate", "noise", "colour"])
def test_a_run_under_a_shift(name, tmp_path):
    config = {
        "rounds": 1, "data": "digits", "partition": {"name": "iid", "clients": 4}, "shift": name, "model": "softmax",
        "cohort": {"size": 4}, "strategy": "fedavg", "client": {"lr": 0.1}, "execution": {"executor": "serial"},
    }  # fmt: skip
    assert 0 < fl.run(config, out=tmp_path / "run").metrics[-1]["eval/accuracy"] < 1
