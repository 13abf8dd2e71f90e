"""Run the apps that `flwr new` writes, unchanged, with `fl flower run`.

    python -m experiments.flower.official [--only numpy] [--folder DIR]

flwr 1.22.0 is the last version whose package contains the templates of `flwr new`; it is installed into a separate
folder, like the packages that an app needs and that are not installed. The apps then run on the installed flwr. Image
apps load CIFAR-10 or MNIST from a hub; instead they find a folder with the data set's name in the working directory,
which holds the first rows of the copy in FL_DATA.
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
# the hub's name of a data set -> (our name, the hub's name of the image column)
COLUMNS = {"uoft-cs/cifar10": ("cifar10", "img"), "ylecun/mnist": ("mnist", "image")}
IMAGES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
# Importing a GPU build of torchvision beside a CPU build of torch fails, because two operators are missing. The apps
# never call them, so this code declares them.
DECLARATIONS = """
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
    """A template of `flwr new`.

    Args:
        framework: its name in `flwr new --framework`.
        needs: packages that the app needs beside flwr and torch.
        data: the hub's name of its data set.
    """

    framework: str
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
    """Let `flwr new` write an app into `folder`, and return the app's folder."""
    app = f"official-{name}"
    options = ["--framework", APPS[name].framework, "--username", "someone"]
    command = [sys.executable, "-m", "flwr.cli.app", "new", app, *options]
    subprocess.run(command, cwd=folder, env=environment(flwr), check=True, capture_output=True)
    return folder / app


def packages(needs: tuple[str, ...], base: Path) -> Path:
    """Install the missing packages of an app into a folder, with the installed versions of flwr and torch."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in ("flwr", "torch")]
    folder = install(base / f"for-{re.sub(r'[^a-z0-9]+', '-', ' '.join(needs))}", *needs, *pins)
    test = [sys.executable, "-c", "import torchvision"]
    if "torchvision" in needs and subprocess.run(test, env=environment(folder), capture_output=True).returncode:
        (folder / "sitecustomize.py").write_text(DECLARATIONS)
    return folder


def write_dataset(dataset: str, folder: Path) -> None:
    """Write the first rows of our copy as parquet files that `datasets` loads in place of the hub's."""
    name, column = COLUMNS[dataset]
    loaded = registry.lookup("data", name)(**ROWS).load()
    features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [str(i) for i in range(10)]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (folder / dataset).mkdir(parents=True)
    for split in ROWS:
        arrays = getattr(loaded, split)
        images = pa.array([{"bytes": _png(x), "path": None} for x in arrays["x"]], IMAGES)
        table = pa.table({column: images, "label": arrays["y"]}).replace_schema_metadata(metadata)
        pq.write_table(table, folder / dataset / f"{split}.parquet")


def _png(image: np.ndarray) -> bytes:
    """Encode an image, channels x height x width in [0, 1], as PNG."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0).squeeze()).save(file, "png")
    return file.getvalue()


def run(app: Path, folder: Path, extra: Path | None) -> tuple[list[dict], float]:
    """Perform `fl flower run` and return the rows of its metrics and the seconds it took."""
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
    parser.add_argument("--only", choices=APPS, help="app to run; default: all")
    folder_help = "folder of packages, apps and runs; default: a temporary one"
    parser.add_argument("--folder", type=Path, default=None, help=folder_help)
    args = parser.parse_args()
    base = (args.folder or Path(tempfile.mkdtemp())).resolve()
    installed = importlib.metadata.version("flwr")
    flwr = install(base / f"flwr-{WRITER}", f"flwr=={WRITER}")
    apps = Path(tempfile.mkdtemp(dir=base))
    print(f"flwr {WRITER} writes the apps, flwr {installed} runs them; `dropped` counts replies that are errors")
    print("| app | rounds | messages | dropped | first round | last round | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in [args.only] if args.only else APPS:
        template = APPS[name]
        extra = packages(template.needs, base) if template.needs else None
        if template.data and not (apps / template.data).exists():
            write_dataset(template.data, apps)
        rows, seconds = run(write(name, apps, flwr), apps, extra)
        messages = sum(value for row in rows for key, value in row.items() if key.startswith("messages/"))
        figures = [
            ", ".join(f"{k} {v:.4f}" for k, v in row.items() if "/" in k and isinstance(v, float)) for row in rows
        ]
        dropped = sum(row["dropped"] for row in rows)
        print(
            f"| {name} | {len(rows)} | {messages} | {dropped} | {figures[0]} | {figures[-1]} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
