"""Completion of values in shells: kinds, names of parts, keys of configurations and their values.

typer completes commands and options, and shells complete paths where a function here returns nothing. These functions
run at each press of TAB, so nothing heavy is imported, and a broken file completes to nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import ShellComplete, add_completion_class

BREAKS = "=:"  # bash divides words at these


def complete_kind(context: click.Context, incomplete: str) -> list[str]:
    """The kinds; for `fl show` also the sections, and `config`."""
    from fl.kinds import KINDS

    words = list(KINDS)
    if context.info_name == "show":
        from fl.reference.tree import configuration

        words += ["config", *(key.path for key in configuration() if key.below)]
    return sorted({word for word in words if word.startswith(incomplete)})


def complete_part(context: click.Context, incomplete: str) -> list[tuple[str, str]]:
    """The names of the parts of the kind that stands before; after `config`, the keys of a configuration."""
    from fl.kinds import KINDS
    from fl.reference import parts, tree

    kind = context.params.get("kind")
    if kind == "config":
        return [(key.path, key.meaning) for key in tree.flat(tree.configuration()) if key.path.startswith(incomplete)]
    entries = parts.names(kind) if kind in KINDS else {}
    return [(name, entry.summary) for name, entry in entries.items() if name.startswith(incomplete)]


def complete_target(context: click.Context, incomplete: str) -> list[str]:
    """`kind:name` of every part."""
    from fl.kinds import KINDS
    from fl.reference import parts

    targets = (f"{kind}:{name}" for kind in KINDS for name in parts.names(kind))
    return [target for target in targets if target.startswith(incomplete)]


def complete_override(context: click.Context, incomplete: str) -> list[tuple[str, str]]:
    """`key=` for each key of the configuration that the command names, or the values of the key."""
    from fl.reference.override_keys import keys_for, suggested_values

    given = context.params.get("config") or context.params.get("source") or context.params.get("directory")
    file = None if given is None else Path(given) / "config.yaml" if Path(given).is_dir() else Path(given)
    name, equals, _ = incomplete.partition("=")
    keys = keys_for(file, context.params.get("overrides") or (), name)
    if not equals:
        if len(keys) != 1:
            return [(f"{key.path}=", key.meaning) for key in keys]
        name = keys[0].path
    values = [(f"{name}={value}", key.meaning) for key in keys if key.path == name for value in suggested_values(key)]
    if equals or len(values) > 1:
        return values
    # a single candidate would end the word; with a second one the shell waits for the value
    return [(f"{name}=", ""), *values] if values else [(f"{name}=", ""), (f"{name}=VALUE", "")]


class Bash(ShellComplete):
    """Completion for bash, which divides the word `client.lr=0.1` at "=", and `codec:top_k` at ":".

    typer's script calls it. It joins such words, and prints what follows the last "=" or ":".
    """

    name = "bash"
    source_template = ""  # typer prints and installs its own script

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the word at the cursor."""
        words, cursor = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
        whole: list[str] = []
        for word in words[: cursor + 1]:
            if whole and word and (word.strip(BREAKS) == "" or whole[-1][-1:] in tuple(BREAKS)):
                whole[-1] += word
            else:
                whole.append(word)
        return whole[1:-1], whole[-1]

    def complete(self) -> str:
        """The candidates, one in each line."""
        arguments, incomplete = self.get_completion_args()
        replaced = max(incomplete.rfind(each) for each in BREAKS) + 1
        return "\n".join(item.value[replaced:] for item in self.get_completions(arguments, incomplete))


def use_our_bash() -> None:
    """Let completion in bash work inside key=value. Called after typer has set its own classes."""
    add_completion_class(Bash)
