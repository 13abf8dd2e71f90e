"""Laws of augmentations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fl.check.finding import Broken, Law
from fl.data.augment import Augment
from fl.tensors import random


def _images() -> tuple[Tensor, np.ndarray]:
    """16 colour images (16, 3, 8, 9) and a random word (16,) for each."""
    x = random.uniform("images", np.arange(16 * 3 * 8 * 9)).astype(np.float32)
    return torch.from_numpy(x).view(16, 3, 8, 9), random.hash64("words", np.arange(16))


def a_sample_changes_by_its_own_word_alone(augment: Augment) -> None:
    """The change of a sample does not depend on the batch; shape and type stay; the input is not modified."""
    x, words = _images()
    before, together = x.clone(), augment.apply(x, words)
    if together.shape != x.shape or together.dtype != x.dtype:
        raise Broken(f"{x.dtype} {tuple(x.shape)} becomes {together.dtype} {tuple(together.shape)}")
    alone = torch.cat([augment.apply(x[i : i + 1], words[i : i + 1]) for i in range(len(x))])
    if not torch.equal(together, alone):
        raise Broken("a sample changes differently in a batch than alone")
    if not torch.equal(x, before):
        raise Broken("apply() changed the samples it was given")


def the_words_decide_the_change(augment: Augment) -> None:
    """The same words give the same result; other words give another one."""
    x, words = _images()
    first = augment.apply(x, words)
    if not torch.equal(first, augment.apply(x, words)):
        raise Broken("applied twice, two results")
    if all(torch.equal(first, augment.apply(x, random.hash64(words, k))) for k in range(8)):
        raise Broken("all words give the same samples")


LAWS: list[Law] = [a_sample_changes_by_its_own_word_alone, the_words_decide_the_change]
