"""The folder of a sweep: OUT/VARIANT/s0, or OUT/VARIANT,lr=0.1/s0 for each setting that was tried.

chosen.json     variant -> the setting that was chosen
trials.json     variant -> {by, space, seed, trials: [settings in the order in which they were tried]}
failed.txt      in a run directory: the error of a trial whose training failed
stopped.txt     in a run directory: why the search stopped the trial early; `fl resume` continues it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fl.config.yaml import parse
from fl.storage import files, sums
from fl.storage.place import LONGEST
from fl.storage.run import last_commit, read_metrics, rounds_done

CHOSEN, TRIALS = "chosen.json", "trials.json"
FAILED, STOPPED = "failed.txt", "stopped.txt"


def label(setting: Mapping[str, Any]) -> str:
    """A setting as text; keys are shortened to their last part, where that is unambiguous.

    >>> label({"client.lr": 0.1, "cohort.size": 5}), label({"strategy.lr": 1.0, "client.lr": 0.1})
    ('lr=0.1,size=5', 'strategy.lr=1.0,client.lr=0.1')
    """
    last = [key.rpartition(".")[2] for key in setting]
    keys = [key if last.count(short) > 1 else short for key, short in zip(setting, last)]
    return ",".join(f"{key}={value}" for key, value in zip(keys, setting.values()))


def folder_of(variant: str, setting: Mapping[str, Any]) -> str:
    """Name of the folder of a variant with a tuned setting: / is written %2F, and % %25; a long name ends in a digest.

    >>> folder_of("FedAvg", {"model.init": "runs/a"}), folder_of("FedAvg", {})
    ('FedAvg,init=runs%2Fa', 'FedAvg')
    """
    text = ",".join(part for part in (variant, label(setting)) if part)
    text = "".join(c if c.isprintable() and c not in "/%" else quote(c, safe="") for c in text)
    whole = text.encode()
    if len(whole) <= LONGEST:
        return text
    return whole[: LONGEST - 17].decode(errors="ignore") + "-" + hashlib.sha256(whole).hexdigest()[:16]


def variant_name(folder: Path) -> str:
    """The variant, and its setting, that a folder was named after; the folder's name if that was shortened.

    >>> variant_name(Path("OUT") / folder_of("top-k 1 %", {}))
    'top-k 1 %'
    """
    return unquote(folder.name)


def is_complete(run: Path) -> bool:
    """Whether all rounds of a run are done, or a condition of its section `stop` has ended it; with all baselines."""
    if not sums.present(run):  # written last; an interrupted run has them, too
        return False
    config, rows = parse((run / "config.yaml").read_text()), read_metrics(run)
    if not rows or (rounds_done(rows[-1]) < config["rounds"] and not last_commit(run)["stopping"]["reason"]):
        return False
    missing = len(config.get("baselines") or ()) - sum(map(is_complete, (run / "baselines").glob("*")))
    return missing <= 0


def has_failed(run: Path) -> bool:
    """Whether the training of a trial failed."""
    return (run / FAILED).is_file() and not is_complete(run)


def was_stopped(run: Path) -> bool:
    """Whether the search stopped a trial early. `fl resume` may have completed it since."""
    return (run / STOPPED).is_file() and not is_complete(run)


def read_record(file: Path) -> dict[str, Any]:
    """The content of chosen.json or trials.json; {} if the file is missing."""
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def update_record(file: Path, entries: Mapping[str, Any]) -> None:
    """Write entries into chosen.json or trials.json; those of other variants stay."""
    known = read_record(file)
    if known | dict(entries) != known:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_file(file, json.dumps({**known, **entries}, indent=2) + "\n")


def chosen_folders(directory: Path) -> dict[str, Path]:
    """Variant -> folder with the runs of its chosen setting; {} if the directory is no sweep's folder."""
    found: dict[str, Path] = {}
    for variant, setting in read_record(directory / CHOSEN).items():
        named = [directory / folder_of(variant, setting), directory / variant]
        found |= {variant: folder for folder in named[::-1] if folder.is_dir()}
    return found
