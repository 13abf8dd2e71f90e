"""Items of a user's data set: what `dataset[row]` returns, as arrays by name.

    (x, y), (x,) or x                    x and y
    {"x": ..., "y": ..., ...}            the same names; texts other than y are left out
    {"image": ..., "label": ...}         x and y are chosen by names and kinds, see `choose`

Values are tensors, arrays, numbers, lists of numbers, or PIL images (float32 in [0, 1], channel first). `y` may be a
word.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fl.data.images import from_pil

log = logging.getLogger(__name__)

Kind = Literal["image", "array", "class", "number", "text", "other"]
X_NAMES = ("image", "img", "pixel_values", "input_ids")
Y_NAMES = ("label", "labels", "target", "targets")


def choose(
    kinds: Mapping[str, Kind], features: Sequence[str] = (), target: str | None = None
) -> tuple[tuple[str, ...], str | None]:
    """Choose the names of x and of y among the columns of a data set; None: there is no y.

    x is the only image, or the first of `X_NAMES`, or the only array; y is the only class, or the first of `Y_NAMES`,
    or the only number.

    >>> choose({"id": "number", "img": "image", "label": "class"})
    (('img',), 'label')

    Args:
        kinds: The kind of each column.
        features: Names of x that a user gives.
        target: Name of y that a user gives.

    Raises:
        ValueError: a given name does not exist, or nothing or several columns could be meant.
    """
    for key, names in (("features", tuple(features)), ("target", () if target is None else (target,))):
        for name in names:
            if name not in kinds:
                raise ValueError(f"{key}: {name!r} is not one of the columns {list(kinds)}")
    if not features:
        free = {name: kind for name, kind in kinds.items() if name != target}
        found = _chosen(free, "x", X_NAMES, ("image", "array"))
        if found is None:
            hint = "texts need a tokenizer: map them to `input_ids`" if "text" in kinds.values() else _way_out("x")
            raise ValueError(f"none of the columns {_listed(kinds)} is x; {hint}")
        features = (found,)
    if target is None:
        rest = {name: kind for name, kind in kinds.items() if name not in features}
        target = _chosen(rest, "y", Y_NAMES, ("class", "number"))
    return tuple(features), target


def _chosen(kinds: Mapping[str, Kind], what: str, usual: tuple[str, ...], wanted: tuple[Kind, ...]) -> str | None:
    """Return the column that is x or y, or None.

    Args:
        kinds: The kind of each column that is free.
        what: "x" or "y", a name that decides.
        usual: Other names that decide.
        wanted: Kinds; if only one column is of the first kind, it is chosen before the names count, and so on.
    """
    if what in kinds:
        return what
    named = [name for name in usual if kinds.get(name, "other") != "other" and (what, kinds[name]) != ("x", "text")]
    for kind in wanted:
        of_kind = [name for name in kinds if kinds[name] == kind]
        preferred = [name for name in named if name in of_kind] or of_kind
        if len(of_kind) > 1 and preferred == of_kind:
            raise ValueError(f"several of the columns {_listed(kinds)} may be {what}; {_way_out(what)}")
        if preferred:
            return preferred[0]
        if named:
            return named[0]
    return None


def _listed(kinds: Mapping[str, Kind]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _way_out(what: str) -> str:
    key = "features" if what == "x" else "target"
    return f'rename one to {what!r}, or give data={{"train": ..., "{key}": NAME}}'


def kind_of_value(value: Any) -> Kind:
    """Return the kind of one value of an item.

    >>> kind_of_value(np.zeros(3)), kind_of_value(2), kind_of_value("cat"), kind_of_value(None)
    ('array', 'number', 'text', 'other')
    """
    if is_pil(value):
        return "image"
    if isinstance(value, (str, bytes)):
        return "text"
    try:
        array = as_array(value)
    except ValueError:
        return "other"
    if array.dtype.kind not in "biuf":
        return "text" if array.dtype.kind in "SU" else "other"
    return "array" if array.ndim else "number"


def is_pil(value: Any) -> bool:
    """Return whether a value is an image of Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def as_array(value: Any) -> np.ndarray:
    """Convert one value of an item to an array; numbers and words have no axis.

    Raises:
        ValueError: rows of a list differ in length, or an image does not have 8 bits.
    """
    if isinstance(value, Tensor):
        dense = value.detach().cpu()
        return (dense.float() if dense.is_floating_point() and dense.itemsize < 4 else dense).numpy()
    return from_pil(value) if is_pil(value) else np.asarray(value)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads rows of a data set as arrays by name.

    Args:
        dataset: The user's data set.
        part: Its name in error messages: train, test or server.
        keys: For each name, the position or the key in an item; None if the item itself is x.
    """

    dataset: Any
    part: str
    keys: Mapping[str, int | str | None]

    @staticmethod
    def of(
        dataset: Any, part: str, features: Sequence[str] = (), target: str | None = None, clients: str | None = None
    ) -> Reader:
        """Read the first row, and decide what is x and y. `features`, `target` and `clients` are keys of dict items."""
        item = Reader(dataset, part, {}).item(0)
        if isinstance(item, Mapping):
            kinds = {str(name): kind_of_value(value) for name, value in item.items()}
            try:
                return Reader(dataset, part, _keys(kinds, features, target, clients, part))
            except ValueError as error:
                raise ValueError(f"{part}: items of {type(dataset).__name__}: {error}") from None
        if features or target or clients:
            raise ValueError(
                f"{part}: items of {type(dataset).__name__} are not dicts, so they have no names; leave out features, "
                "target and clients"
            )
        if not isinstance(item, (tuple, list)):
            return Reader(dataset, part, {"x": None})
        if len(item) not in (1, 2):
            types = ", ".join(type(value).__name__ for value in item)
            raise ValueError(
                f"{part}: an item of {type(dataset).__name__} is {type(item).__name__} of {len(item)} ({types}); "
                'return (x, y), x, or a dict such as {"x": ..., "y": ..., "weight": ...}'
            )
        return Reader(dataset, part, dict(zip("xy", range(len(item)))))

    def item(self, row: int) -> Any:
        """Return an item as the data set gives it. An error names the row."""
        try:
            return self.dataset[row]
        except Exception as error:
            name, what = type(self.dataset).__name__, f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.part}: row {row} of {name} cannot be read: {what}").with_traceback(
                error.__traceback__
            ) from error

    def row(self, row: int) -> dict[str, np.ndarray]:
        """Return the values of a row by name. An error names the row."""
        item, found = self.item(row), {}
        for name, key in self.keys.items():
            try:
                value = item if key is None else item[key]
            except (KeyError, IndexError, TypeError):
                raise ValueError(
                    f"{self.part}: row {row} has no {key!r}, and row 0 has; items must have one form"
                ) from None
            try:
                array = as_array(value)
            except ValueError as error:
                raise ValueError(f"{self.part}: {name} in row {row}: {error}") from None
            if array.dtype.kind not in "biuf" and name not in ("y", "clients"):
                raise self._no_numbers(name, row, value)
            found[name] = array
        return found

    def _no_numbers(self, name: str, row: int, value: Any) -> ValueError:
        if value is None:
            return ValueError(f"{self.part}: {name} in row {row} is None; fill it in, or leave the row out")
        if isinstance(value, (str, bytes)):
            return ValueError(
                f"{self.part}: {name} in row {row} is the text {value[:40]!r}; texts need a tokenizer: return ids of "
                "tokens, all rows with one length"
            )
        return ValueError(f"{self.part}: {name} in row {row} is {type(value).__name__}, not numbers or an image")


def _keys(
    kinds: Mapping[str, Kind], features: Sequence[str], target: str | None, clients: str | None, part: str
) -> dict[str, str]:
    """Return the key of each name of dict items."""
    x, y = choose({name: kind for name, kind in kinds.items() if name != clients}, features, target)
    if len(x) > 1:
        raise ValueError(f"features: {list(x)}; x is one value of an item")
    if clients is not None and clients not in kinds:
        raise ValueError(f"clients: {clients!r} is not one of the columns {list(kinds)}")
    keys = {"x": x[0]} | ({} if y is None else {"y": y}) | ({} if clients is None else {"clients": clients})
    if "x" in kinds and not features:
        others = [name for name in kinds if name not in keys.values() and name not in keys]
        texts = [name for name in others if kinds[name] in ("text", "other")]
        if texts:
            log.warning("data: %s of the items of %s are no numbers; they are left out", texts, part)
        keys |= {name: name for name in others if name not in texts}
    return keys
