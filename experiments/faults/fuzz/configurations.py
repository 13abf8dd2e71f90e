"""Configurations: those of experiments/ with random changes are refused by a `ConfigError`, or they resolve."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from experiments.faults.methods import METHODS, configuration
from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.registry import names
from fl.simulation.build import set_up_run

ROOT = Path(__file__).parents[2]
WORDS = ["name", "extends", "privacy", "stream", "server", "system", "strategy", "clients", "seed", "none", "[]", "{}"]
WORDS += ["fedavg", "a: b", "é\u202e", "\x00", "..", "1e400", "lr", ""]
HUGE = (2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 1e308, -1e308, math.inf, -math.inf, math.nan, 5e-324)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.sampled_from(HUGE),
    st.floats(-2, 2),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
KEYS = st.one_of(st.sampled_from(WORDS), st.text(max_size=5), st.integers(-1, 2), st.none(), st.booleans())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
PART_NAMES = ("strategy", "client", "partition", "cohort", "codec", "model", "data")


def _files() -> list[dict[str, Any]]:
    """The configurations of experiments/, read whole."""
    paths = [path for path in sorted(ROOT.glob("**/*.yaml")) if ".sweep" not in path.name]
    return [read(path) for path in paths]


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values below a node."""
    if isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, list):
        children = list(enumerate(node))
    else:
        return [path]
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@st.composite
def _changed(draw: st.DrawFn, bases: list[dict[str, Any]]) -> Any:
    """A configuration with one to four changes."""
    config: Any = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 4))):
        places = _places(config)
        place = draw(st.sampled_from(places))
        if not place:
            config[draw(KEYS)] = draw(VALUES)
            continue
        *above, last = place
        node = config
        for key in above:
            node = node[key]
        change = draw(st.sampled_from(("value", "value", "remove", "add", "nest", "part", "key")))
        if change == "value":
            node[last] = draw(VALUES)
        elif change == "remove":
            del node[last]
        elif change == "nest":
            node[last] = draw(st.sampled_from(([node[last]], {"name": node[last]}, {last: node[last]})))
        elif change == "part":
            node[last] = draw(st.sampled_from(names(draw(st.sampled_from(PART_NAMES)))))
        elif isinstance(node, dict):
            value = node.pop(last) if change == "key" else draw(VALUES)
            node[draw(KEYS)] = value
    return config


def _resolves_or_is_refused(config: Any) -> Config | None:
    try:
        return resolve(read(config))
    except ConfigError as error:
        _check_line(error)
        return None


def _check_line(error: ConfigError) -> None:
    assert str(error) and len(str(error)) < 4000, f"{len(str(error))} characters"


def _law_of_values(config: Any) -> None:
    """A resolved configuration written out and read again is the same one."""
    found = _resolves_or_is_refused(config)
    if found is None:
        return
    plain = found.to_dict()
    try:
        again = resolve(read(yaml.safe_load(yaml.safe_dump(plain, sort_keys=False))))
    except ConfigError as error:
        assert "given as a Python object" in str(error), error  # `data: {train: []}` are arrays of the Python API
    else:
        assert json.dumps(again.to_dict()) == json.dumps(plain)


def _law_of_runs(config: Any) -> None:
    """What is wrong shows before a round: setting up gives a run, or a `ConfigError`."""
    found = _resolves_or_is_refused(config)
    if found is not None:
        try:
            set_up_run(found)
        except ConfigError as error:
            _check_line(error)


def _law_of_text(text: str) -> None:
    """Any text is refused by a `ConfigError` or an error of YAML, or it is a value."""
    try:
        parse(text)
    except (ConfigError, yaml.YAMLError):
        pass


SMALL = [configuration(method) for method in METHODS]
LETTERS = st.text("ab: -{}[],&*!|>'\"#%@`\n\t?0.1e~<=\u2028é\x07", max_size=40)
LAWS: list[tuple[str, int, Any, Any]] = [
    ("configurations of experiments", 30, lambda out: _changed(_files()), lambda out: _law_of_values),
    ("set-up of small runs", 10, lambda out: _changed(SMALL), lambda out: _law_of_runs),
    ("YAML texts", 6, lambda out: LETTERS, lambda out: _law_of_text),
]
