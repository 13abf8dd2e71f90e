"""The first line of a run: what runs, and what a user may not know about it."""

from __future__ import annotations

from pathlib import Path

from fl import registry
from fl.execution.training.compiled import machine_code, seconds_to_compile
from fl.execution.training.plan import ASKED_FOR
from fl.models.extension import note as added_parts
from fl.simulation.private_figures import privacy_notes
from fl.simulation.setup import RunSetup

SECURE = (
    "train/*, clients/* and the rows of single clients are the simulator's view; with secure aggregation the server "
    "learns sums only"
)


def headline(setup: RunSetup, directory: Path, place: str, digest: str) -> str:
    """Return one line that tells what runs.

    Args:
        setup: the run.
        directory: the run directory.
        place: the executor in words, see `Choice.words`; "" if clients are elsewhere.
        digest: the digest of the configuration; its first 12 characters are shown.
    """
    strategy, client = map(registry.name_of, (setup.config.strategy, setup.config.client))
    seconds = seconds_to_compile(machine_code(setup.plan.kind, setup.plan.memory_format, setup.config.client))
    compiles = f" (the first time, it compiles for about {seconds} seconds)" if seconds else ""
    privacy = privacy_notes(setup.privacy, setup.config.rounds)
    secure = [SECURE] if setup.config.secure_aggregation is not None else []
    return (
        f"{strategy} with client {client}, {setup.population} clients, {_parameters(setup)}, "
        f"training {setup.plan.kind}{compiles}{_loops_because(setup)}"
        f"{place and ' '}{place}, configuration {digest[:12]}, in {directory}"
        + "".join(f". Note: {note}" for note in (*_notes(setup), *privacy, *secure, *setup.dataset.notes))
    )


def _loops_because(setup: RunSetup) -> str:
    """Why the clients of a user's own algorithm train one at a time, in parentheses; else ""."""
    asked = setup.plan.why == ASKED_FOR
    return f" ({setup.plan.why})" if setup.trial and setup.plan.kind == "loop" and not asked else ""


def _parameters(setup: RunSetup) -> str:
    """The sizes of the models, in words."""
    if setup.by_client is None:
        return f"{setup.model.numel} parameters"
    models = zip(setup.models, setup.by_client.counts())
    return ", ".join(f"{count} {model.name} of {model.initial.trained.numel} parameters" for model, count in models)


def _notes(setup: RunSetup) -> list[str]:
    """What a user may not know about the models."""
    client = registry.name_of(setup.config.client)
    if setup.by_client is None:
        return [*added_parts(setup.module, client), *setup.facts.notes]
    notes = {model.name: [*added_parts(model.module, client), *model.facts.notes] for model in setup.models}
    return [f"model {name}: {note}" for name, own in notes.items() for note in own]
