"""The first error in the output of a Flower app: what was raised, and the line of the app that led to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\s*$|\bray::\w+")  # also of an error in a process of Ray
FRAME = re.compile(r'^\s*(?:\(.*\)\s)?File "(?P<file>[^"]+)", line (?P<line>\d+)')
# what Ray, pip and our own log put before a line
PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\)\s?)|(?:ERROR\s*:?\s+)")
PACKAGE = re.compile(r"No module named '([\w.]+)'")
# messages of datasets, transformers, evaluate and huggingface_hub without a connection
HUB = re.compile(
    r"on the Hub|Hugging Face Hub|huggingface\.co|OfflineMode|LocalEntryNotFound|HF_HUB_OFFLINE"
    r"|Couldn't find (?:a (?:dataset|module) script|any data file)"
)
HUB_NAME = re.compile(r"'(?:hf://datasets/)?([\w.-]+(?:/[\w.-]+?)?)(?:@\w+)?(?:/[^']*)?' (?:on the Hub|doesn't exist)")
LONGEST = 160  # characters of an error in a table


@dataclass(frozen=True)
class Fault:
    """An error of an app.

    Args:
        error: Type and first line of the message: "ValueError: no such thing".
        place: The app's file and line, "app/task.py:12"; "" if no line of the app led to the error.
    """

    error: str
    place: str

    def missing_package(self) -> str | None:
        """Return the module that could not be imported, or None."""
        found = PACKAGE.search(self.error)
        return found[1] if found else None

    def missing_data(self, names: list[str]) -> list[str] | None:
        """Return the hub's names that the app could not load, or None if the error is another one.

        The names are those in the error, or else `names`, which the app mentions.
        """
        if not HUB.search(self.error):
            return None
        return HUB_NAME.findall(self.error) or names

    def __str__(self) -> str:
        text = self.error if len(self.error) <= LONGEST else self.error[: LONGEST - 3] + "..."
        return f"{text} ({self.place})" if self.place else text


def first_fault(output: str, app: Path) -> Fault | None:
    """Return the first error in the output of an app: the first traceback through the app's files, or any other one.

    Without a traceback, it is the first line that begins with "error:".
    """
    lines = [_plain(line) for line in output.splitlines()]
    found = [_read(lines[at + 1 :], app) for at, line in enumerate(lines) if TRACEBACK.search(line)]
    faults = [fault for fault in found if fault]
    for fault in faults:
        if fault.place:
            return fault
    if faults:
        return faults[0]
    said = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return Fault(said[0].strip(), "") if said else None


def _plain(line: str) -> str:
    """Remove colours and replace the name of a process or a level at the beginning by spaces."""
    line = COLOURS.sub("", line)
    while match := PREFIX.match(line):
        line = " " * match.end() + line[match.end() :] if "ERROR" in match[0] else line[match.end() :]
    return line


def _read(lines: list[str], app: Path) -> Fault | None:
    """Read the rest of a traceback: its frames, then the line of the error, which is indented less than a frame."""
    place, margin = "", None
    for line in lines:
        frame = FRAME.match(line)
        indent = len(line) - len(line.lstrip())
        if frame:
            margin = indent
            file = Path(frame["file"])
            if app in file.parents:
                place = f"{file.relative_to(app)}:{frame['line']}"
        elif margin is not None and line.strip() and indent < margin:
            return Fault(line.strip(), place)
    return None
