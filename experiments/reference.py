"""The pages of docs/reference/: configuration, parts, command line and Python interface, made from the source.

    python -m experiments.reference

writes them again. tests/test_reference.py compares the pages with what this module makes.
"""

from __future__ import annotations

from pathlib import Path

import typer

from fl.cli.app import app
from fl.kinds import KINDS
from fl.reference import parts
from fl.reference.commands import commands_page
from fl.reference.interface import interface_page
from fl.reference.markdown import GENERATED, configuration_page, kind_page
from fl.reference.nouns import NOUNS

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
INTRODUCTION = """# Reference

{generated}

Every key, part, command and function, from the source. The guides beside this folder explain how they work together.

| page | content |
|---|---|
| [configuration](configuration.md) | all sections and keys of a configuration |
| [command line](command_line.md) | all commands and options |
| [Python](python.md) | what `from fl import ...` offers |

Parts by kind; `fl list KIND` and `fl show KIND NAME` print the same.

| kind | what the parts do | registered |
|---|---|---|
"""


def pages() -> dict[str, str]:
    """The name and the text of each page."""
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    rows = [
        f"| [{NOUNS[kind][1]}]({kind}.md) (`{kind}`) | {NOUNS[kind][2]} | {len(parts.names(kind))} |" for kind in KINDS
    ]
    found = {"README.md": INTRODUCTION.format(generated=GENERATED) + "\n".join(rows) + "\n"}
    found |= {"configuration.md": configuration_page(), "python.md": interface_page()}
    found |= {"command_line.md": commands_page(command)}
    return found | {f"{kind}.md": kind_page(kind) for kind in KINDS}


def main() -> None:
    """Write all pages; delete those that are no longer made."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    print(f"{FOLDER}: {len(made)} pages")


if __name__ == "__main__":
    main()
