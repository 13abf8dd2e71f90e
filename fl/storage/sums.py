"""SHA256SUMS: digests of the files that a finished run leaves, as `sha256sum -c SHA256SUMS` reads them.

Every report compares the files that it reads. A resumed run deletes the digests when it begins, because it changes the
files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fl.errors import ConfigError
from fl.storage import files

NAME = "SHA256SUMS"
TABLES = ("config.yaml", "environment.json", "metrics.jsonl", "ledger.parquet", "clients.parquet", "model.safetensors")


def write_sums(directory: Path) -> None:
    """Write the digests of a run's files."""
    found = [directory / name for name in TABLES if (directory / name).is_file()]
    files.write_file(directory / NAME, "".join(f"{_digest(file)}  {file.name}\n" for file in found))


def present(directory: Path) -> bool:
    """Whether the run in a directory has ended, and has not been resumed since."""
    return (directory / NAME).is_file()


def checked(file: Path) -> Path:
    """Return `file`, after comparing it with its digest. A file without one passes, and so does a missing file.

    Raises:
        ConfigError: the file has another digest.
    """
    sums = file.with_name(NAME)
    if sums.is_file():
        lines = [line.partition("  ") for line in sums.read_text(errors="replace").splitlines()]
        listed = {name: digest for digest, _, name in lines}
        if file.name in listed and file.is_file() and listed[file.name] != _digest(file):
            raise ConfigError("", f"{file} is damaged: its SHA-256 is not that in {sums.name}; copy the run again")
    return file


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
