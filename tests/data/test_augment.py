"""Augmentations against closed forms."""

import numpy as np
import pytest
import torch

from fl.check.check import check
from fl.data.augment import Cutout, GaussianNoise, RandomRotation, augmented, mapped_pixels, rotated
from fl.data.randaugment import COLOURS, MOVES, RandAugment
from fl.tensors import random

IMAGES = torch.from_numpy(random.uniform("images", np.arange(64 * 3 * 9 * 9)).astype(np.float32)).view(64, 3, 9, 9)
WORDS = random.hash64("words", np.arange(64))
IDENTITY, AUTOCONTRAST, BRIGHTNESS, CONTRAST, POSTERIZE, SOLARIZE = COLOURS
ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = MOVES


@pytest.mark.parametrize("name", ["cutout", "noise", "rotate", "randaugment"])
def test_laws(name):
    assert all(finding.ok for finding in check(f"augment:{name}"))


def test_quarter_turns_are_those_of_torch():
    for k in (1, 2, 3):
        turned = rotated(IMAGES, np.full(64, k * np.pi / 2))
        torch.testing.assert_close(turned, IMAGES.rot90(k, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(rotated(IMAGES, np.zeros(64)), IMAGES, rtol=0, atol=1e-6)
    wide = IMAGES[..., :5]
    torch.testing.assert_close(rotated(wide, np.full(64, np.pi)), wide.rot90(2, (2, 3)), rtol=0, atol=1e-5)


def test_whole_pixels_are_moved_and_zeros_come_in():
    moved = mapped_pixels(IMAGES, np.tile([1.0, 0, 2, 0, 1, -1], (64, 1)))  # from two to the right and one above
    torch.testing.assert_close(moved[:, :, 1:, :-2], IMAGES[:, :, :-1, 2:], rtol=0, atol=1e-5)
    assert not moved[:, :, 0].any() and not moved[..., -2:].any()


def test_cutout_is_a_square_at_the_border_smaller():
    cut = Cutout(share=1 / 3).apply(IMAGES, WORDS)
    gone = (cut == 0) & (IMAGES != 0)
    assert torch.equal(cut[~gone], IMAGES[~gone])
    rows, columns = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(gone[:, 0].sum((1, 2)), rows * columns)  # one rectangle
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3}  # 3 pixels, 2 at a border


def test_noise_is_normal():
    x = torch.zeros(200, 3, 16, 17)
    noise = GaussianNoise(std=0.5).apply(x, random.hash64("many", np.arange(200)))
    count = noise.numel()
    assert abs(noise.mean()) < 4 * 0.5 / count**0.5 and abs(noise.std() - 0.5) < 4 * 0.5 / (2 * count) ** 0.5
    assert (noise.abs() < 0.5).float().mean() == pytest.approx(0.6827, abs=0.005)  # within one deviation
    assert GaussianNoise().apply(torch.zeros(2, 5), WORDS[:2]).shape == (2, 5)  # vectors, too


def test_rotations_are_drawn_up_to_the_largest_angle():
    dot = torch.zeros(64, 1, 9, 9)
    dot[:, :, 4, 8] = 1  # at the right
    height = (RandomRotation(degrees=20).apply(dot, WORDS)[:, 0] * (4 - torch.arange(9.0))[:, None]).sum((1, 2))
    limit = 4 * np.sin(np.deg2rad(20))
    assert height.abs().max() <= limit + 0.3 and height.min() < -1 < 1 < height.max()


def test_operations_on_paper():
    x, half = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2), np.array([0.5])
    values = {operation: operation(x, half).flatten().tolist() for operation in COLOURS}
    assert values[IDENTITY] == x.flatten().tolist()
    assert values[AUTOCONTRAST] == pytest.approx([0, 0.25, 0.5, 1])
    assert values[BRIGHTNESS] == pytest.approx([0, 0.3625, 0.725, 1])  # times 1.45
    assert values[CONTRAST] == pytest.approx([0, 0.165625, 0.528125, 1])  # mean 0.4375
    assert values[POSTERIZE] == pytest.approx([0, 16 / 63, 32 / 63, 1])  # 6 bits
    assert values[SOLARIZE] == pytest.approx([0, 0.25, 0.5, 0])
    assert AUTOCONTRAST(x / 2 + 0.25, half).flatten().tolist() == pytest.approx([0, 0.25, 0.5, 1])
    assert all(torch.allclose(move(IMAGES, np.zeros(64)), IMAGES, atol=1e-5) for move in MOVES)
    third = TRANSLATE_X(IMAGES, np.full(64, 1 / 0.9))  # 0.3 / 0.9 of 9 pixels
    torch.testing.assert_close(third[..., :-3], IMAGES[..., 3:], rtol=0, atol=1e-5)
    down = TRANSLATE_Y(IMAGES, np.full(64, 1 / 0.9))
    torch.testing.assert_close(down[:, :, :-3], IMAGES[:, :, 3:], rtol=0, atol=1e-5)
    middle = SHEAR_X(IMAGES, np.full(64, 1.0))[:, :, 4], SHEAR_Y(IMAGES, np.full(64, 1.0))[..., 4]
    torch.testing.assert_close(middle, (IMAGES[:, :, 4], IMAGES[..., 4]), rtol=0, atol=1e-5)


def test_randaugment_works_on_normalised_images():
    normalised = 4 * IMAGES - 2
    changed = RandAugment(operations=1, magnitude=1.0).apply(normalised, WORDS)
    assert changed.min() >= -2.001 and changed.max() <= 2.001
    assert (
        40 <= sum(not torch.allclose(a, b, atol=1e-5) for a, b in zip(changed, normalised)) <= 63
    )  # one of eleven is the identity


def test_a_chain_has_one_draw_per_sample_and_change():
    chain = (Cutout(), RandAugment())
    torch.testing.assert_close(augmented(chain, IMAGES, 0, np.arange(64)), augmented(chain, IMAGES, 0, np.arange(64)))
    assert not torch.equal(augmented(chain, IMAGES, 0, np.arange(64)), augmented(chain, IMAGES, 1, np.arange(64)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Cutout(share=0), "share: 0 is not in"),
        (lambda: GaussianNoise(std=0), "std: 0 is not positive"),
        (lambda: RandomRotation(degrees=200), "degrees: 200 is not in"),
        (lambda: RandAugment(magnitude=2), "magnitude: 2 is not in"),
        (lambda: Cutout().check((4,)), "cutout needs images"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
