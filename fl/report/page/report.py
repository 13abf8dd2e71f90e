"""The sections of a report: those of fl, in their order, and the user's own after the sections of methods."""

from __future__ import annotations

from collections.abc import Sequence

from fl import registry
from fl.errors import ConfigError
from fl.report.page.runs import Runs
from fl.report.page.section import MakeSection, Section
from fl.report.page.sections import SECTIONS
from fl.storage.growing import Damaged


def own_sections(references: Sequence[str]) -> list[MakeSection]:
    """Load the functions that `path/to/file.py:NAME` or `module:NAME` refer to.

    Raises:
        ConfigError: a reference names no function.
    """
    found = []
    for reference in references:
        if ":" not in reference:
            raise ConfigError("--section", f"{reference!r} is not FILE.py:NAME or MODULE:NAME")
        made = registry.named(reference)
        if not callable(made):
            raise ConfigError("--section", f"{reference} is no function of the runs that returns a Section")
        found.append(made)
    return found


def make_sections(runs: Runs, own: Sequence[MakeSection] = ()) -> list[Section]:
    """Make all sections that have something to show.

    A section of fl that cannot be made, for example from damaged files, says why, and the others follow. An error in a
    user's own section is raised.
    """
    made: list[Section | None] = []
    for make in SECTIONS:
        try:
            made.append(make(runs))
        except (ValueError, Damaged, OSError) as error:
            made.append(Section(make.__name__.replace("_", " ").capitalize(), [f"Not shown: {error}"]))
    place = next(i for i, make in enumerate(SECTIONS) if make.__name__ == "other_metrics")
    for make in own:
        section = make(runs)
        if not isinstance(section, (Section, type(None))):
            raise ConfigError("--section", f"{make.__name__} returned {type(section).__name__}, not a Section or None")
        made.insert(place, section)
        place += 1
    return [section for section in made if section is not None]
