"""Where a run may be written: checked before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from fl.errors import ConfigError
from fl.storage.lock import LOCK
from fl.storage.sums import NAME as SUMS

# what a run directory has; fl writes over these names, and deletes in these folders
NAMES = (
    *("config.yaml", "environment.json", "metrics.jsonl", "ledger.parquet", "clients.parquet", "model.safetensors"),
    *("profile.json", "trace.json", "checkpoints", "clients", "streams", "scratch", "code", "journal", "baselines"),
    *("samples", SUMS),
)
LONGEST = 255  # bytes of a name of a file or a folder


def check_place(directory: Path) -> None:
    """Raise a `ConfigError` at `out` if a run directory cannot be made or written to, or holds files of others."""
    check_folder("out", directory)
    foreign = [name for name in NAMES if os.path.lexists(directory / name)]
    if foreign and not (directory / LOCK).is_file():
        raise ConfigError(
            "out", f"{directory} holds {', '.join(foreign)}, which no run of fl has written; name a new folder"
        )


def check_folder(key: str, directory: Path) -> None:
    """Raise a `ConfigError` at `key` if a folder cannot be made or written to."""
    try:
        os.lstat(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass  # looked at below
    except (ValueError, OSError) as error:  # a NUL byte, or a name that is too long
        raise ConfigError(key, f"{str(directory)!r:.80} cannot be the name of a folder: {error}") from None
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        what = "is a file" if existing == directory else f"lies below {existing}, which is a file"
        raise ConfigError(key, f"{directory} {what}; name a new folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(key, f"{directory} cannot be written: no permission in {existing}")


def check_file(key: str, file: Path) -> None:
    """Raise a `ConfigError` at `key` if a file cannot be written."""
    if file.is_dir():
        raise ConfigError(key, f"{file} is a folder; name a file in it")
    check_folder(key, file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise ConfigError(key, f"{file} cannot be written: no permission")


def folder_name(path: str, name: object) -> str:
    """Return a name that stays in its folder, for a folder that a configuration names; a `ConfigError` for others.

    Args:
        path: the key of the configuration, for the message.
        name: the name.

    >>> folder_name("variants", "FedAvg, large")
    'FedAvg, large'
    >>> folder_name("variants", "../photos")
    Traceback (most recent call last):
    fl.errors.ConfigError: variants: '../photos' cannot name a folder: it has a slash
    """
    text = str(name)
    wrong = (
        ("/" in text or os.sep in text, "it has a slash"),
        (text in ("", ".", ".."), "it names no folder of its own"),
        (not text.isprintable(), "it has characters that cannot be printed"),
        (text.startswith(("~", "-", ".")), "it starts with a dot, a dash or ~"),
        (len(text.encode(errors="replace")) > LONGEST, f"it is longer than {LONGEST} bytes"),
    )
    for applies, reason in wrong:
        if applies:
            raise ConfigError(path, f"{text[:80]!r} cannot name a folder: {reason}")
    return text
