"""Checks of a class's hooks before work starts: hooks that another hook replaces, and names that nothing calls.

`names_in` and `names_of` read the names that the code of a class or a method has.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from fl import checks, registry

# hook -> (what it replaces, the way out). The default of the first hook calls the others.
_REPLACED = {
    "step": (("gradient", "protected"), "call super().step(step), or put its work into step()"),
    "gradient": (("protected",), "call super().gradient(grad, params, at), or put its work into gradient()"),
    "trainings": (("finish",), "end trainings() with return self.finish(end)"),
    "work": (
        ("step", "trainings", "metrics", "carry", "answer"),
        "call super().work(name, ctx, carry), or put its work into work()",
    ),
}


def check_hooks(kind: type, base: type) -> None:
    """Refuse hooks of a client algorithm that nothing would call.

    A hook counts as called if the code that replaces its caller names it, or names the default of the caller.

    Args:
        kind: the class of a client algorithm.
        base: `LocalTraining`.

    Raises:
        ValueError: a hook that another hook replaces, or a method whose name is close to a hook's.
    """
    if fault := _fault(kind, base):
        raise ValueError(fault)


def _fault(kind: type, base: type) -> str | None:
    """What nothing would call, in words."""
    for caller, (replaced, out) in _REPLACED.items():
        by = registry.definer(kind, caller)
        if by is base:
            continue
        named = set(names_in(by))
        for hook in replaced:
            own = registry.definer(kind, hook)
            if own is base or not issubclass(own, by) or not callable(getattr(kind, hook)):
                continue
            called = {hook} - {"gradient"}  # this name is also that of `step.gradient`
            if hook != "answer":
                called.add("training_loop")  # the default of `work` calls it, and it calls the hooks of training
            if named.isdisjoint(called) and caller not in set(names_of(vars(by)[caller])):
                return (
                    f"nothing calls {own.__name__}.{hook}(), because {by.__name__}.{caller}() "
                    f"replaces what calls it; {out}"
                )
    together, alone = (registry.definer(kind, hook) for hook in ("prepare_together", "prepare"))
    if together is not base and alone is base:
        return (
            f"nothing calls {together.__name__}.prepare_together() for one client; define prepare(self, ctx, inputs) "
            "with return fl.prepare_alone(self, ctx, inputs)"
        )
    hooks = [name for name in dir(base) if not name.startswith("_") and inspect.isfunction(getattr(base, name))]
    for name in dir(kind):
        if hasattr(base, name) or not inspect.isfunction(getattr(kind, name)):
            continue
        if meant := checks.meant(name, hooks):
            return (
                f"nothing calls {kind.__name__}.{name}(); did you mean {meant}()? Begin the name of a method "
                "of your own with an underscore"
            )
    return None


def names_in(cls: type) -> Iterator[str]:
    """Yield the names of attributes and globals in the methods of one class, without those of its bases."""
    for member in vars(cls).values():
        yield from names_of(member)


def names_of(method: Any) -> Iterator[str]:
    """Yield the names of attributes and globals in a method."""
    code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
    if isinstance(code, CodeType):
        yield from _names(code)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
