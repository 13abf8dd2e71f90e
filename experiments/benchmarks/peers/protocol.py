"""The protocol between `fl bench` and a contestant: a folder with the workload, then lines of JSON.

    fl bench sends                      the contestant answers
    SCRIPT FOLDER SHARE SHARES PORT     {"ready": {name: facts}}   or   {"unavailable": reason}
    {"of": name, "check": FILE}         {}; the first process has written the model after two small rounds to FILE
    {"of": name, "rounds": [a, b]}      {"seconds": s, "samples": n} of rounds a, a + 1, ... b - 1
    (end of input)                      (the process ends)

One script may offer several contestants, and may run as SHARES processes at once. A contestant's environment needs its
own package and the imports of this file, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNKNOWN = "the workload's model is not a stack of known layers"
CHECKED = 8  # clients in each of the two rounds of a check


@dataclass(frozen=True, eq=False)
class Workload:
    """A workload, as every contestant gets it.

    Args:
        name: name of the workload.
        x: inputs of the samples, client by client.
        y: labels of the samples.
        offsets: client c has the rows offsets[c] : offsets[c + 1] of x and y, (clients + 1,).
        cohorts: ids of the clients of each round.
        first: the initial model, by torch's names.
        layers: the layers, [name, numbers ...] each; None if the model is not a stack of known layers.
        lr: learning rate of the clients.
        batch: batch size.
        epochs: local epochs per round.
        device: "cpu" or "cuda".
        workers: number of processes of contestants that start workers themselves.
        config: configuration of the same run for fl.
        share: number of this process, from 0.
        shares: number of processes of this contestant.
        port: a free TCP port, for contestants whose processes talk to each other.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    offsets: np.ndarray
    cohorts: list[np.ndarray]
    first: dict[str, np.ndarray]
    layers: list[list[Any]] | None
    lr: float
    batch: int
    epochs: int
    device: str
    workers: int
    config: dict[str, Any]
    share: int
    shares: int
    port: int

    @classmethod
    def read(cls, folder: Path, share: int, shares: int, port: int) -> Workload:
        """Read a workload from its folder."""
        settings = json.loads((folder / "workload.json").read_text())
        # memory-mapped, so that all contestants share one copy; copy-on-write, so that none can change another's
        x, y = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in "xy")
        ends, clients = (np.load(folder / f"{name}.npy") for name in ("ends", "clients"))
        with np.load(folder / "first.npz") as first:
            model = dict(first)
        cohorts = np.split(clients, ends[:-1])
        offsets = np.load(folder / "offsets.npy")
        return cls(
            x=x, y=y, offsets=offsets, cohorts=cohorts, first=model, **settings, share=share, shares=shares, port=port
        )

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def check(self) -> list[np.ndarray]:
        """Cohorts of the check: two rounds of a few clients."""
        return [cohort[:CHECKED] for cohort in self.cohorts[:2]]

    def rounds(self, a: int, b: int) -> list[np.ndarray]:
        """Return the cohorts of rounds a .. b - 1; after the last cohort, the first one follows."""
        return [self.cohorts[r % len(self.cohorts)] for r in range(a, b)]


class Contestant:
    """One way to train the workload.

    `splits_cohorts`: the contestant's processes split each cohort among themselves and train one model. Otherwise each
    process gets its share of the cohort and trains a model of its own.
    """

    splits_cohorts = False

    def __init__(self, work: Workload):
        self.work = work

    @property
    def facts(self) -> dict[str, Any]:
        """{"versions": {package: version}} and the settings that the contestant chose."""
        return {}

    def reset(self) -> None:
        """Return to the initial model."""
        raise NotImplementedError

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        """Train one round of federated averaging per cohort, weighted by samples.

        Without `shuffle`, mini-batches follow the order of the samples.
        """
        raise NotImplementedError

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return the current model, by torch's names."""
        raise NotImplementedError

    def check(self) -> Mapping[str, np.ndarray]:
        """Return the model after the rounds of `Workload.check`, without shuffling."""
        self.reset()
        self.train(self.work.check, False)
        weights = {name: np.array(weight) for name, weight in self.weights().items()}
        self.reset()
        return weights

    def play(self, a: int, b: int) -> dict[str, float]:
        """Train rounds a .. b - 1 and return the seconds and this process's number of samples.

        If the processes split cohorts, that number is an equal share of all samples.
        """
        cohorts = self.work.rounds(a, b)
        if not self.splits_cohorts:
            cohorts = [cohort[self.work.share :: self.work.shares] for cohort in cohorts]
        start = time.perf_counter()
        self.train(cohorts, True)
        seconds = time.perf_counter() - start
        samples = int(sum(self.work.sizes[cohort].sum() for cohort in cohorts))
        return {"seconds": seconds, "samples": samples / (self.work.shares if self.splits_cohorts else 1)}


Start = Callable[[Workload], Mapping[str, Contestant]]


def serve(start: Start) -> None:
    """Answer requests for the contestants of `start` until the input ends. Output of libraries goes to stderr."""
    channel = Channel()
    work = Workload.read(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
    try:
        contestants = start(work)
    except (ImportError, NotImplementedError) as error:
        channel.send({"unavailable": f"{type(error).__name__}: {error}"})
        return
    channel.send({"ready": {name: contestant.facts for name, contestant in contestants.items()}})
    channel.answer(contestants)


class Channel:
    """This process's end of the connection: requests come from stdin, answers go to stdout."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # output of libraries goes to stderr

    def send(self, message: dict[str, Any]) -> None:
        """Send one line of JSON."""
        with contextlib.suppress(BrokenPipeError):
            self.out.write(json.dumps(message) + "\n")
            self.out.flush()

    def answer(self, contestants: Mapping[str, Contestant]) -> None:
        """Answer requests until the input ends."""
        for text in sys.stdin:
            request = json.loads(text)
            contestant = contestants[request["of"]]
            if "check" in request:
                model = contestant.check()
                if contestant.work.share == 0:
                    np.savez(request["check"], **model)
                self.send({})
            else:
                self.send(contestant.play(*request["rounds"]))
