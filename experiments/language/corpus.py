"""Public text of the data folder, and instructions made from it: topics of news, continued speeches.

topics    AG News: a headline -> A, B, C or D, for World, Sports, Business, Sci/Tech   topic: the class
speech    Shakespeare: "Continue the speech of ROLE." -> the next words             client: the role, of the longest 20
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
QUESTION = "Which topic has this news item? A World, B Sports, C Business, D Sci/Tech"
TEST = 500  # rows of the test file of topics
HEAD, TAIL = 8, 6  # words of a speech in the input and in the answer
ROLES, SPEECHES, HELD_OUT = 20, 60, 10  # roles; speeches of each, the last ones for the test file


def news() -> list[tuple[str, str, str]]:
    """Return (topic, title, title and description) of each item of AG News."""
    with gzip.open(find("ag_news", "test.csv.gz"), "rt", newline="") as file:
        items = [(TOPICS[int(row[0]) - 1], [part.replace("\\", " ") for part in row[1:]]) for row in csv.reader(file)]
    return [(topic, parts[0], ". ".join(parts)) for topic, parts in items]


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
    """Return all texts that a model is pretrained on. The news of the test rows are not among them, speeches are."""
    train, _ = topic_rows()
    return [row["input"] for row in train] + ["\n".join(lines) for _, lines in speeches()] + posts()


def topic_rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return (training rows, test rows) of the topics of news."""
    rows = [
        {"instruction": QUESTION, "input": text, "output": topic, "topic": topic, "title": title}
        for topic, title, text in news()
    ]
    order = random.permutation(len(rows), "language", "topics")
    return [rows[i] for i in order[TEST:]], [rows[i] for i in order[:TEST]]


def headline(row: dict[str, str]) -> dict[str, str]:
    """Return a row of `topic_rows` with its title alone, and a letter as the answer, which is one token."""
    return {**row, "input": row["title"], "output": "ABCD"[TOPICS.index(row["topic"])]}


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
    """Write topics.jsonl, topics_test.jsonl, speech.jsonl and speech_test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    topics = tuple([headline(row) for row in rows] for rows in topic_rows())
    for name, parts in (("topics", topics), ("speech", speech_rows())):
        for suffix, rows in zip(("", "_test"), parts):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}{suffix}.jsonl").write_text(lines)
