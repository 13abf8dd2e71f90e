"""A federated-learning simulator: define a method once, run it anywhere, same bits, every byte counted.

One import line is enough to write a method: `from fl import Exchange, Params, Strategy, register, zeros_like`.
`import fl` costs milliseconds, because each name is imported from its module when it is first used.

The packages beside this one have names that users' packages have, too: own_packages.py keeps them apart.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from fl import own_packages, platforms

__version__ = "0.1.0"

# module -> names that it offers here; tests/test_imports.py compares them with the imports below
_HOMES = {
    name: module
    for module, names in {
        "fl.simulation.result": "Result",
        "fl.simulation.run": "Rounds resume rounds run",
        "fl.tracking.callback": "Callback Run",
        "fl.simulation.evaluate_only": "evaluate",
        "fl.errors": "ConfigError",
        "fl.registry": "register",
        "fl.method.strategy": "EvaluationGenerator FedAvgEquivalent Metrics RoundGenerator ServerContext Strategy",
        "fl.method.requests": "Evaluate EvaluateModel Exchange ExchangeResult ServerWork Transfer",
        "fl.method.client": "ClientAlgorithm",
        "fl.method.context": "ClientContext Reply",
        "fl.method.local_training": "LocalTraining",
        "fl.method.loss_of_outputs": "LossOfOutputs ModelOutputs",
        "fl.method.training_values": "Step StepContext TrainingInputs TrainingResult Trainings",
        "fl.method.facts": "class_counts",
        "fl.method.penalty": "Penalty",
        "fl.method.phase": "Phase rate_at",
        "fl.method.preparation": "Fit Preparation",
        "fl.method.views": "Beside",
        "fl.method": "aligned server_optimiser",
        "fl.method.fitting": "PerceptronFit",
        "fl.method.grouped": "ByClient GroupMean Grouped weighted_sum",
        "fl.method.messages": "Broadcast Static Update",
        "fl.method.reduction": "ClassMean Collect Meta Reduction RowMean SparseMean SpilledVector Stack Sum "
        "WeightedMean",
        "fl.method.sampler": "CohortSampler",
        "fl.method.adversary": "Adversary AttackContext",
        "fl.method.after_reduction": "AfterReduction Reduced ReductionContext",
        "fl.privacy.secure.protocol": "SecureProtocol",
        "fl.privacy.example": "ExampleLevel",
        "fl.privacy.mechanism": "Mechanism Release Sampling",
        "fl.privacy.clipping": "Clipping Counts",
        "fl.method.optimiser": "SGD Adam LRSchedule Optimiser",
        "fl.method.server_optimiser": "Momentum OptimiserState Plain PseudoGradient ServerOptimiser",
        "fl.execution.training.fisher": "fisher",
        "fl.execution.training.steps": "Descent LocalSteps",
        "fl.execution.training.prepared": "prepare_alone",
        "fl.execution.training.server": "train_on_rows",
        "fl.data": "image_bytes",
        "fl.data.augment": "Augment augmented",
        "fl.data.views": "Batch View",
        "fl.tasks.auroc": "auroc",
        "fl.tasks.one_class": "require_one_class",
        "fl.tasks.task": "ClientMetric Metric Task",
        "fl.tensors": "clustering input_statistics random subspace",
        "fl.tensors.generators": "seeded_generators",
        "fl.tasks.multitask": "Multitask",
        "fl.tasks.ranking": "Ranking",
        "fl.tasks.supervised": "Classification",
        "fl.tasks": "ranking",
        "fl.tensors.params": "Layout Params dot elementwise join match norm sign sqrt zeros_like",
        "fl.tensors.prototypes": "class_means embed first_rows merge_means nearest prototypes squared_distances",
        "fl.tensors.rows": "with_norms",
        "fl.tensors.simplex": "simplex",
        "fl.tensors.masks": "pack_mask unpack_mask",
        "fl.tensors.sparse": "Sparse Table",
        "fl.tensors.stacked": "means_of_ranks order_statistics",
        "fl.tensors.trees": "Tree",
        "fl.models": "adapter batch_norm flow perceptron",
        "fl.models.adapter": "product",
        "fl.models.binding": "Initial",
        "fl.models.extension": "Extended",
        "fl.models.hooks": "layer_inputs layer_outputs",
        "fl.models.layers": "classifier features_of head_layer head_names last_layer last_linear norm_names",
        "fl.models.section": "Architecture",
        "fl.models.architectures.linear": "MLP",
        "fl.communication.codecs.top_k": "TopK keep_largest",
        "fl.communication.positions": "pack_positions",
    }.items()
    for name in names.split()
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:  # type checkers and editors see plain imports
    # isort: off
    from fl.communication.codecs.top_k import TopK as TopK, keep_largest as keep_largest
    from fl.errors import ConfigError as ConfigError
    from fl.execution.training.fisher import fisher as fisher
    from fl.execution.training.steps import Descent as Descent, LocalSteps as LocalSteps
    from fl.execution.training.prepared import prepare_alone as prepare_alone
    from fl.execution.training.server import train_on_rows as train_on_rows
    from fl.method.adversary import Adversary as Adversary, AttackContext as AttackContext
    from fl.method.after_reduction import (
        AfterReduction as AfterReduction,
        Reduced as Reduced,
        ReductionContext as ReductionContext,
    )
    from fl.privacy.secure.protocol import SecureProtocol as SecureProtocol
    from fl.method.client import ClientAlgorithm as ClientAlgorithm
    from fl.method.local_training import LocalTraining as LocalTraining
    from fl.method.loss_of_outputs import LossOfOutputs as LossOfOutputs, ModelOutputs as ModelOutputs
    from fl.method.training_values import (
        Step as Step,
        StepContext as StepContext,
        TrainingInputs as TrainingInputs,
        TrainingResult as TrainingResult,
        Trainings as Trainings,
    )
    from fl.method.facts import class_counts as class_counts
    from fl.method.context import ClientContext as ClientContext, Reply as Reply
    from fl.method.penalty import Penalty as Penalty
    from fl.method.phase import Phase as Phase, rate_at as rate_at
    from fl.method.preparation import Fit as Fit, Preparation as Preparation
    from fl.privacy.clipping import Clipping as Clipping, Counts as Counts
    from fl.privacy.example import ExampleLevel as ExampleLevel
    from fl.privacy.mechanism import Mechanism as Mechanism, Release as Release, Sampling as Sampling
    from fl.method.views import Beside as Beside
    from fl.data import image_bytes as image_bytes
    from fl.data.augment import Augment as Augment, augmented as augmented
    from fl.data.views import View as View
    from fl.method import aligned as aligned, server_optimiser as server_optimiser
    from fl.method.fitting import PerceptronFit as PerceptronFit
    from fl.tasks.auroc import auroc as auroc
    from fl.method.grouped import (
        ByClient as ByClient,
        GroupMean as GroupMean,
        Grouped as Grouped,
        weighted_sum as weighted_sum,
    )
    from fl.method.messages import Broadcast as Broadcast, Static as Static, Update as Update
    from fl.method.optimiser import SGD as SGD, Adam as Adam, LRSchedule as LRSchedule, Optimiser as Optimiser
    from fl.method.reduction import (
        ClassMean as ClassMean,
        Collect as Collect,
        Meta as Meta,
        Reduction as Reduction,
        RowMean as RowMean,
        SparseMean as SparseMean,
        SpilledVector as SpilledVector,
        Stack as Stack,
        Sum as Sum,
        WeightedMean as WeightedMean,
    )
    from fl.method.sampler import CohortSampler as CohortSampler
    from fl.method.server_optimiser import (
        Momentum as Momentum,
        OptimiserState as OptimiserState,
        Plain as Plain,
        PseudoGradient as PseudoGradient,
        ServerOptimiser as ServerOptimiser,
    )
    from fl.method.strategy import (
        EvaluationGenerator as EvaluationGenerator,
        FedAvgEquivalent as FedAvgEquivalent,
        Metrics as Metrics,
        RoundGenerator as RoundGenerator,
        ServerContext as ServerContext,
        Strategy as Strategy,
    )
    from fl.method.requests import (
        Evaluate as Evaluate,
        EvaluateModel as EvaluateModel,
        Exchange as Exchange,
        ExchangeResult as ExchangeResult,
        ServerWork as ServerWork,
        Transfer as Transfer,
    )
    from fl.models import adapter as adapter, batch_norm as batch_norm, flow as flow, perceptron as perceptron
    from fl.models.adapter import product as product
    from fl.models.binding import Initial as Initial
    from fl.models.extension import Extended as Extended
    from fl.models.hooks import layer_inputs as layer_inputs, layer_outputs as layer_outputs
    from fl.models.section import Architecture as Architecture
    from fl.models.architectures.linear import MLP as MLP
    from fl.models.layers import (
        classifier as classifier,
        features_of as features_of,
        head_layer as head_layer,
        head_names as head_names,
        last_layer as last_layer,
        last_linear as last_linear,
        norm_names as norm_names,
    )
    from fl.registry import register as register
    from fl.simulation.result import Result as Result
    from fl.simulation.evaluate_only import evaluate as evaluate
    from fl.simulation.run import Rounds as Rounds, resume as resume, rounds as rounds, run as run
    from fl.tracking.callback import Callback as Callback, Run as Run
    from fl.tasks import ranking as ranking
    from fl.tasks.multitask import Multitask as Multitask
    from fl.tasks.one_class import require_one_class as require_one_class
    from fl.tasks.ranking import Ranking as Ranking
    from fl.tasks.supervised import Classification as Classification
    from fl.tasks.task import ClientMetric as ClientMetric, Metric as Metric, Task as Task
    from fl.data.views import Batch as Batch
    from fl.tensors.generators import seeded_generators as seeded_generators
    from fl.tensors.masks import pack_mask as pack_mask, unpack_mask as unpack_mask
    from fl.communication.positions import pack_positions as pack_positions
    from fl.tensors import (
        clustering as clustering,
        input_statistics as input_statistics,
        random as random,
        subspace as subspace,
    )
    from fl.tensors.params import (
        Layout as Layout,
        Params as Params,
        dot as dot,
        elementwise as elementwise,
        join as join,
        match as match,
        norm as norm,
        sign as sign,
        sqrt as sqrt,
        zeros_like as zeros_like,
    )
    from fl.tensors.prototypes import (
        class_means as class_means,
        embed as embed,
        first_rows as first_rows,
        merge_means as merge_means,
        nearest as nearest,
        prototypes as prototypes,
        squared_distances as squared_distances,
    )
    from fl.tensors.rows import with_norms as with_norms
    from fl.tensors.simplex import simplex as simplex
    from fl.tensors.sparse import Sparse as Sparse, Table as Table
    from fl.tensors.stacked import means_of_ranks as means_of_ranks
    from fl.tensors.stacked import order_statistics as order_statistics
    from fl.tensors.trees import Tree as Tree
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"fl has no {name!r}; it has {__all__} and its modules")
        platforms.require_a_known_system()
        home = importlib.import_module(_HOMES[name])
        if not hasattr(home, name):  # a module of a package
            importlib.import_module(f"{_HOMES[name]}.{name}")
        value = globals()[name] = getattr(home, name)
        return value


own_packages.install()

# no usage statistics are sent unless the user asks for it; ray and flwr read these variables when they are imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
