"""Scaffolds: the files with which a part, an experiment or a project begins.

fl new strategy my_rule      my_rule.py, my_rule.yaml, test_my_rule.py: `fl check` passes and the run trains
"""

from __future__ import annotations

import importlib.resources
import keyword
from pathlib import Path

from fl.errors import ConfigError, did_you_mean
from fl.storage import files

KINDS = ("strategy", "client", "partition", "codec", "experiment", "project")
_CHECKED_WITH = {"partition": ", clients=5"}


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the files of a scaffold; return them.

    Args:
        kind: one of `KINDS`.
        name: name of the part or the experiment, a Python name in lower case.
        folder: where to write; a project gets a folder of its own in it.

    Raises:
        ConfigError: the kind is unknown, the name is no Python name, or a file is there already.
    """
    if kind not in KINDS:
        raise ConfigError("KIND", f"{kind!r} is not one of {list(KINDS)}.{did_you_mean(kind, KINDS)}")
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ConfigError("NAME", f"{name!r} is no Python name in lower case; write for example my_{kind}")
    if kind == "project":
        files_ = _part("strategy", name) | _experiment(name, "strategy")
        folder = folder / name
    else:
        files_ = _experiment(name, "experiment") if kind == "experiment" else _part(kind, name)
    paths = {folder / file: text for file, text in files_.items()}
    present = [path for path in paths if path.exists()]
    if present:
        raise ConfigError("NAME", f"{present[0]} exists; choose another name, or another folder with --out")
    files.make_folder(folder)
    for path, text in paths.items():
        files.write_file(path, text)
    return list(paths)


def _part(kind: str, name: str) -> dict[str, str]:
    """The part, its example configuration and its test, by file name."""
    return {
        f"{name}.py": _filled(f"{kind}.py", name),
        f"{name}.yaml": _filled(f"{kind}.yaml", name),
        f"test_{name}.py": _filled("test.py", name, kind=kind, arguments=_CHECKED_WITH.get(kind, "")),
    }


def _experiment(name: str, kind: str) -> dict[str, str]:
    """A configuration, variants over seeds, and a page, by file name."""
    return {
        f"{name}.yaml": _filled(f"{kind}.yaml", name),
        f"{name}.sweep.yaml": _filled("sweep.yaml", name, kind=kind),
        "README.md": _filled("README.md", name),
    }


def _class_name(name: str) -> str:
    """my_rule -> MyRule"""
    return "".join(word.capitalize() for word in name.split("_"))


def _filled(template: str, name: str, **values: str) -> str:
    import jinja2

    text = (importlib.resources.files("fl.tools") / "templates" / f"{template}.txt").read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701  # no HTML
    return environment.from_string(text).render(name=name, class_name=_class_name(name), **values)
