"""Which methods train many clients together: each strategy's own client on an MLP of `fl check`, asked for each plan.

python -m experiments.benchmarks.plans        prints the table of docs/baselines.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from fl import registry
from fl.check.bench import Bench
from fl.config.config import Config
from fl.errors import ConfigError
from fl.simulation.build import set_up_run

Together = Literal["compiled", "stacked", "flat", "vmap"]
PLANS: tuple[Together, ...] = get_args(Together)


def why_not(config: Config, plan: Together) -> str | None:
    """`None` if clients can be trained so, else the engine's reason."""
    try:
        set_up_run(replace(config, execution=replace(config.execution, plan=plan)))
    except ConfigError as error:
        said = str(error).partition("is not possible: ")[2]
        if not said:
            raise
        return said.partition(". Use ")[0]
    return None


def rows() -> Iterator[tuple[str, dict[str, str | None]]]:
    """Each registered strategy with its obstacles by plan."""
    for name in registry.names("strategy"):
        config = Bench.of("strategy", name, {}, Path()).config()
        yield name, {plan: why_not(config, plan) for plan in PLANS}


def table() -> str:
    lines = [f"| method | {' | '.join(PLANS)} | why not |", "|---" * (len(PLANS) + 2) + "|"]
    for name, obstacles in rows():
        said = "; ".join(dict.fromkeys(why for why in obstacles.values() if why))
        yes = " | ".join("no" if obstacles[plan] else "yes" for plan in PLANS)
        lines.append(f"| `{name}` | {yes} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
