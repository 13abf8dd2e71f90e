"""Stand-ins for the Hugging Face hub: folders with the hub's names, read by datasets, transformers and evaluate.

    write("ylecun/mnist", folder)  ->  folder/ylecun/mnist/train.parquet, test.parquet

They hold real data in the form of the hub's data set: the same data set where FL_DATA has a copy, or else another one
(`INSTEAD`). An app whose working directory is `folder` finds them. Image sets have at most 10,000 + 2,000 rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fl import registry
from fl.data.archives import open_gzip_text
from fl.data.folder import find
from fl.models.pretrained import model_folder

ROWS = {"train": 10_000, "test": 2_000}
IMAGES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
Rows = Mapping[str, Mapping[str, Any]]  # by split and column: arrays of pyarrow or numpy, or lists
Features = dict[str, Any]  # of the columns that are more than numbers or texts, as `datasets` stores them


def _label(classes: int) -> Features:
    return {"_type": "ClassLabel", "names": [str(i) for i in range(classes)]}


def _png(image: np.ndarray) -> bytes:
    """Encode an image, channels x height x width in [0, 1], as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0).squeeze()).save(file, "png")
    return file.getvalue()


def _images(data: str, column: str) -> tuple[Features, Rows]:
    """Return an image set of ten classes; `column` is the hub's name of the images."""
    loaded = registry.lookup("data", data)(**ROWS).load()
    rows = {}
    for split in ROWS:
        arrays = getattr(loaded, split)
        images = pa.array([{"bytes": _png(x), "path": None} for x in arrays["x"]], IMAGES)
        rows[split] = {column: images, "label": arrays["y"]}
    return {column: {"_type": "Image"}, "label": _label(10)}, rows


def _cifar100() -> tuple[Features, Rows]:
    load = registry.lookup("data", "cifar100")
    fine, coarse = (load(**ROWS, labels=labels).load() for labels in ("fine", "coarse"))
    rows = {}
    for split in ROWS:
        arrays = getattr(fine, split)
        images = pa.array([{"bytes": _png(x), "path": None} for x in arrays["x"]], IMAGES)
        rows[split] = {"img": images, "fine_label": arrays["y"], "coarse_label": getattr(coarse, split)["y"]}
    return {"img": {"_type": "Image"}, "fine_label": _label(100), "coarse_label": _label(20)}, rows


def _sst2(column: str) -> tuple[Features, Rows]:
    rows = {}
    for split, file in {"train": "train.tsv.gz", "test": "dev.tsv.gz"}.items():
        with open_gzip_text(find("sst2", file)) as lines:
            pairs = [line.rstrip("\n").split("\t") for line in lines][1:][: ROWS["train"]]
        rows[split] = {column: [text.strip() for _, text in pairs], "label": [int(label) for label, _ in pairs]}
    return {"label": _label(2)}, rows


def _ag_news() -> tuple[Features, Rows]:
    with open_gzip_text(find("ag_news", "test.csv.gz"), newline="") as file:
        items = list(csv.reader(file))
    rows = {}
    for split, part in {"train": items[:-1600], "test": items[-1600:]}.items():
        rows[split] = {"text": [" ".join(item[1:]) for item in part], "label": [int(item[0]) - 1 for item in part]}
    return {"label": _label(4)}, rows


def _iris(names: tuple[str, ...], species: str, texts: bool) -> tuple[Features, Rows]:
    """Return Iris; `names` are the hub's names of the four lengths, and `texts` makes the species words."""
    from sklearn.datasets import load_iris

    iris = load_iris()
    kinds = [f"Iris-{iris.target_names[i]}" for i in iris.target] if texts else iris.target
    return {} if texts else {species: _label(3)}, {"train": dict(zip(names, iris.data.T)) | {species: kinds}}


def _credit_default() -> tuple[Features, Rows]:
    loaded = registry.lookup("data", "credit_default")().load()
    parts = {"train": loaded.train, "test": loaded.test}
    rows = {
        split: {"label": arrays["y"].astype(float), "inputs": arrays["x"].tolist()} for split, arrays in parts.items()
    }
    return {}, rows


DATASETS: dict[str, Callable[[], tuple[Features, Rows]]] = {
    "uoft-cs/cifar10": partial(_images, "cifar10", "img"),
    "cifar10": partial(_images, "cifar10", "img"),
    "uoft-cs/cifar100": _cifar100,
    "ylecun/mnist": partial(_images, "mnist", "image"),
    "mnist": partial(_images, "mnist", "image"),
    "zalando-datasets/fashion_mnist": partial(_images, "mnist", "image"),
    "flwrlabs/usps": partial(_images, "usps", "image"),
    "stanfordnlp/sst2": partial(_sst2, "sentence"),
    "stanfordnlp/imdb": partial(_sst2, "text"),
    "fancyzhx/ag_news": _ag_news,
    "hitorilabs/iris": partial(
        _iris, ("sepal_length", "sepal_width", "petal_length", "petal_width"), "species", texts=False
    ),
    "scikit-learn/iris": partial(
        _iris, ("SepalLengthCm", "SepalWidthCm", "PetalLengthCm", "PetalWidthCm"), "Species", texts=True
    ),
    "jxie/higgs": _credit_default,
}
# stand-ins with other data than their name says
INSTEAD = {
    "zalando-datasets/fashion_mnist": "MNIST",
    "stanfordnlp/imdb": "phrases of SST-2",
    "jxie/higgs": "credit_default, 23 features",
    "prajjwal1/bert-tiny": "a BERT of the same size with random weights",
}


def _bert_tiny(folder: Path) -> None:
    """Write a BERT of 2 layers of 128 with random weights, and the word pieces of all-MiniLM-L6-v2."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder("minilm")).save_pretrained(folder)


# the metric `accuracy` of the package evaluate, whose code is on the hub
ACCURACY = """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        label = datasets.Value("int64")
        features = datasets.Features({"predictions": label, "references": label})
        return evaluate.MetricInfo(description="Share of equal labels.", citation="", features=features)

    def _compute(self, predictions, references):
        equal = [p == r for p, r in zip(predictions, references)]
        return {"accuracy": sum(equal) / len(equal)}
"""


def _accuracy(folder: Path) -> None:
    (folder / "accuracy.py").write_text(ACCURACY)


# models and metrics: functions that fill a folder
FOLDERS: dict[str, Callable[[Path], None]] = {"prajjwal1/bert-tiny": _bert_tiny, "accuracy": _accuracy}


def names_in(app: Path) -> list[str]:
    """Return the names of the hub that may be meant in an app: its texts of the form "owner/name", and known names."""
    files = [app / "pyproject.toml", *sorted(app.rglob("*.py"))]
    code = "\n".join(file.read_text(errors="replace") for file in files)
    texts = set(re.findall(r"[\"']([\w.-]+(?:/[\w.-]+)?)[\"']", code))
    return sorted(text for text in texts if "/" in text or is_known(text))


def is_known(name: str) -> bool:
    """Whether there is a stand-in for a name of the hub."""
    return name in DATASETS or name in FOLDERS


def write(name: str, folder: Path) -> None:
    """Write a stand-in below `folder`, unless it is there. Raises FileNotFoundError if FL_DATA has no copy of it."""
    place = folder / name
    if place.exists():
        return
    if name in FOLDERS:
        place.mkdir(parents=True)
        FOLDERS[name](place)
        return
    features, rows = DATASETS[name]()
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    place.mkdir(parents=True)
    for split, columns in rows.items():
        table = pa.table(dict(columns)).replace_schema_metadata(metadata if features else None)
        pq.write_table(table, place / f"{split}.parquet")
