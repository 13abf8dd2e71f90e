"""Runs with `task: multitask`: their labels are the arrays `y_NAME`, and a multi-head model gets the task's heads."""

from __future__ import annotations

from dataclasses import replace

from fl import registry
from fl.config.config import Config
from fl.errors import ConfigError
from fl.models.architectures.multihead import MultiHead
from fl.models.section import Model


def check_several_tasks(config: Config) -> None:
    """Check that nothing changes or hides the labels `y` of a run whose labels are `y_NAME`.

    Raises:
        ConfigError: a part would have no effect on the labels that are learnt.
    """
    if not config.task.heads():
        return
    learnt = f"and task: {registry.name_of(config.task)} learns the labels y_NAME"
    if config.labels is not None:
        raise ConfigError("labels", f"hides the labels y, {learnt}; leave it out")
    if getattr(config.stream, "head", "joint") != "joint":
        raise ConfigError("stream.head", f"changes the labels y, {learnt}; use head: joint")
    if "y" in getattr(config.shift, "changes", ()):
        raise ConfigError("shift", f"changes the labels y, {learnt}; use a shift of x, such as rotate")


def with_heads(config: Config) -> Model:
    """Return the section `model`; a multi-head model gets the heads of the task."""
    model, heads = config.model, config.task.heads()
    return replace(model, part=model.part.for_heads(heads)) if heads and isinstance(model.part, MultiHead) else model
