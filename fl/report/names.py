"""Names of metrics for people: `val/accuracy` is "validation accuracy"."""

from __future__ import annotations

import re

_ROWS = {
    "eval": "test {}",
    "val": "validation {}",
    "train": "training {}",
    "clients": "{} of clients on own test rows",
    "train_rows": "{} on training rows",
    "unlabelled_rows": "{} on unlabelled rows",
}
_WORDS = {"stream/acc": "accuracy on the tasks so far", "stream/fgt": "forgetting", "stream/bwt": "backward transfer"}
_OVER_CLIENTS = {
    "mean": "mean {}",
    "weighted": "{} (mean weighted by samples)",
    "std": "standard deviation of {}",
    "worst10": "{} of the worst 10 %",
    "gini": "Gini coefficient of {}",
}


def readable(metric: str) -> str:
    """Return a metric's name in words; of names that the engine does not know only underscores are replaced.

    >>> readable("val/accuracy"), readable("clients/accuracy_worst10")
    ('validation accuracy', 'accuracy of the worst 10 % of clients on own test rows')
    >>> readable("trained/clients/loss_mean"), readable("mean_norm")
    ('mean loss of clients on own test rows (trained)', 'mean norm')
    """
    name, _, when = metric.partition("@")
    if name in _WORDS:
        return _WORDS[name] if not when else f"{_WORDS[name]} @{when}"
    *stage, rows, what = ("", *name.split("/"))[-3:] if "/" in name else ("", "", name)
    kind = re.search(f"_({'|'.join(_OVER_CLIENTS)})$", what) if rows == "clients" else None
    text = what.removesuffix(kind[0]) if kind else what
    text = text.replace("_", " ").replace("auroc", "AUROC")
    text = _OVER_CLIENTS[kind[1]].format(text) if kind else text
    text = _ROWS.get(rows, f"{rows} {{}}".strip()).format(text)
    if stage and stage[0]:
        text = f"{text} ({stage[0]})"
    return text if not when else f"{text} @{when}"
