"""A federated-learning simulator: define a method once, run it anywhere, same bits, every byte counted.

`import fl` costs milliseconds: `fl.run`, `fl.Strategy` and the rest are imported when first used.

The packages beside this one have generic names, so that a file or folder of yours may hide one of them: better an error
here than a run with the wrong method.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names for type checkers and editors; at run time `__getattr__` imports them
    from fl.execution.training.steps import Descent as Descent
    from fl.execution.training.steps import LocalSteps as LocalSteps
    from fl.method.client import ClientAlgorithm as ClientAlgorithm
    from fl.method.client import ClientContext as ClientContext
    from fl.method.client import LocalTraining as LocalTraining
    from fl.method.client import Phase as Phase
    from fl.method.client import Reply as Reply
    from fl.method.client import StepContext as StepContext
    from fl.method.client import TrainingInputs as TrainingInputs
    from fl.method.client import TrainingResult as TrainingResult
    from fl.method.client import View as View
    from fl.method.grouped import Grouped as Grouped
    from fl.method.messages import Broadcast as Broadcast
    from fl.method.messages import Static as Static
    from fl.method.messages import Update as Update
    from fl.method.optimiser import SGD as SGD
    from fl.method.optimiser import LRSchedule as LRSchedule
    from fl.method.optimiser import Optimiser as Optimiser
    from fl.method.reduction import ClassMean as ClassMean
    from fl.method.reduction import Collect as Collect
    from fl.method.reduction import Meta as Meta
    from fl.method.reduction import Reduction as Reduction
    from fl.method.reduction import SparseMean as SparseMean
    from fl.method.reduction import Stack as Stack
    from fl.method.reduction import Sum as Sum
    from fl.method.reduction import WeightedMean as WeightedMean
    from fl.method.server_optimiser import Momentum as Momentum
    from fl.method.server_optimiser import OptimiserState as OptimiserState
    from fl.method.server_optimiser import Plain as Plain
    from fl.method.server_optimiser import ServerOptimiser as ServerOptimiser
    from fl.method.strategy import Evaluate as Evaluate
    from fl.method.strategy import Exchange as Exchange
    from fl.method.strategy import FedAvgEquivalent as FedAvgEquivalent
    from fl.method.strategy import Metrics as Metrics
    from fl.method.strategy import RoundGenerator as RoundGenerator
    from fl.method.strategy import ServerContext as ServerContext
    from fl.method.strategy import ServerWork as ServerWork
    from fl.method.strategy import Strategy as Strategy
    from fl.method.strategy import Transfer as Transfer
    from fl.registry import register as register
    from fl.simulation.simulation import Result as Result
    from fl.simulation.simulation import resume as resume
    from fl.simulation.simulation import run as run
    from fl.tasks.task import Batch as Batch
    from fl.tasks.task import Task as Task
    from fl.tensors.params import Params as Params
    from fl.tensors.params import dot as dot
    from fl.tensors.params import elementwise as elementwise
    from fl.tensors.params import join as join
    from fl.tensors.params import match as match
    from fl.tensors.params import norm as norm
    from fl.tensors.params import sign as sign
    from fl.tensors.params import sqrt as sqrt
    from fl.tensors.params import zeros_like as zeros_like
    from fl.tensors.sparse import Sparse as Sparse
    from fl.tensors.sparse import Table as Table
    from fl.tensors.trees import Tree as Tree

__version__ = "0.1.0"

_NAMES = {
    "fl.execution.training.steps": "Descent LocalSteps",
    "fl.method.client": "ClientAlgorithm ClientContext LocalTraining Phase Reply StepContext TrainingInputs TrainingResult View",
    "fl.method.grouped": "Grouped",
    "fl.method.messages": "Broadcast Static Update",
    "fl.method.optimiser": "SGD LRSchedule Optimiser",
    "fl.method.reduction": "ClassMean Collect Meta Reduction SparseMean Stack Sum WeightedMean",
    "fl.method.server_optimiser": "Momentum OptimiserState Plain ServerOptimiser",
    "fl.method.strategy": "Evaluate Exchange FedAvgEquivalent Metrics RoundGenerator ServerContext ServerWork Strategy Transfer",
    "fl.registry": "register",
    "fl.simulation.simulation": "Result resume run",
    "fl.tasks.task": "Batch Task",
    "fl.tensors.params": "Params dot elementwise join match norm sign sqrt zeros_like",
    "fl.tensors.sparse": "Sparse Table",
    "fl.tensors.trees": "Tree",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"fl has no {name!r}; it has {__all__} and its modules")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def _check_siblings() -> None:
    """The four packages beside ours are the ones that Python finds."""
    root = Path(__file__).resolve().parent.parent
    for name in ("strategies", "clients", "partitions", "experiments"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(
                f"fl needs its own package {name!r} beside it in {root}, and there is none: install fl again"
            )
        place = next(iter(spec.submodule_search_locations or [spec.origin]))
        if Path(place).resolve() != root / name:
            raise ImportError(
                f"fl needs its own package {name!r} in {root}, but {spec.origin or place} hides it. "
                f"Rename or uninstall that, or put fl's own first: PYTHONSAFEPATH=1 PYTHONPATH={root}"
            )


_check_siblings()

# nothing is reported to anyone unless the user asks for it; ray and flwr read these when they are imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
