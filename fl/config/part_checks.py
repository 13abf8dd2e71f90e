"""Check that the class of a user's part has the base and the methods of its kind, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fl.errors import ConfigError
from fl.kinds import Kind
from fl.registry import is_users

# kinds with a base class that every part derives from; the bases of other kinds are protocols
DERIVED = (
    "strategy",
    "client",
    "codec",
    "cohort",
    "task",
    "transform",
    "augment",
    "optimiser",
    "server_optimiser",
    "adversary",
    "after_reduction",
    "protocol",
    "mechanism",
    "clipping",
)
# kind -> the method that its parts define
METHODS = {"partition": "split", "shift": "apply", "labels": "keep", "stream": "periods"}


def check_class(kind: Kind, cls: type, name: str, path: str) -> None:
    """Raise a `ConfigError` if a class has another base than its kind, or lacks a method, or takes other arguments.

    Args:
        kind: what the part is used as.
        cls: the class of the part.
        name: the name or the reference that it was asked for with.
        path: dotted path of the part in the configuration.
    """
    base, method = kind.base_class, METHODS.get(kind.name)
    if kind.name in DERIVED and not issubclass(cls, base):
        parents = [parent.__name__ for parent in cls.__bases__ if parent is not object]
        what = f"{name} derives from {', '.join(parents)}" if parents else f"{name} has no base class"
        raise ConfigError(path, f"{what}; a {kind.name} is a class {cls.__name__}({base.__name__})")
    if method is not None and not callable(getattr(cls, method, None)):
        raise ConfigError(
            path, f"{name} does not define {_call(method, getattr(base, method))}; a {kind.name} needs it"
        )
    if kind.name in (*DERIVED, *METHODS):
        ours = [parent for parent in reversed(cls.__mro__) if base in parent.__mro__ and not is_users(parent)]
        hooks = {hook: defined for parent in (base, *ours) for hook, defined in vars(parent).items()}
        for hook, defined in hooks.items():
            if inspect.isfunction(defined) and not hook.startswith("_"):
                _check_arguments(hook, defined, getattr(cls, hook, None), f"{kind.name} {name}", path)


def _check_arguments(hook: str, defined: Callable[..., Any], own: Any, who: str, path: str) -> None:
    """Check that a method takes the arguments that the base's method has without defaults."""
    if not inspect.isfunction(own) or own is defined:
        return
    needed = [p for p in inspect.signature(defined).parameters.values() if p.default is p.empty]
    try:
        inspect.signature(own).bind(*(p for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD))
    except TypeError:
        expected = _call(hook, defined)
        raise ConfigError(path, f"{who}: {_call(hook, own)} has other arguments than {expected}") from None


def _call(hook: str, function: Callable[..., Any]) -> str:
    """The signature of a method, as in `step(self, state, reduced, ctx)`."""
    return f"{hook}({', '.join(map(str, _plain(function)))})"


def _plain(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function without annotations."""
    parameters = inspect.signature(function).parameters.values()
    return [p.replace(annotation=p.empty) for p in parameters]
