"""Instructions with answers, from a .jsonl, .parquet or .csv file, as token ids for a causal language model.

    {"instruction": "Which topic has this item?", "input": "Stocks fell ...", "output": "Business", "client": "ann"}

Each row becomes prompt + answer + the tokenizer's token for the end of a text. y is -100 outside of the answer. The
partition `natural` gives each client its own rows; partitions by label divide rows by their topic.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.checks import at_least
from fl.data.columns import identifiers
from fl.data.dataset import Dataset, Loader
from fl.data.folder import locate
from fl.data.packing import Text, packed, padded, rows_of
from fl.data.prompts import check_template, prompt
from fl.data.sets.file import read_table
from fl.data.tokenizers import beginning, encoded, ending, load_tokenizer
from fl.data.words import codes
from fl.registry import register

log = logging.getLogger(__name__)

FILES = (".jsonl", ".parquet", ".csv")


@register("data", "instructions")
@dataclass(frozen=True, kw_only=True)
class Instructions(Loader):
    """Instructions and answers. Clients and topics that are words are numbered in sorted order.

    Args:
        path: the file, .jsonl, .parquet or .csv, relative to the configuration file, to the current directory or to the
            data folder.
        tokenizer: folder of the model, a .gguf file, or smollm2.
        test: a second file, with the server's test rows.
        length: tokens of a row, at least 2. A longer text is cut at its end; a text whose prompt fills the row is left
            out. A warning says how many.
        instruction: column of the instructions.
        input: column of the inputs; texts may be empty. A file without a column `input` has no inputs, unless
            {input} is the only field of the template.
        output: column of the answers, which must not be empty.
        clients: column with the owner of each row. Default: none.
        topic: column with the topic of each row. Default: none.
        template: alpaca, chat (the tokenizer's own) or a text with {instruction}, and perhaps {input}.
        pack: several texts of one client and topic share a row. A text does not see the others in its row.
    """

    path: str
    tokenizer: str
    test: str | None = None
    length: int = 256
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    clients: str | None = None
    topic: str | None = None
    template: str = "alpaca"
    pack: bool = False

    def __post_init__(self) -> None:
        at_least(2, length=self.length)
        check_template(self.template)
        for key in ("path", "test"):
            value = getattr(self, key)
            if value is not None and not value.endswith(FILES):
                raise ValueError(f"{key}: {value!r} must end in .jsonl, .parquet or .csv")

    def load(self) -> Dataset:
        train = self._read("path", self.path)
        test = None if self.test is None else self._read("test", self.test)
        tables = [train] if test is None else [train, test]
        topics = [table.topics for table in tables]
        if self.topic is not None:
            topics = codes(*topics)
        owners = None if train.owners is None else codes(train.owners)[0]
        parts, kept = zip(*(self._rows(t, of, owners if t is train else None) for t, of in zip(tables, topics)))
        return Dataset(parts[0], parts[1] if test is not None else None, None if owners is None else owners[kept[0]])

    def _read(self, key: str, path: str) -> _Table:
        """Read and tokenise a file; the rows that do not fit are left out."""
        table = _read(locate(path, key), key)
        if not len(table):
            raise ValueError(f"{key}: {path} has no rows")
        instructions = _texts(table, "instruction", self.instruction)
        inputs = _texts(table, "input", self.input, empty=True) if self._has_inputs(table) else None
        answers = _texts(table, "output", self.output)
        tokenizer = load_tokenizer(self.tokenizer)
        contexts = inputs or [""] * len(answers)
        prompts = [prompt(self.template, i, c, tokenizer) for i, c in zip(instructions, contexts)]
        first = [] if self.template == "chat" else beginning(tokenizer)  # a chat template writes it itself
        last = [ending(tokenizer, self.tokenizer)]
        whole = [
            Text(first + before, after + last)
            for before, after in zip(encoded(tokenizer, prompts), encoded(tokenizer, answers))
        ]
        if any(not text.prompt for text in whole):
            raise ValueError(f"template: {self.template!r} makes an empty prompt; write a text before the answer")
        cut = [text.cut(self.length) for text in whole]
        kept = np.array([i for i, text in enumerate(cut) if text is not None], np.int64)
        texts = [text for text in cut if text is not None]
        shortened = sum(len(text.answer) < len(whole[i].answer) for i, text in zip(kept, texts))
        if len(texts) < len(whole) or shortened:
            log.warning(
                "data: of %d texts in %s, %d are longer than %d tokens and were cut, and %d were left out because "
                "their prompt alone is as long; data.length allows more",
                len(whole),
                path,
                shortened,
                self.length,
                len(whole) - len(texts),
            )
        if not texts:
            raise ValueError(f"length: no prompt in {path} has fewer than {self.length} tokens; set more")
        topics = np.zeros(len(whole), np.int64) if self.topic is None else identifiers(table, "topic", self.topic)
        owners = None if self.clients is None or key == "test" else identifiers(table, "clients", self.clients)[kept]
        return _Table(texts, topics[kept], owners)

    def _has_inputs(self, table: Any) -> bool:
        """Return whether to read inputs: their column may be missing unless `input` or the template needs it."""
        alone = "{input}" in self.template and "{instruction}" not in self.template
        return alone or self.input != Instructions.input or self.input in table.column_names

    def _rows(self, table: _Table, topics: np.ndarray, owners: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray]:
        """Return the arrays of a table's rows, and the first text of each row."""
        texts = table.texts
        if not self.pack:
            kept, (x, y) = np.arange(len(texts)), padded(texts, self.length)
        else:
            groups: dict[tuple[int, int], list[int]] = {}
            for i in range(len(texts)):
                groups.setdefault((0 if owners is None else int(owners[i]), int(topics[i])), []).append(i)
            rows = [
                [members[i] for i in row]
                for members in groups.values()
                for row in rows_of([len(texts[i]) for i in members], self.length)
            ]
            kept = np.array([row[0] for row in rows])
            x, y = packed([[texts[i] for i in row] for row in rows], self.length)
        return {"x": x, "y": y} | ({} if self.topic is None else {"topic": topics[kept].astype(np.int64)}), kept


@dataclass(frozen=True)
class _Table:
    """The texts of a file, and the topic and the owner of each, (n,)."""

    texts: Sequence[Text]
    topics: np.ndarray
    owners: np.ndarray | None


def _read(path: Path, key: str) -> Any:
    """Read a file as a pyarrow table. Errors begin with `key`, the setting that names it."""
    if path.suffix != ".jsonl":
        return read_table(path, key)
    import pyarrow.json as json

    if not path.stat().st_size:
        raise ValueError(f"{key}: {path} has no rows")
    try:
        table = json.read_json(path, parse_options=json.ParseOptions(newlines_in_values=False))
        table.validate(full=True)  # also that texts are UTF-8
        return table
    except ValueError as error:  # pyarrow's errors about the content are ValueErrors
        form = "a line is one JSON object, and all lines have the same types"
        raise ValueError(f"{key}: {path} cannot be read: {error}. In a .jsonl file {form}") from None


def _texts(table: Any, key: str, name: str, empty: bool = False) -> list[str]:
    """Return a column of texts; numbers become texts.

    Raises:
        ValueError: there is no such column, it has other types, or a text is empty and `empty` is not set.
    """
    import pyarrow.types as types

    if name not in table.column_names:
        raise ValueError(f"{key}: {name!r} is not one of the columns {table.column_names}")
    kind = table[name].type
    if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        raise ValueError(f"{key}: column {name!r} is {kind}, not texts; convert it")
    texts = ["" if value is None else str(value) for value in table[name].to_pylist()]
    wrong = [] if empty else [row for row, text in enumerate(texts) if not text.strip()]
    if wrong:
        raise ValueError(f"{key}: column {name!r} is empty in {len(wrong)} rows, the first is row {wrong[0]}")
    return texts
