"""Run a configuration as Flower apps: the same rounds as the simulator, with clients on SuperNodes.

    server_app(config)   a ServerApp: the simulator, whose executor sends each client of a cohort a message
    client_app(config)   a ClientApp: does one client's share of an exchange

    dispatch -- one Message per client ~~> client work, transforms, codec ~~> decode, transforms, reduction --> result

Sampling, strategies, evaluation, ledger and run directory are the simulator's own code. So the same seed gives the
model that the simulator gives with execution.plan=loop. The node config of a SuperNode names its client:
partition-id=0, 1, ... A client's state stays in the Context of its SuperNode; the server only knows which exchange
wrote it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl.config.config import resolve
from fl.config.yaml import parse
from fl.errors import ClientError
from fl.flower.client_worker import answer
from fl.flower.configuration import APP_KEYS, Source, apply_run_config, config_text, text_digest
from fl.flower.deployable import assembled
from fl.flower.hello import answer_hello
from fl.flower.server_executor import FlowerExecutor
from fl.simulation.result import Result
from fl.simulation.run import new_directory
from fl.storage.run import committed
from fl.tracking.callback import Callback, Row


def server_app(
    config: Source, out: str | Path | None = None, wait: float = 600.0, timeout: float | None = None
) -> ServerApp:
    """Make the ServerApp of a configuration.

    Flower's run config (`flwr run -c "rounds=5 client.lr=0.1"`) overrides the configuration and the other arguments.

    Args:
        config: A file, a mapping or a resolved configuration.
        out: The run directory. If it holds a run, the run continues; None makes a new directory under runs/.
        wait: Seconds to wait for all SuperNodes before round 0.
        timeout: Seconds to wait for a client's reply; a later client counts as failed. None waits without limit.
    """
    app, text = ServerApp(), config_text(config)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        chosen: dict[str, Any] = {"out": out, "wait": wait, "timeout": timeout}
        chosen |= {key: context.run_config[key] for key in APP_KEYS if context.run_config.get(key)}
        changed = apply_run_config(text, context.run_config)
        try:
            run_server(grid, changed, chosen["out"], float(chosen["wait"]), chosen["timeout"])
        except ClientError as error:  # its text goes on with a traceback, and Flower's log shows another one
            raise RuntimeError(str(error).partition("\n")[0]) from None

    return app


def client_app(config: Source) -> ClientApp:
    """Make the ClientApp of a configuration, which must be the server's."""
    text = config_text(config)

    def digest(context: Context) -> str:
        return text_digest(apply_run_config(text, context.run_config))

    def work(message: Message, context: Context) -> Message:
        return Message(answer(apply_run_config(text, context.run_config), message.content, context), reply_to=message)

    app = answer_hello(ClientApp(), config=digest)
    app.train()(work)
    app.evaluate()(work)
    return app


def run_server(
    grid: Grid, text: str, out: str | Path | None = None, wait: float = 600.0, timeout: float | None = None
) -> Result:
    """Run a resolved configuration (YAML) over the SuperNodes of a grid; the other arguments as in `server_app`."""
    config = resolve(parse(text))
    directory = Path(out) if out else new_directory(config)
    digest = text_digest(text)
    print(f"configuration {digest[:12]} in {directory}", flush=True)
    executor = FlowerExecutor(grid, digest, wait, None if timeout is None else float(timeout))
    with assembled(config, directory, committed(directory), executor) as simulation:
        result = simulation.run([_PrintedRounds()])
    print(f"{result.reason}; model {result.digest[:12]} in {result.directory}", flush=True)
    return result


class _PrintedRounds(Callback):
    """Prints a line for each round: ServerApps run without a terminal."""

    def round(self, row: Row) -> None:
        figures = {k: v for k, v in row.items() if k.endswith(("loss", "accuracy")) and isinstance(v, float)}
        print(f"round {row['round']}: " + "  ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)
        for error in row.get("errors", ()):
            print(f"left out: {error}", flush=True)
