"""Run an app on Flower's own simulation, in this process and on Ray, with the app's configuration.

    python -m experiments.benchmarks.peers.flower_app APP_DIR

`run_simulation` has no argument for the run config. Both halves of the app therefore get a Context with it. Flower
refuses changes to the run config of its own Context.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl.flower.app import load


def _configured(context: Context, config: Mapping[str, Any]) -> Context:
    """Return a Context with another run config and the same state."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=context.state,
        run_config=dict(config),
    )


@dataclass(frozen=True)
class ConfiguredClient:
    """A ClientApp with the run config of its app."""

    app: ClientApp
    config: Mapping[str, Any]

    def __call__(self, message: Message, context: Context) -> Message:
        inner = _configured(context, self.config)
        reply = self.app(message, inner)
        context.state = inner.state
        return reply


@dataclass(frozen=True)
class ConfiguredServer:
    """A ServerApp with the run config of its app."""

    app: ServerApp
    config: Mapping[str, Any]

    def __call__(self, grid: Grid, context: Context) -> None:
        self.app(grid, _configured(context, self.config))


def main(folder: Path) -> None:
    """Run the app in a folder, with its own number of nodes."""
    from flwr.simulation import run_simulation

    app = load(folder)
    server, client = ConfiguredServer(app.server, app.config), ConfiguredClient(app.client, app.config)
    run_simulation(cast(ServerApp, server), cast(ClientApp, client), app.federation.nodes)  # Flower only calls them


if __name__ == "__main__":
    main(Path(sys.argv[1]))
