"""Flower's own apps, as `flwr new` writes them, by `fl flower run`: not a line of them is changed.

    python -m experiments.flower.official [--only numpy] [--folder DIR]

flwr 1.22.0 is the last version whose `flwr new` carries its templates along; it goes into a folder of its own, and so does what an
app needs and is not here. The apps then run on the installed flwr. Those of images ask a hub for CIFAR-10 or MNIST: a folder of
the data set's name in the working directory is what they find, made from the first rows of the copy in FL_DATA.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from experiments.flower.versions import environment, install
from fl import registry

WRITER = "1.22.0"
ROWS = {"train": 10_000, "test": 2_000}
COLUMNS = {
    "uoft-cs/cifar10": ("cifar10", "img"),
    "ylecun/mnist": ("mnist", "image"),
}  # our name, the hub's of the column


IMAGES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# where torchvision comes for a GPU and torch without: its import asks for two operators, which the apps never call
DECLARED = """
import importlib.abc, sys

class Before(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch
            library = sys.torchvision_library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.meta_path.insert(0, Before())
"""


@dataclass(frozen=True)
class Template:
    framework: str  # as `flwr new` calls it
    needs: tuple[str, ...] = ()
    data: str | None = None


APPS = {
    "numpy": Template("NumPy"),
    "jax": Template("JAX", ("jax",)),
    "pytorch": Template("PyTorch", ("flwr-datasets[vision]", "torchvision"), "uoft-cs/cifar10"),
    "legacy": Template("PyTorch (Legacy API, deprecated)", ("flwr-datasets[vision]", "torchvision"), "uoft-cs/cifar10"),
    "sklearn": Template("sklearn", ("flwr-datasets[vision]", "datasets<4"), "ylecun/mnist"),
}


def write(name: str, folder: Path, flwr: Path) -> Path:
    """The app that `flwr new` writes into `folder`."""
    app = f"official-{name}"
    new = [
        sys.executable,
        "-m",
        "flwr.cli.app",
        "new",
        app,
        "--framework",
        APPS[name].framework,
        "--username",
        "someone",
    ]
    subprocess.run(new, cwd=folder, env=environment(flwr), check=True, capture_output=True)
    return folder / app


def packages(needs: tuple[str, ...], base: Path) -> Path:
    """A folder with what an app needs beside what is here; flwr and torch stay."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in ("flwr", "torch")]
    folder = install(base / f"for-{re.sub(r'[^a-z0-9]+', '-', ' '.join(needs))}", *needs, *pins)
    tried = [sys.executable, "-c", "import torchvision"]
    if "torchvision" in needs and subprocess.run(tried, env=environment(folder), capture_output=True).returncode:
        (folder / "sitecustomize.py").write_text(DECLARED)
    return folder


def lay_out(dataset: str, folder: Path) -> None:
    """The first rows of our copy as parquet files of images and labels, which `datasets` takes for the hub's."""
    name, column = COLUMNS[dataset]
    loaded = registry.lookup("data", name)(**ROWS).load()
    features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [str(i) for i in range(10)]}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / dataset).mkdir(parents=True)
    for split in ROWS:
        arrays = getattr(loaded, split)
        images = pa.array([{"bytes": _png(x), "path": None} for x in arrays["x"]], IMAGES)
        table = pa.table({column: images, "label": arrays["y"]}).replace_schema_metadata(told)
        pq.write_table(table, folder / dataset / f"{split}.parquet")


def _png(image: np.ndarray) -> bytes:
    """Of an image channels x height x width in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0).squeeze()).save(file, "png")
    return file.getvalue()


def run(app: Path, folder: Path, extra: Path | None) -> tuple[list[dict], float]:
    """The rows of metrics of `fl flower run`, and its seconds."""
    out = folder / f"{app.name}-run"
    command = [sys.executable, "-m", "fl", "flower", "run", str(app), "--out", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    start = time.perf_counter()
    with open(folder / f"{app.name}.log", "w") as log:
        done = subprocess.run(
            command, cwd=folder, env=environment(extra) | offline, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode:
        raise RuntimeError(f"{app.name} failed; see {log.name}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=APPS)
    parser.add_argument("--folder", type=Path, default=None, help="Where packages, apps and runs go.")
    args = parser.parse_args()
    base = (args.folder or Path(tempfile.mkdtemp())).resolve()
    here = importlib.metadata.version("flwr")
    flwr = install(base / f"flwr-{WRITER}", f"flwr=={WRITER}")
    apps = Path(tempfile.mkdtemp(dir=base))
    print(f"flwr {WRITER} writes, flwr {here} runs; `dropped` are replies that are errors")
    bad = 0
    print("| app | rounds | messages | dropped | first round | last round | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in [args.only] if args.only else APPS:
        template = APPS[name]
        extra = packages(template.needs, base) if template.needs else None
        if template.data and not (apps / template.data).exists():
            lay_out(template.data, apps)
        rows, seconds = run(write(name, apps, flwr), apps, extra)
        messages = sum(value for row in rows for key, value in row.items() if key.startswith("messages/"))
        figures = [
            ", ".join(f"{k} {v:.4f}" for k, v in row.items() if "/" in k and isinstance(v, float)) for row in rows
        ]
        dropped = sum(row["dropped"] for row in rows)
        bad += dropped
        print(
            f"| {name} | {len(rows)} | {messages} | {dropped} | {figures[0]} | {figures[-1]} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
