"""Where an error comes from in a user's own file, for messages.

./my_rule.py, line 12: total = reduced["nosuch"]
KeyError: 'nosuch'
in step of ./my_rule.py:SignMean, called with state: Params(w[2]), reduced: Params(w[2]), ctx: ServerContext
"""

from __future__ import annotations

import linecache
import os
import traceback
from pathlib import Path
from types import FrameType, TracebackType

from fl import registry

LONGEST = 60  # characters of an argument's description


def explain(error: BaseException) -> str:
    """Describe an error that was raised in, or below, a user's file: three lines as in the module; "" for others."""
    if isinstance(error, SyntaxError) and error.filename and registry.is_user_file(error.filename):
        source = (error.text or "").strip()
        return f"{relative(error.filename)}, line {error.lineno}: {source}\n{type(error).__name__}: {error.msg}"
    frames = traceback.walk_tb(error.__traceback__)
    mine = [(frame, line) for frame, line in frames if registry.is_user_file(frame.f_code.co_filename)]
    if not mine:
        return ""
    frame, line = mine[-1]
    file = frame.f_code.co_filename
    source = linecache.getline(file, line).strip()
    return (
        f"{relative(file)}, line {line}: {source}\n{type(error).__name__}: {_first_line(error)}\nin {_call(mine[0][0])}"
    )


def is_deliberate(error: BaseException) -> bool:
    """Whether a user's `raise` statement raised the error, so that its message says all."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    return linecache.getline(last.tb_frame.f_code.co_filename, last.tb_lineno).strip().startswith("raise")


def relative(file: str) -> str:
    """A path as a user would write it: `./my_rule.py` if it lies below the working directory."""
    try:
        inside = os.path.relpath(file)
    except (OSError, ValueError):  # another drive
        return file
    return file if inside.startswith("..") else f"./{Path(inside)}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _call(frame: FrameType) -> str:
    """The function of a frame with its class, its file and its arguments."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    where = relative(code.co_filename)
    if code.co_name == "<module>":
        return f"{where}, while it was imported"
    if "self" in names and "self" in values:
        where = f"{where}:{type(values['self']).__name__}"
    arguments = [f"{name}: {_describe(values[name])}" for name in names if name in values and name != "self"]
    return f"{code.co_name} of {where}" + (f", called with {', '.join(arguments)}" if arguments else "")


def _describe(value: object) -> str:
    """An argument in a few words: the value of numbers and strings, the shape of tensors, else the type."""
    shape = getattr(value, "shape", None)
    if isinstance(value, (bool, int, float, str, type(None))) or type(value).__name__ == "Params":
        text = repr(value)
    elif shape is not None:
        text = f"{type(value).__name__}{tuple(shape)}"
    elif isinstance(value, (dict, list, tuple)):
        text = f"{type(value).__name__} of {len(value)}"
    else:
        text = type(value).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
