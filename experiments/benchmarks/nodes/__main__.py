"""See the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.nodes import equal, lost, rates, scale

TABLES: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "equal": equal.table,
    "lost": lost.table,
    "rates": rates.table,
    "scale": scale.table,
}


def main() -> None:
    """Make tables, and write them and their numbers to a folder."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.nodes")
    parser.add_argument("out", type=Path)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="default: all")
    parser.add_argument("--nodes", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.tables or TABLES:
        text, numbers = TABLES[name](asked.nodes)
        (asked.out / f"{name}.md").write_text(text)
        (asked.out / f"{name}.json").write_text(json.dumps(numbers, indent=2))
        print(text, flush=True)


if __name__ == "__main__":
    main()
