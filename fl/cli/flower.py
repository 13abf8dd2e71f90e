"""Commands for Flower: run an app on this engine, export a configuration as an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fl.cli.errors import log_to_stderr, report_errors, say
from fl.cli.execute import execute_flower_app
from fl.cli.json_output import print_json
from fl.cli.options import AsJson, ConfigFile, NewRun, Overrides, Traceback
from fl.cli.overrides import parse_overrides
from fl.errors import ConfigError

AppOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Changes to the app's configuration: num-server-rounds=5"),
]


def run(
    folder: Annotated[Path, typer.Argument(metavar="APP_DIR", help="Folder of the app's pyproject.toml.")],
    overrides: AppOverrides = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of nodes (default: the app's num-supernodes, or 10).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes; 1 runs in this process.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    out: NewRun = None,
    journal: Annotated[
        bool, typer.Option("--journal", help="Keep every reply on disk, so that `fl resume` can resume the app.")
    ] = False,
    federation: Annotated[
        str | None, typer.Option(help="One of the app's federations (default: the app's default).")
    ] = None,
    federation_config: Annotated[
        str | None,
        typer.Option(
            metavar="'KEY=VALUE ...'",
            help="Options in place of the federation's, as `flwr run` takes them: client-resources-num-gpus=0.5",
        ),
    ] = None,
    node_config: Annotated[
        str | None,
        typer.Option(
            metavar="'KEY=VALUE ...'",
            help="Configuration of all nodes, as `flower-supernode` takes it: 'batch-size=32 path=\"/data\"'",
        ),
    ] = None,
    node_configs: Annotated[
        Path | None, typer.Option(help="A file with one line per node, each as --node-config takes it.")
    ] = None,
    apply_timeouts: Annotated[
        bool,
        typer.Option(
            "--apply-timeouts",
            help="Drop replies of clients that work longer than the timeout. Results depend on the machine's speed.",
        ),
    ] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Run a Flower app unchanged."""
    with report_errors(traceback):
        changes = {}
        for text in overrides or ():
            key, equals, changes[key] = text.partition("=")
            if not equals:
                raise ConfigError("", f"{text}: not key=value, as in num-server-rounds=5")
        if node_config is not None and node_configs is not None:
            raise ConfigError("--node-configs", "goes without --node-config; put the common keys into each line")
        from fl.flower.app import load
        from fl.flower.node_config import parse_pairs, read_lines

        log_to_stderr()
        app = load(folder, changes, federation, federation_config)
        settings: dict[str, Any] = {
            "executor": "serial" if workers == 1 else "ray",
            "workers": workers,
            "seed": seed,
            "out": out,
        }
        settings |= {"journal": journal, "apply_timeouts": apply_timeouts}
        if node_config is not None:
            settings["node_config"] = parse_pairs(node_config, "--node-config")
        if node_configs is not None:
            settings["node_config"] = read_lines(node_configs)
        execute_flower_app(app.arguments(nodes) | settings, as_json)


def export(
    config: ConfigFile,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the new project; it must not exist yet.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Write a Flower project that runs a configuration on SuperNodes, and print the commands that run it.

    The configuration is checked as `fl run` checks it, and nothing is written if a deployment cannot run it.
    """
    with report_errors(traceback):
        from fl.config.reading import read
        from fl.flower.export import export

        exported = export(read(config, parse_overrides(overrides)), folder)
        if as_json:
            print_json({"folder": str(folder), "next_steps": exported.next_steps.splitlines()})
        else:
            print(exported.next_steps)


def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; none of them may exist.")],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or IP address under which other machines reach the SuperLink; repeatable."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Number of SuperNodes to make a key pair for: node-0, ...")] = 0,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days for which the certificates are valid.")] = 365,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Make the certificates and keys of a deployment: ca.crt, server.crt, their keys, and keys of SuperNodes.

    Prints the SuperLink connection for ~/.flwr/config.toml, which `flwr run` reads.
    """
    with report_errors(traceback):
        from fl.flower.certificates import connection, make_certificates

        hosts = hosts or []
        files = make_certificates(folder, hosts, nodes, days)
        for file in files:
            say(f"wrote {file}")
        text = connection(folder, (*hosts, "127.0.0.1")[0])
        if as_json:
            print_json({"files": [str(file) for file in files], "connection": text})
        else:
            print(text, end="")
