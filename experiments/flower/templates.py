"""Apps that `flwr new` writes. flwr 1.22.0 is the last version whose package contains its templates."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.flower.packages import environment, install

WRITER = "1.22.0"
# name of the app -> the template's name in `flwr new --framework`. Left out: "Flower Baseline", which has no data, and
# FlowerTune, which needs a language model of 7 billion parameters.
FRAMEWORKS = {
    "numpy": "NumPy",
    "jax": "JAX",
    "pytorch": "PyTorch",
    "legacy": "PyTorch (Legacy API, deprecated)",
    "sklearn": "sklearn",
    "xgboost": "XGBoost",
    "huggingface": "HuggingFace",
    "tensorflow": "TensorFlow",
    "mlx": "MLX",
}


def write_templates(names: Iterable[str], base: Path) -> Path:
    """Let `flwr new` write the apps that are not yet in base/templates, as template-NAME; return this folder."""
    flwr = install(base / f"flwr-{WRITER}", f"flwr=={WRITER}")
    folder = base / "templates"
    folder.mkdir(exist_ok=True)
    for name in names:
        app = f"template-{name}"  # the app's package has this name, and must not hide the framework's
        if (folder / app).exists():
            continue
        options = ["--framework", FRAMEWORKS[name], "--username", "someone"]
        command = [sys.executable, "-m", "flwr.cli.app", "new", app, *options]
        subprocess.run(command, cwd=folder, env=environment(flwr), check=True, capture_output=True)
    return folder
