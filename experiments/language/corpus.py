"""Public text of the data folder, and instructions made from it: topics of news, continued speeches.

news      AG News: the text -> World, Sports, Business or Sci/Tech
speech    Shakespeare: "Continue the speech of ROLE." -> the next words       client: the role, of the longest 20
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from fl.data.folder import find
from fl.tensors import random

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
UNSEEN = 500  # news items that are left out of the pretraining
HEAD, TAIL = 8, 6  # words of a speech in the input and in the answer
ROLES, SPEECHES, HELD_OUT = 20, 60, 10  # roles; speeches of each, the last ones for the test file


def news_rows() -> list[dict[str, str]]:
    """Return title and description, and topic, of items of AG News, in a random order, without the unseen ones."""
    with gzip.open(find("ag_news", "test.csv.gz"), "rt", newline="") as file:
        items = list(csv.reader(file))
    order = random.permutation(len(items), "language", "topics")[UNSEEN:]
    return [
        {"input": ". ".join(items[i][1:]).replace("\\", " "), "output": TOPICS[int(items[i][0]) - 1]} for i in order
    ]


def speeches() -> Iterator[tuple[str, list[str]]]:
    """Yield (role with its play, speeches)."""
    with gzip.open(find("shakespeare", "shakespeare_by_role.jsonl.gz"), "rt") as file:
        for role in map(json.loads, file):
            yield f"{role['role'].title()} ({role['play']})", role["speeches"]


def posts() -> list[str]:
    """Return the training posts of 20 Newsgroups."""
    with lzma.open(find("newsgroups20", "newsgroups20.jsonl.xz"), "rt") as file:
        return [post["text"] for post in map(json.loads, file) if post["split"] == "train"]


def pretraining_texts() -> list[str]:
    """Return all texts that a model is pretrained on, speeches among them."""
    return [row["input"] for row in news_rows()] + ["\n".join(lines) for _, lines in speeches()] + posts()


def speech_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return (training rows, test rows) of continued speeches, of the roles with the most speeches."""
    long = {role: [words for words in map(str.split, lines) if len(words) >= HEAD + TAIL] for role, lines in speeches()}
    train, test = [], []
    for role in sorted(long, key=lambda role: (-len(long[role]), role))[:ROLES]:
        name = role.partition(" (")[0]
        for i, words in enumerate(long[role][:SPEECHES]):
            given, answer = " ".join(words[:HEAD]), " ".join(words[HEAD : HEAD + TAIL])
            row = {"instruction": f"Continue the speech of {name}.", "input": given, "output": answer, "client": role}
            (train if i < SPEECHES - HELD_OUT else test).append(row)
    return train, test


def write(folder: Path) -> None:
    """Write speech.jsonl and speech_test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("speech", "speech_test"), speech_rows()):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
