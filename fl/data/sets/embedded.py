"""Texts as features of a frozen encoder, with features of their classes' descriptions: data for open vocabularies.

    x (N, D)      features of a text, of unit length        (fl/data/text_features.py; computed once, then cached)
    text (N, D)   features of the description of the text's class
    y (N,)        the class

`held_out` random classes belong to no client: their rows are the server's test set. The other classes are dealt out to
`clients` natural owners, each with as many classes as the others, but for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.forms import as_dataset
from fl.data.sets.newsgroups import Newsgroups20
from fl.data.sets.text import tokenize
from fl.data.text_features import text_features
from fl.registry import register
from fl.tensors import random


@register("data", "embedded")
@dataclass(frozen=True, kw_only=True)
class Embedded(Loader):
    """Features of texts and of descriptions of their classes.

    Args:
        of: A data set of token ids, with the encoder's tokenizer; classes are numbers or words.
        encoder: `minilm`, or the folder of a pre-trained encoder with a tokenizer.json.
        texts: A description of each class, in the order of the classes. Default: the words that are the labels.
        held_out: Number of random classes that belong to no client, at least 1.
        clients: Number of natural owners, at least 1.
        per_class: Number of training rows of each class that a client has, the first ones; at least 1. Default: all.
        seed: Seed of the random choices.
    """

    of: Loader
    encoder: str = "minilm"
    texts: tuple[str, ...] | None = None
    held_out: int = 8
    clients: int = 4
    per_class: int | None = None
    seed: int = 0

    example_config: ClassVar[Mapping[str, Any]] = {"data.of": Newsgroups20(length=16, per_class=2)}

    def __post_init__(self) -> None:
        at_least(1, held_out=self.held_out, clients=self.clients, per_class=self.per_class)

    def load(self) -> Dataset:
        of = as_dataset(self.of.load())
        ids, labels = of.train["x"], of.labels
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(f"of: x is {ids.dtype} {ids.shape}, and token ids are integers (N, length)")
        texts = self._descriptions(of)
        classes = np.unique(labels)
        if not self.held_out + self.clients <= len(classes):
            raise ValueError(
                f"held_out: {self.held_out} classes and {self.clients} clients are more than the {len(classes)} "
                "classes; each client needs one"
            )
        order = classes[random.permutation(len(classes), self.seed, "embedded")]
        owner = np.full(int(classes.max()) + 1, -1)
        owner[order[self.held_out :]] = np.arange(len(order) - self.held_out) % self.clients
        described = text_features(tokenize(texts, self.encoder, ids.shape[1]), self.encoder)
        arrays: Arrays = {"x": text_features(ids, self.encoder), "text": described[labels], "y": labels}
        own = owner[labels]
        train = np.flatnonzero((own >= 0) & (_rank(labels) < (self.per_class or len(labels))))
        test = np.flatnonzero(own < 0)
        parts = ({name: array[rows] for name, array in arrays.items()} for rows in (train, test))
        return Dataset(next(parts), next(parts), own[train])

    def _descriptions(self, of: Dataset) -> list[str]:
        wanted = int(of.labels.max()) + 1
        texts = self.texts or [word.replace(".", " ") for word in of.words or ()]
        if len(texts) < wanted:
            raise ValueError(f"texts: {len(texts)} descriptions for {wanted} classes; give one for each")
        return list(texts)


def _rank(labels: np.ndarray) -> np.ndarray:
    """Return how many rows of the same class come before each row, (N,).

    >>> _rank(np.array([3, 5, 3, 3])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(labels, kind="stable")
    ranks = np.empty(len(labels), np.int64)
    counts = np.bincount(labels)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
