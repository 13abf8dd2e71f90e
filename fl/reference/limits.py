"""The allowed ranges of arguments, read from the checks in `__post_init__` (fl/checks.py)."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fl.reference.source import Definition, Module


@dataclass(frozen=True)
class Limit:
    """The allowed values of an argument.

    Args:
        low: smallest value; None: no limit.
        high: largest value; None: no limit.
        above: `low` itself is not allowed.
        below: `high` itself is not allowed.
        values: the allowed values; () for all.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    values: tuple[object, ...] = ()

    def words(self, whole: bool = False) -> str:
        """Say the range after a comma; `whole`: of whole numbers.

        >>> Limit(0, above=True).words(), Limit(0, above=True).words(whole=True), Limit(0, 1, below=True).words()
        (' above 0', ', 1 or more', ' in [0, 1)')
        """
        if self.low is not None and self.high is not None:
            return f" in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if self.low is not None:
            if whole and self.above:
                return f", {self.low + 1:g} or more"
            return f" above {self.low:g}" if self.above else f", {self.low:g} or more"
        if self.high is not None:
            return f" below {self.high:g}" if self.below else f", at most {self.high:g}"
        return ""


@functools.cache
def limits_of(part: Definition) -> dict[str, Limit]:
    """Argument -> its allowed values, for the checks that hold whatever the other arguments are."""
    found: dict[str, Limit] = {}
    for call, module in _checks(part):
        limit = _limit(call, module)
        if limit is None:
            continue
        for keyword in call.keywords:
            if keyword.arg is not None and ast.unparse(keyword.value) == f"self.{keyword.arg}":
                found[keyword.arg] = _both(found.get(keyword.arg, Limit()), limit)
    return found


def _checks(part: Definition) -> Iterator[tuple[ast.Call, Module]]:
    """The calls that `__post_init__` makes on every path, also those of the bases that it calls."""
    for each in part.lineage:
        method = next((n for n in each.node.body if isinstance(n, ast.FunctionDef) and n.name == "__post_init__"), None)
        if method is None:
            continue
        calls_base = False
        for line in method.body:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call):
                calls_base |= ast.unparse(line.value.func).endswith(".__post_init__")
                yield line.value, each.module
        if not calls_base:
            return


def _limit(call: ast.Call, module: Module) -> Limit | None:
    """The range that a call of fl/checks.py requires; None for another call, or for a bound that is computed."""
    check = ast.unparse(call.func).removeprefix("checks.")
    if check == "positive":
        return Limit(0, above=True)
    if check == "not_negative":
        return Limit(0)
    if check not in ("at_least", "within", "one_of") or not call.args:
        return None
    bound = _value(call.args[0], module)
    if check == "at_least":
        return Limit(bound) if isinstance(bound, (int, float)) else None
    if check == "one_of":
        return Limit(values=tuple(bound)) if isinstance(bound, (tuple, list, dict)) else None
    match = re.fullmatch(r"([\[(])(\S+), ?(\S+)([\])])", str(bound))
    if match is None:
        return None
    low, high = (None if "inf" in text else float(text) for text in (match[2], match[3]))
    return Limit(low, high, match[1] == "(", match[4] == ")")


def _value(node: ast.expr, module: Module) -> Any:
    """The value of an expression, which may contain names of constants; None if it is computed."""
    if isinstance(node, ast.JoinedStr):
        parts = [each.value if isinstance(each, ast.FormattedValue) else each for each in node.values]
        values = [_value(each, module) for each in parts]
        return None if None in values else "".join(map(str, values))
    if isinstance(node, ast.Name):
        constant = module.constant(node.id)
        return None if constant is None else _value(constant[1], constant[0])
    if isinstance(node, ast.Dict):  # a table by name
        node = ast.Tuple([key for key in node.keys if key is not None])
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _both(one: Limit, other: Limit) -> Limit:
    """The values that two limits allow."""
    both = one
    if other.low is not None and (one.low is None or other.low > one.low):
        both = replace(both, low=other.low, above=other.above)
    if other.high is not None and (one.high is None or other.high < one.high):
        both = replace(both, high=other.high, below=other.below)
    return replace(both, values=other.values or one.values)
