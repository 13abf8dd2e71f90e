"""Parts that users write themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.robustness.case import Case, Changes, Status

HEAD = """
from dataclasses import dataclass
import torch
from fl import ClientAlgorithm, Exchange, LocalTraining, Reply, Strategy, Update

"""

# body of the file -> parts of the message, before round 0
CLASSES = {
    "no Strategy": (
        "strategy",
        "class Mine:\n    def step(self, state, reduced, ctx): return state, {}",
        ["strategy: ", "mine.py:Mine has no base class; a strategy is a class Mine(Strategy)"],
    ),
    "a client as strategy": (
        "strategy",
        "class Mine(LocalTraining): pass",
        ["mine.py:Mine derives from LocalTraining; a strategy is a class Mine(Strategy)"],
    ),
    "no client": ("client", "class Mine: pass", ["a client is a class Mine(ClientAlgorithm)"]),
    "no codec": ("codec", "class Mine: pass", ["codec.up[0]: ", "a codec is a class Mine(Codec)"]),
    "no partition": (
        "partition",
        "class Mine: pass",
        ["partition: ", "does not define split(self, dataset); a partition needs it"],
    ),
    "arguments of a hook": (
        "strategy",
        "class Mine(Strategy):\n    def step(self, state, reduced): return state, {}",
        ["mine.py:Mine: step(self, state, reduced) has other arguments than step(self, state, reduced, ctx)"],
    ),
    "state": (
        "strategy",
        "class Mine(Strategy):\n    def init(self, model, ctx): return {'w': model}\n"
        "    def step(self, state, reduced, ctx): return state, {}",
        ["strategy Mine: the state is dict without a field `model`", "model(self, state)"],
    ),
    "no state": (
        "strategy",
        "class Mine(Strategy):\n    def init(self, model, ctx): pass\n"
        "    def step(self, state, reduced, ctx): return state, {}",
        ["strategy Mine: the state is NoneType without a field `model`"],
    ),
}

# body of a strategy -> the message
RETURNS = {
    "no pair": (
        "    def step(self, state, reduced, ctx): return state",
        "strategy Mine: step returned Params, expected",
    ),
    "nothing": (
        "    def step(self, state, reduced, ctx): pass",
        "step returned NoneType, expected a pair (state, metrics)",
    ),
    "three": ("    def step(self, state, reduced, ctx): return 1, 2, 3", "step returned a tuple of 3"),
    "metrics": ("    def step(self, state, reduced, ctx): return state, 1.0", "step returned metrics that are float"),
    "metric name": ("    def step(self, state, reduced, ctx): return state, {1: 2}", "a metric with the name 1"),
    "round": (
        "    def round(self, state, ctx):\n        yield Exchange(state)\n        return state",
        "round returned Params, expected a pair (state, metrics)",
    ),
    "no generator": ("    def round(self, state, ctx): return state, {}", "returned tuple, expected a generator"),
}

CLIENT = """class Mine(ClientAlgorithm):
    def work(self, name, ctx, carry):
        return Reply(Update({"model": 0 * ctx.received["model"]}, %s, %s))"""

# num_examples, metrics -> the message
NUMBERS = {
    "negative": ("-1000", "{}", " is -1000; expected the number of samples"),
    "nan": ("float('nan')", "{}", " is nan"),
    "word": ("'ten'", "{}", " is 'ten'"),
    "large": ("10**18", "{}", " is 1000000000000000000"),
    "metric": ("1", "{'loss': 'low'}", ": metric 'loss' is 'low', not a number"),
    "metric of many": ("1", "{'loss': torch.ones(2)}", ": metric 'loss' is tensor([1., 1.]), not a number"),
    "metric name": ("1", "{3: 1.0}", ": metric 3 has no string as name"),
}


def _with_part(body: str, key: str) -> Callable[[Path], Changes]:
    def changes(folder: Path) -> Changes:
        (folder / "mine.py").write_text(HEAD + body)
        name = f"{folder}/mine.py:Mine"
        return {"codec.up": name} if key == "codec" else {key: name}

    return changes


def _case(kind: str, name: str, key: str, body: str, message: str, expected: Status = "refused", **more: Any) -> Case:
    part = _with_part(body, key)
    return Case("code: " + kind, name, lambda folder: {**part(folder), **more}, expected, re.escape(message))


NAN = "class Mine(Strategy):\n    def step(self, state, reduced, ctx): return state * float('nan'), {}"
LARGE = "class Mine(Strategy):\n    def init(self, model, ctx): return model * 0 + 1e5"
USER_CODE = [
    *(_case("a class that does not fit", name, key, body, said[-1]) for name, (key, body, said) in CLASSES.items()),
    *(
        _case("a wrong return value", name, "strategy", f"class Mine(Strategy):\n{body}", said, "stopped")
        for name, (body, said) in RETURNS.items()
    ),
    *(
        _case("numbers of an update", name, "client", CLIENT % (n, metrics), said.strip(), "stopped")
        for name, (n, metrics, said) in NUMBERS.items()
    ),
    _case("a rule that makes NaN", "`step`", "strategy", NAN, "step returned a model that is not finite", "stopped"),
    _case(
        "an overflow in a codec",
        "fp16",
        "strategy",
        LARGE,
        "weight overflows (100000 > 65504): take bf16",
        "stopped",
        **{"codec.down": "fp16"},
    ),
    Case(
        "code: unknown metrics",
        "`stop.target: val/acc`",
        {"stop.target": {"val/acc": 0.5}},
        "refused",
        "Did you mean 'val/accuracy'",
    ),
    Case(
        "code: SCAFFOLD, option 2",
        "Adam",
        {"strategy": "scaffold", "client.optimiser": "adam"},
        "refused",
        "use `option: 1` or the optimiser 'sgd'",
    ),
    Case(
        "code: SCAFFOLD, option 2",
        "momentum",
        {"strategy": "scaffold", "client.optimiser": {"name": "sgd", "momentum": 0.9}, "client.lr": 0.01},
    ),
]
