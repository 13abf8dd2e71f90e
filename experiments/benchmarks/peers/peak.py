"""The machine's float32 peak: products of square matrices of the fastest size. Its "samples" are FLOP."""

from __future__ import annotations

import time

import torch
from protocol import Contestant, Workload, serve

torch.set_num_threads(1)
SIDES = (512, 1024, 1536, 2048)


class Peak(Contestant):
    splits_cohorts = True

    def __init__(self, work: Workload):
        super().__init__(work)
        self.side = max(SIDES, key=lambda side: max(self.speed(side, 1) for _ in range(3)))

    @property
    def facts(self):
        return {"versions": {"torch": torch.__version__}, "side": self.side}

    def speed(self, side: int, times: int) -> float:
        """Return the FLOP per second of `times` products."""
        a, b = torch.ones(2, side, side, device=self.work.device)
        out = a @ b
        start = time.perf_counter()
        for _ in range(times):
            torch.mm(a, b, out=out)
        if self.work.device != "cpu":
            torch.cuda.synchronize()
        return 2 * side**3 * times / (time.perf_counter() - start)

    def play(self, a: int, b: int):
        flop = 2 * self.side**3 * (b - a)
        return {"seconds": flop / self.speed(self.side, b - a), "samples": flop}


if __name__ == "__main__":
    serve(lambda work: {"peak": Peak(work)})
