"""One JSON file of LEAF: read it, and check it user by user. Errors name the file and the user."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class User:
    """The samples of one user.

    Args:
        place: File and name of the user, for messages.
        x: Features of each sample: numbers, a text, or (Sent140) a list whose element 4 is the text.
        y: Label of each sample.
    """

    place: str
    x: list[Any]
    y: list[Any]

    def joined(self, other: User) -> User:
        """Return the samples of both, these first."""
        return User(self.place, self.x + other.x, self.y + other.y)


def read(path: Path) -> dict[str, User]:
    """Return the users of a file by name.

    Raises:
        ValueError: the file is not JSON or not LEAF's, its lists of users disagree, or a user's x and y differ in
            length.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # also text that is not UTF-8
        text = "it is empty" if not path.stat().st_size else str(error)
        raise ValueError(f"path: {path} is not a complete JSON file: {text}; make or copy it again") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("user_data"), dict):
        raise ValueError(f"path: {path} is not a file of LEAF: it has no 'user_data'")
    found = {name: _user(path, name, samples) for name, samples in raw["user_data"].items()}
    _check_users(path, raw, found)
    return found


def _user(path: Path, name: str, samples: Any) -> User:
    place = f"{path}, user {name!r}"
    if not isinstance(samples, Mapping) or not all(isinstance(samples.get(key), list) for key in "xy"):
        raise ValueError(f"path: {place}: there are no lists 'x' and 'y'")
    x, y = samples["x"], samples["y"]
    if len(x) != len(y):
        raise ValueError(f"path: {place}: {len(x)} of x and {len(y)} of y; each sample needs one of both")
    return User(place, x, y)


def _check_users(path: Path, raw: Mapping[str, Any], found: Mapping[str, User]) -> None:
    """Compare `users` and `num_samples`, where present, with `user_data`."""
    if not isinstance(raw.get("users"), list):
        return
    users = [str(name) for name in raw["users"]]
    for name in users:
        if name not in found:
            raise ValueError(f"path: {path}: user {name!r} of 'users' is not in 'user_data'; make the file again")
    if left := sorted(found.keys() - set(users)):
        raise ValueError(f"path: {path}: user {left[0]!r} of 'user_data' is not in 'users'; make the file again")
    if len(users) > len(found):
        twice = next(name for name in users if users.count(name) > 1)
        raise ValueError(f"path: {path}: user {twice!r} is in 'users' {users.count(twice)} times; make the file again")
    sizes = raw.get("num_samples")
    if sizes is None:
        return
    if not isinstance(sizes, list) or len(sizes) != len(users):
        count = len(sizes) if isinstance(sizes, list) else repr(sizes)
        raise ValueError(f"path: {path}: 'num_samples' has {count} entries for {len(users)} users; make the file again")
    for name, size in zip(users, sizes):
        if size != len(found[name].y):
            raise ValueError(
                f"path: {path}, user {name!r}: 'num_samples' is {size}, and there are {len(found[name].y)} samples"
            )
