"""What `fl bench` and a contestant say to each other: a folder with the workload, then one line of JSON each way.

    fl bench                                     contestant
    SCRIPT FOLDER SHARE SHARES PORT     ----->   {"ready": {name: facts}}   or   {"unavailable": why}
    {"of": name, "check": FILE}         ----->   {}            the first process writes the model after two small rounds
    {"of": name, "rounds": [a, b]}      ----->   {"seconds": s, "samples": n}        cohorts a, a + 1, ... b - 1
    (end of input)                      ----->   (ends)

One script may offer several contestants, and may run as `shares` processes at once. This file and what it imports are all that
a contestant's environment has to have besides the contestant's own package.
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
    """x, y: samples, client by client: client c owns offsets[c]:offsets[c + 1].  first: the model before round 0, by torch's
    names.  layers: what is between input and scores, [name, numbers ...] each; none if they cannot be named so."""

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
    config: dict[str, Any]  # of ours
    share: int
    shares: int
    port: int

    @classmethod
    def read(cls, folder: Path, share: int, shares: int, port: int) -> Workload:
        told = json.loads((folder / "workload.json").read_text())
        # mapped, so that contestants have the samples in memory once; private, so that none can touch another's
        x, y = (np.load(folder / f"{name}.npy", mmap_mode="c") for name in "xy")
        ends, clients = (np.load(folder / f"{name}.npy") for name in ("ends", "clients"))
        with np.load(folder / "first.npz") as first:
            model = dict(first)
        cohorts = np.split(clients, ends[:-1])
        offsets = np.load(folder / "offsets.npy")
        return cls(
            x=x, y=y, offsets=offsets, cohorts=cohorts, first=model, **told, share=share, shares=shares, port=port
        )

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def check(self) -> list[np.ndarray]:
        """Two rounds of a few clients."""
        return [cohort[:CHECKED] for cohort in self.cohorts[:2]]

    def rounds(self, a: int, b: int) -> list[np.ndarray]:
        """Their cohorts; after the last the first comes again."""
        return [self.cohorts[r % len(self.cohorts)] for r in range(a, b)]


class Contestant:
    """What a script offers under one name. `divides`: its processes share a cohort among themselves; else each is given a part
    of it, and they train models of their own."""

    divides = False

    def __init__(self, work: Workload):
        self.work = work

    @property
    def facts(self) -> dict[str, Any]:
        """What it is: {"versions": {package: version}}, and settings it chose."""
        return {}

    def reset(self) -> None:
        """Back to the first model."""
        raise NotImplementedError

    def train(self, cohorts: list[np.ndarray], shuffle: bool) -> None:
        """Rounds of federated averaging, weighted by samples; mini-batches in the order of the samples unless shuffled."""
        raise NotImplementedError

    def weights(self) -> Mapping[str, np.ndarray]:
        raise NotImplementedError

    def check(self) -> Mapping[str, np.ndarray]:
        """The model after the rounds of `Workload.check`, not shuffled."""
        self.reset()
        self.train(self.work.check, False)
        weights = {name: np.array(weight) for name, weight in self.weights().items()}
        self.reset()
        return weights

    def play(self, a: int, b: int) -> dict[str, float]:
        """Rounds a .. b - 1: seconds, and the samples that this process trained on (of all, if processes divide)."""
        cohorts = self.work.rounds(a, b)
        if not self.divides:
            cohorts = [cohort[self.work.share :: self.work.shares] for cohort in cohorts]
        begun = time.perf_counter()
        self.train(cohorts, True)
        seconds = time.perf_counter() - begun
        samples = int(sum(self.work.sizes[cohort].sum() for cohort in cohorts))
        return {"seconds": seconds, "samples": samples / (self.work.shares if self.divides else 1)}


Start = Callable[[Workload], Mapping[str, Contestant]]


def serve(start: Start) -> None:
    """Offer what `start` makes of the workload until the input ends. Whatever libraries print goes to the error output."""
    line = Channel()
    work = Workload.read(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
    try:
        contestants = start(work)
    except (ImportError, NotImplementedError) as why:
        line.tell({"unavailable": f"{type(why).__name__}: {why}"})
        return
    line.tell({"ready": {name: each.facts for name, each in contestants.items()}})
    line.answer(contestants)


class Channel:
    """This process's end."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.out.write(json.dumps(message) + "\n")
            self.out.flush()

    def answer(self, contestants: Mapping[str, Contestant]) -> None:
        for text in sys.stdin:
            asked = json.loads(text)
            of = contestants[asked["of"]]
            if "check" in asked:
                model = of.check()
                if of.work.share == 0:
                    np.savez(asked["check"], **model)
                self.tell({})
            else:
                self.tell(of.play(*asked["rounds"]))
