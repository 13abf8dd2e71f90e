"""Configurations of experiments and commands of the documentation are accepted by the present code."""

import re
import shlex
from pathlib import Path

import pytest

from experiments.regression import headline
from fl.cli.overrides import parse_overrides
from fl.config.config import resolve
from fl.config.reading import read
from fl.tools.sweep.reading import load

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
SWEEPS = [file for file in FILES if file.name.endswith(".sweep.yaml")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]


def commands() -> list[list[str]]:
    """Return the arguments of each `fl run` and `fl partition` of a page whose configuration is in the repository."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        code = re.findall(r"^ {4}(fl .*)$", text, re.M) + re.findall(r"`(fl [^`]*)`", text)
        code += [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
        for line in code:
            match = re.search(r"\bfl (?:run|partition) (experiments/\S+\.yaml.*)", line.replace("\n", " "))
            if match:
                command = re.split(r" {4,}", match[1])[0]  # an explanation may follow
                found.append(shlex.split(command, comments=True))
    return found


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT / "experiments"))


@pytest.mark.parametrize("file", [file for file in FILES if file not in SWEEPS], ids=relative)
def test_every_configuration_resolves(file):
    resolve(read(file))


@pytest.mark.parametrize("file", SWEEPS, ids=relative)
def test_every_variant_of_every_sweep_resolves(file, tmp_path):
    sweep = load(file)
    for variant in sweep.variants:
        settings = sweep.settings(variant)
        for setting in (settings[0], settings[-1]):
            resolve(read(sweep.config_of(variant), sweep.overrides(variant, sweep.seeds[-1], setting, tmp_path)))


def test_every_shortened_experiment_resolves():
    for case in headline.cases():
        resolve(read(case.config, case.overrides))


def test_every_command_of_the_documentation_resolves():
    found = commands()
    assert len(found) >= 15
    for file, *arguments in found:
        words = [word for word in arguments if "=" in word and not word.startswith("-") and "..." not in word]
        overrides = {key: value for key, value in parse_overrides(words).items() if key != "seed"}  # may be a range
        resolve(read(ROOT / file, overrides))


def test_every_experiment_that_a_page_names_exists():
    for page in PAGES:
        for name in re.findall(r"\bexperiments/[\w/]+(?:\.sweep)?\.yaml", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name} names {name}"
