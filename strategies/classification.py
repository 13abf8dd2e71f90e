"""The check of methods that need one class per sample."""

from __future__ import annotations

from fl import ServerContext


def require_classification(method: str, ctx: ServerContext) -> None:
    """Check that the task is a classification.

    Raises:
        ValueError: it is not; the message names the method and the task.
    """
    if ctx.task.kernel != "cross_entropy":
        raise ValueError(
            f"name: {method} is for classification, and the task is {type(ctx.task).__name__}; use task: "
            "classification, or another strategy"
        )
