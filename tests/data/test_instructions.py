"""Instructions: tokens and labels by hand, three kinds of files, packing, and errors that name column and row."""

import csv
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl.data.prompts import check_template, prompt
from fl.data.sets.instructions import Instructions
from fl.data.tokenizers import load_tokenizer
from fl.models.pretrained import model_folder
from partitions.dirichlet import Dirichlet
from partitions.natural import Natural
from tests import tiny_language as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def vocabulary(folder) -> dict[str, int]:
    import json

    return json.loads((model_folder(folder) / "tokenizer.json").read_text())["model"]["vocab"]


def loaded(folder, tmp_path, rows, **arguments):
    path = tiny.save_rows(tmp_path / "rows.jsonl", rows)
    return Instructions(path=path, tokenizer=folder, **{"length": 12, "template": tiny.TEMPLATE} | arguments).load()


ROW = {"instruction": "what colour has the", "input": "sky", "output": "blue", "client": "b", "topic": "day"}


def test_the_answer_and_its_end_are_the_labels(folder, vocabulary, tmp_path):
    data = loaded(folder, tmp_path, [ROW])
    prompt = [vocabulary[word] for word in "what colour has the sky answer :".split()]
    blue, end = vocabulary["blue"], vocabulary["<end>"]
    assert data.train["x"].tolist() == [[*prompt, blue, -1, -1, -1, -1]]
    assert data.train["y"].tolist() == [[-100] * 6 + [blue, end] + [-100] * 4]


def test_the_chat_template_of_the_folder(folder, vocabulary, tmp_path):
    data = loaded(folder, tmp_path, [ROW | {"input": ""}], template="chat")
    words = "say what colour has the answer : blue".split()
    assert data.train["x"][0, : len(words)].tolist() == [vocabulary[word] for word in words]


def test_alpaca_has_a_part_for_the_input(folder, tmp_path):
    with_input, without = loaded(folder, tmp_path, [ROW, ROW | {"input": ""}], template="alpaca", length=200).train["x"]
    assert (with_input >= 0).sum() > (without >= 0).sum() > 20


def test_three_kinds_of_files_hold_the_same(folder, tmp_path):
    rows, found = tiny.rows(9), []
    common = {"tokenizer": folder, "length": 12, "template": tiny.TEMPLATE}
    tiny.save_rows(tmp_path / "a.jsonl", rows)
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        path = str(tmp_path / f"a.{kind}")
        found.append(Instructions(**common, path=path, clients="client", topic="topic").load())
    assert len({data.digest() for data in found}) == 1
    assert found[0].clients.tolist() == [i % 4 for i in range(9)]


def test_packed_rows_hold_the_texts_of_one_client(folder, tmp_path):
    rows = tiny.rows(20, clients=3)
    flat = loaded(folder, tmp_path, rows, clients="client")
    data = loaded(folder, tmp_path, rows, clients="client", length=30, pack=True)
    assert len(data) < len(flat)

    def texts(x, y):
        return sorted((tuple(a), tuple(b)) for a, b in zip(x, y))

    for client in range(3):
        own = [
            (x[x >= 0].tolist(), y[x >= 0].tolist())
            for x, y, c in zip(*flat.train.values(), flat.clients)
            if c == client
        ]
        there = []
        for x, y in zip(data.train["x"][data.clients == client], data.train["y"][data.clients == client]):
            numbers = x[:, 1]
            there += [(x[numbers == k, 0].tolist(), y[numbers == k].tolist()) for k in range(1, numbers.max() + 1)]
            assert (y[numbers == 0] == -100).all()
        assert texts(*zip(*own)) == texts(*zip(*there))


def test_other_braces_of_a_template_stay():
    assert prompt('{"q": "{instruction}"} {1, 2}', "Why?", "", None) == '{"q": "Why?"} {1, 2}'
    check_template('{"q": "{instruction}"} {1, 2}')


def test_a_natural_partition_without_owners_names_the_setting(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no.* data\.clients"):
        Natural().split(loaded(folder, tmp_path, [ROW]))


def test_partitions_by_label_divide_topics(folder, tmp_path):
    data = loaded(folder, tmp_path, tiny.rows(240), topic="topic")
    partition = Dirichlet(clients=4, alpha=0.05, seed=1).split(data)
    counts = [np.bincount(data.train["topic"][partition.view_rows(c, "train")], minlength=6) for c in range(4)]
    assert max(count.max() / count.sum() for count in counts) > 0.6  # the whole has 1/6 of each


def test_long_texts_are_cut_or_left_out_and_counted(folder, tmp_path, caplog):
    rows = [ROW, ROW | {"output": "the sky is blue"}, ROW | {"instruction": "say " * 20}]
    with caplog.at_level(logging.WARNING):
        data = loaded(folder, tmp_path, rows, length=9, clients="client")
    assert len(data) == 2 and (data.train["y"][1] >= 0).sum() == 3
    assert (
        "of 3 texts" in caplog.text and "1 are longer than 9 tokens" in caplog.text and "1 were left out" in caplog.text
    )


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([ROW], {"output": "answer"}, "output: 'answer' is not one of the columns"),
        ([ROW], {"input": "context"}, "input: 'context' is not one of the columns"),
        ([{"instruction": "sky", "output": "blue"}], {"template": "{input} :"}, "input: 'input' is not one of the col"),
        ([ROW], {"clients": "owner"}, "clients: 'owner' is not one of the columns"),
        ([ROW], {"topic": "theme"}, "topic: 'theme' is not one of the columns"),
        ([ROW, ROW | {"output": " "}], {}, "column 'output' is empty in 1 rows, the first is row 1"),
        ([ROW], {"template": "no field"}, "template: 'no field'"),
        ([ROW], {"template": "{instruction} {context}"}, "template: {context} is not a field; the fields are"),
        ([ROW], {"length": 3}, "length: no prompt in .* has fewer than 3 tokens"),
        ([ROW], {"tokenizer": "nowhere"}, "tokenizer: 'nowhere' is neither a folder"),
        ([ROW | {"output": {"text": "blue"}}], {}, "output: column 'output' is struct<.*>, not texts"),
        ([ROW | {"instruction": ["what", "colour"]}], {}, "instruction: column 'instruction' is list<.*>, not texts"),
        (
            [ROW | {"client": ["a"]}],
            {"clients": "client"},
            "clients: column 'client' is list<.*>, not words or numbers",
        ),
    ],
)
def test_errors_name_the_key(folder, tmp_path, rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        loaded(arguments.pop("tokenizer", folder), tmp_path, rows, **arguments)


def test_files_without_texts(folder, tmp_path):
    common = {"tokenizer": folder, "template": tiny.TEMPLATE}
    (tmp_path / "none.csv").write_text("instruction,output\n")
    with pytest.raises(ValueError, match="path: .*none.csv has no rows"):
        Instructions(path=str(tmp_path / "none.csv"), **common).load()
    (tmp_path / "latin.jsonl").write_bytes('{"instruction": "é", "output": "é"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="path: .*latin.jsonl cannot be read: .*UTF8"):
        Instructions(path=str(tmp_path / "latin.jsonl"), **common).load()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="path: .*empty.jsonl has no rows"):
        Instructions(path=str(tmp_path / "empty.jsonl"), **common).load()
    (tmp_path / "array.jsonl").write_text('[{"instruction": "sky", "output": "blue"}]')
    with pytest.raises(ValueError, match="path: .*array.jsonl cannot be read: .* a line is one JSON object"):
        Instructions(path=str(tmp_path / "array.jsonl"), **common).load()
    pq.write_table(pa.table({"instruction": ["sky"], "output": [b"blue"]}), tmp_path / "bytes.parquet")
    with pytest.raises(ValueError, match="output: column 'output' is binary, not texts"):
        Instructions(path=str(tmp_path / "bytes.parquet"), **common).load()


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "has no chat template"), ("{% for %}", "refuses"), ("{{ raise_exception('no user') }}", "no user")],
)
def test_chat_templates_that_fail(tmp_path, template, message):
    folder = tiny.save_model(tmp_path / "model")
    place = tmp_path / "model" / "chat_template.jinja"
    place.unlink() if template is None else place.write_text(template)
    with pytest.raises(ValueError, match=f"template: .*{message}.*; set alpaca or a text"):
        loaded(folder, tmp_path, [ROW], template="chat")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["tokenizer.json"], "cannot be loaded: .*Error: "),
    ],
)
def test_folders_without_a_tokenizer(tmp_path, broken, message):
    """transformers makes a tokenizer without tokens if the files are missing."""
    folder = tiny.save_model(tmp_path / "model", kind="gpt2")
    for name in broken:
        (tmp_path / "model" / name).unlink()
    if len(broken) == 1:
        (tmp_path / "model" / broken[0]).write_text("{}")
    with pytest.raises(ValueError, match=f"tokenizer: .*{message}.*tokenizer.save_pretrained"):
        load_tokenizer(folder)
