"""Table of runs that lose a node in the middle of a round."""

from __future__ import annotations

import threading
import time
from typing import Any

from experiments.benchmarks.nodes.cluster import started
from experiments.benchmarks.nodes.equal import on_nodes, serial
from fl.errors import MachineError
from fl.tracking.callback import Callback, Row

METHODS = ("SCAFFOLD", "median", "carries")
ROUNDS = {"rounds": 40, "evaluation": {"every": 20}}
DELAYS = (0.0, 0.01, 0.03)  # seconds after a round has been committed


class LosesANode(Callback):
    """Kills a node some time after a round.

    Args:
        lose: kills it.
        after: the round.
        delay: seconds after the round's commit.
    """

    def __init__(self, lose: Any, after: int, delay: float):
        self.lose, self.after, self.delay = lose, after, delay
        self.thread: threading.Thread | None = None

    def round(self, row: Row) -> None:
        """Start the killer once."""
        if row["round"] == self.after:
            self.thread = threading.Thread(target=self._kill)
            self.thread.start()

    def _kill(self) -> None:
        time.sleep(self.delay)
        self.lose()


def table(count: int = 3, losses: int = len(DELAYS)) -> tuple[str, dict[str, Any]]:
    """Return the table as markdown, and its numbers.

    Args:
        count: number of nodes, each with one worker.
        losses: losses of a node for each method.
    """
    lines = ["| method | a node is lost | outcome | nodes left | slowest round, s |"]
    lines.append("|---|---|---|---|---|")
    found: dict[str, Any] = {"losses": []}
    with started(count) as nodes:
        for method in METHODS:
            expected = serial(method, ROUNDS)
            for delay in DELAYS[:losses]:
                loss = LosesANode(lambda: nodes.lose(-1), 9, delay)
                one = on_nodes(method, nodes, count, [loss], ROUNDS)
                assert loss.thread is not None
                loss.thread.join()
                one |= {"method": method, "serial": expected}
                found["losses"].append(one)
                equal = "equal to serial" if one["digest"] == expected else "DIFFERENT"
                lines.append(
                    f"| {method} | {delay:g} s after round 9 | {equal} | {one['nodes']} | {one['slowest']:.1f} |"
                )
                print(lines[-1], flush=True)
                nodes.add()
    with started(2, head_cores=0) as nodes:
        loss = LosesANode(lambda: nodes.lose(-1), 9, 0.01)
        try:
            on_nodes("SCAFFOLD", nodes, 1, [loss], ROUNDS)
            outcome = "NO ERROR"
        except MachineError as error:
            outcome = str(error)
        lines.append(f"| SCAFFOLD | the only node with workers | {outcome} | | |")
        found["only"] = outcome
    return "\n".join(lines) + "\n", found
