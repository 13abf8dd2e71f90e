"""20 Newsgroups ("bydate"), as token ids: 11,314 training and 7,532 test posts in 20 groups.

newsgroups20/newsgroups20.jsonl.xz of the data folder has a JSON object for each post: split, y, author, subject, text;
newsgroups20/groups.json has the names of the groups. Headers, quotations and signatures are removed there. Lang 1995.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import find
from fl.data.sets.text import tokenize
from fl.registry import register

Post = dict[str, Any]


@register("data", "newsgroups20")
@dataclass(frozen=True, kw_only=True)
class Newsgroups20(Loader):
    """20 Newsgroups. The classes are the groups, in alphabetical order; natural owners are the authors.

    Args:
        tokenizer: `minilm`, or the folder of a pretrained model.
        length: Tokens per post, of its subject and text; at least 1.
        per_class: Number of posts of each group in each split, the first of the file; at least 1. Default: all.
    """

    tokenizer: str = "minilm"
    length: int = 64
    per_class: int | None = None

    def __post_init__(self) -> None:
        at_least(1, length=self.length, per_class=self.per_class)

    def load(self) -> Dataset:
        groups = json.loads(find("newsgroups20", "groups.json").read_text())
        counts: Counter[tuple[str, int]] = Counter()
        posts: dict[str, list[Post]] = {"train": [], "test": []}
        for post in _posts(find("newsgroups20", "newsgroups20.jsonl.xz")):
            counts[post["split"], post["y"]] += 1
            if self.per_class is None or counts[post["split"], post["y"]] <= self.per_class:
                posts[post["split"]].append(post)
        authors = np.array([post["author"] for post in posts["train"]], np.int64)
        return Dataset(self._arrays(posts["train"], groups), self._arrays(posts["test"], groups), authors)

    def _arrays(self, posts: list[Post], groups: list[str]) -> Arrays:
        texts = (f"{post['subject']}. {post['text']}" for post in posts)
        return {"x": tokenize(texts, self.tokenizer, self.length), "y": np.array([groups[post["y"]] for post in posts])}


@functools.lru_cache(maxsize=1)
def _posts(path: Path) -> list[Post]:
    """Read all posts; a process reads the file once."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
