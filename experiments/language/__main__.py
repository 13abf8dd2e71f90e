"""All LoRA rules on one page: python -m experiments.language OUT [--seeds 3] [--rules FedIT FLoRA ...] [--page FILE].

    OUT/model    the small model, pretrained first if it is missing (experiments/language/pretrain.py)
    OUT/data     the instructions (corpus.py)
    OUT/runs     a run for each rule and seed; runs that have ended are not repeated

Each run is a process of its own, so that its peak memory is its own. The page is printed, or written to FILE.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.language import corpus, pretrain
from experiments.language.rules import RULES, SCORES, one_run, place

TEXT = """\
# Language models: all LoRA rules

`python -m experiments.language OUT --page FILE` makes this page ([experiments/language](language/README.md)): a
causal model of 2.2 million parameters, pretrained on public text, then fine-tuned with LoRA of rank 8 (alpha 16) on
all linear layers by clients that keep their instructions.
"""
TASKS = {
    "speech": """\
The answer continues a speech of a role of Shakespeare by six words. 20 clients, each a role with 42 speeches to train
on; 5 of them in each of 8 rounds, 4 steps of batch 8 with Adam of rate .01. The score is the accuracy of the next
token, given the true tokens before it. `own` are 8 other speeches of each client, answered by the model that the
client predicts with, personal parts included. `server` are 10 further speeches of each role, answered by the server's
model, which has no personal parts: FedSA-LoRA's is a base with untrained B.

One round leaves entries of B smaller than those of A, so the fixed mask keeps entries of A alone: its B is 0, its model
is the base.
""",
    "topics": """\
The answer is the letter of the topic of a headline. 30 clients with all topics in different shares (Dirichlet 10), 5 of
them in each of 8 rounds, 10 steps of batch 16 with Adam of rate .003. The output layer is trained and sent, too. The
score is the exact match of the greedy answer. `own` are other rows of each client, answered by the model that the
client predicts with; `server` are 498 rows that no client has.
""",
}
FIGURES = """\
Rates were not tuned for single rules: all have the same one; only VeRA, whose trained vectors need a larger one, has
.1. The server's Adam of the last three rows has .01. Means ± standard deviations over {seeds} seeds; no ± means equal
values. MB (10^6 bytes) are all encoded messages of a run. clients/s: clients trained per second of one core, in CPU
time, with codecs and the server's step. Peak MB: of the process.
"""
COLUMNS = {  # name on the page -> digits after the point
    "own: perplexity": 1,
    "own: score": 3,
    "server: perplexity": 1,
    "server: score": 3,
    "MB up": 2,
    "MB down": 2,
    "clients/s": 2,
    "peak MB": 0,
}


def make_figures(folder: Path, task: str, rule: str, seed: int) -> None:
    """Run a rule with a seed in a new process, unless its figures are there."""
    file = place(folder, task, rule, seed) / "figures.json"
    if file.is_file():
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.language.rules"])
    process = context.Process(target=one_run, args=(folder, task, rule, seed))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{rule}, seed {seed}: the process ended with {process.exitcode}; its run is in {file.parent}")
    print(f"{rule}, seed {seed}: {file.read_text()}", flush=True)


def table(folder: Path, task: str, rules: Sequence[str], seeds: int) -> str:
    """Return the table: means ± standard deviations over seeds."""
    lines = [f"| rule | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for rule in rules:
        found = [json.loads((place(folder, task, rule, seed) / "figures.json").read_text()) for seed in range(seeds)]
        cells = [_cell([figures[name] for figures in found], digits) for name, digits in COLUMNS.items()]
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], digits: int) -> str:
    deviation = f"{statistics.stdev(values) if len(values) > 1 else 0:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {deviation}" if float(deviation) else "")


def main() -> None:
    """Read the command line, make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--task", choices=list(SCORES), default="speech")
    parser.add_argument("--steps", type=int, default=500, help="steps of the pretraining")
    parser.add_argument("--page", type=Path, help="file of the page. Default: it is printed")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    if not (folder / "model" / "config.json").is_file():
        pretrain.pretrain(folder / "model", arguments.steps)
    if not (folder / "data" / "speech_test.jsonl").is_file():
        corpus.write(folder / "data")
    for seed in range(arguments.seeds):
        for rule in arguments.rules:
            make_figures(folder, arguments.task, rule, seed)
    rows = table(folder, arguments.task, arguments.rules, arguments.seeds)
    page = "\n".join((TEXT, TASKS[arguments.task], FIGURES.format(seeds=arguments.seeds), rows))
    if arguments.page is None:
        print(page)
    else:
        arguments.page.write_text(page)


if __name__ == "__main__":
    main()
