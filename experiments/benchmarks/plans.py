"""Print which methods can train many clients together, by plan.

    python -m experiments.benchmarks.plans        prints the table of docs/baselines.md

Each strategy is set up with its own client, the MLP of `fl check` and each plan in turn.
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

BatchedPlan = Literal["compiled", "stacked", "flat", "vmap"]
PLANS: tuple[BatchedPlan, ...] = get_args(BatchedPlan)


def reason_against(config: Config, plan: BatchedPlan) -> str | None:
    """Return None if the plan is possible, else the engine's reason."""
    try:
        set_up_run(replace(config, execution=replace(config.execution, plan=plan)))
    except ConfigError as error:
        reason = str(error).partition("is not possible: ")[2]
        if not reason:
            raise
        return reason.partition(". Use ")[0]
    return None


def rows() -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield each registered strategy, and a dict: plan -> reason against it, or None."""
    for name in registry.names("strategy"):
        config = Bench.of("strategy", name, {}, Path()).config()
        yield name, {plan: reason_against(config, plan) for plan in PLANS}


def table() -> str:
    lines = [f"| method | {' | '.join(PLANS)} | why not |", "|---" * (len(PLANS) + 2) + "|"]
    for name, reasons in rows():
        possible = " | ".join("no" if reasons[plan] else "yes" for plan in PLANS)
        distinct = dict.fromkeys(reason for reason in reasons.values() if reason)
        lines.append(f"| `{name}` | {possible} | {'; '.join(distinct)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
