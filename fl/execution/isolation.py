"""Run code of users so that it leaves torch as it was, and cannot end the process.

    with isolated():          class MyClient: def work(...): torch.set_default_dtype(torch.float64)   # undone
        ...                                                  sys.exit(1)                              # an error

Global generators are seeded for each client (fl/tensors/generators.py).
"""

from __future__ import annotations

import dis
import signal
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch

_RAISE = dis.opmap["RAISE_VARARGS"]
_kept: list[Any] = []  # guards that end an inference mode which was left open


class ExitRaised(RuntimeError):
    """User code raised `SystemExit`, `KeyboardInterrupt` or another exception that would end the process."""


class isolated:
    """Context for user code: at its end, torch's settings are those of when it was made. It takes a microsecond.

    A context may be entered again and again.

    Raises:
        ExitRaised: the code raised `SystemExit` (`sys.exit`) or another exception that would end the process. Those
            that a signal has raised (Ctrl-C) pass.
    """

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before = _settings()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _settings() != self.before:
            _restore(self.before)
        if error is not None and not isinstance(error, (Exception, GeneratorExit)):
            raise as_error(error) from None


def as_error(error: BaseException) -> Exception:
    """Return an exception as an error of the code that raised it; those that a signal has raised are raised again."""
    if isinstance(error, Exception):
        return error
    if raised_by_signal(error):
        raise error
    ended = ExitRaised(f"{type(error).__name__}({error}): code of a run must not end the process; raise an error")
    ended.__dict__.update(error.__dict__)  # the stage (fl/execution/stages.py)
    return ended.with_traceback(error.__traceback__)


def raised_by_signal(error: BaseException) -> bool:
    """Return whether a handler of SIGINT or SIGTERM raised an exception.

    Python's own handler has no frame: the innermost frame is in the middle of something else than `raise`.
    """
    frames = list(_frames(error))
    handlers = {_code(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)} - {None}
    if not handlers.isdisjoint(frame.f_code for frame, _ in frames):
        return True
    if not isinstance(error, KeyboardInterrupt) or not frames:
        return False
    frame, at = frames[-1]
    return frame.f_code.co_code[at] != _RAISE


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Frames of an exception's traceback, innermost last, each with the position of its instruction."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame, trace.tb_lasti
        trace = trace.tb_next


def _code(handler: Any) -> CodeType | None:
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


# -- settings of torch ------------------------------------------------------------------------------------------------
native: Any = torch._C  # without the wrappers of `torch`, which cost more than the calls


def _settings() -> tuple[Any, ...]:
    """Settings that code can change for all code after it; reading them takes a microsecond."""
    return (
        native.get_default_dtype(),
        getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
        native.is_inference_mode_enabled(),
        native.is_grad_enabled(),
        native.get_num_threads(),
        native._get_deterministic_algorithms(),
        native._get_deterministic_algorithms_warn_only(),
        native._get_float32_matmul_precision(),
        native.is_autocast_enabled("cpu"),
        native.is_anomaly_enabled(),
    )


def _restore(before: tuple[Any, ...]) -> None:
    """Give torch its settings back."""
    dtype, device, inference, grad, threads, deterministic, warn_only, precision, autocast, anomaly = before
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device is None else device.device)
    if torch.is_inference_mode_enabled() != inference:
        _kept.append(torch.inference_mode(inference))
        _kept[-1].__enter__()
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
    if _settings()[5:7] != (deterministic, warn_only):  # the call imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_float32_matmul_precision(precision)
    torch.set_autocast_enabled("cpu", autocast)
    torch.autograd.set_detect_anomaly(anomaly)
