"""An estimate of a run's training, by which `executor: auto` decides whether worker processes pay."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from fl.execution.training.customised import overrides
from fl.execution.training.plan import Plan
from fl.execution.workers.choose import Choice, Work, choose, worker_count
from fl.method.client import ClientAlgorithm
from fl.method.local_training import LocalTraining
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.models.binding import bind
from fl.models.client_models import ClientModel
from fl.simulation.setup import RunSetup, cohort_size, sample_inputs
from fl.system.flops import forward_flops_per_sample
from fl.tensors.generators import preserved_generators

STEP_SECONDS = 2e-4  # a step of a small model in the loop
CORE_FLOPS, GPU_FLOPS = 2e10, 1e13  # floating-point operations per second in training
OTHER_WORK = Phase(SGD(), lr=0.0, batch=32)  # assumed of clients that do other work than local training


def choose_executor(run_setup: RunSetup) -> Choice:
    """Return the executor of a run."""
    execution = run_setup.config.execution
    return choose(execution, run_setup.plan.kind, lambda: training_work(run_setup), lambda: worker_count(execution))


def training_work(run_setup: RunSetup) -> Work:
    """Estimate all training of a run."""
    config, server = run_setup.config, run_setup.config.server
    cohort = cohort_size(config) or run_setup.trainable
    sizes = run_setup.sizes(0)[: run_setup.trainable]
    client, rounds = config.client, config.rounds
    phases = client.phases(0, rounds) if isinstance(client, LocalTraining) else [OTHER_WORK]
    rows = [phase.rows(sizes, run_setup.periods[0].partition.unlabelled[: run_setup.trainable]) for phase in phases]
    steps = sum(float(np.mean(phase.num_steps(n))) for phase, n in zip(phases, rows))
    samples = sum(float(np.mean(phase.num_samples(n))) for phase, n in zip(phases, rows))
    models, counts = run_setup.models, [1] if run_setup.by_client is None else run_setup.by_client.counts()
    forward = np.average([_forward_flops(model, sample_inputs(run_setup.dataset)) for model in models], weights=counts)
    flops = samples * 3 * float(forward)  # the backward pass costs twice the forward pass
    speed = GPU_FLOPS if config.execution.device == "cuda" else CORE_FLOPS
    seconds = steps * STEP_SECONDS / _together(run_setup.plan) + flops / speed
    return Work(seconds * cohort * rounds, rounds, getattr(server, "concurrency", cohort))


def workload_of(
    client: ClientAlgorithm,
    labelled: np.ndarray,
    unlabelled: np.ndarray,
    round_: int,
    rounds: int,
    work: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (local steps, samples) of clients with these numbers of training rows, (C,) each; see `workload`."""
    if isinstance(client, LocalTraining) and not overrides(client, "workload"):
        return client.workload_of_views(labelled, unlabelled, round_, rounds, work)
    return client.workload(labelled, round_, rounds, work)


def _together(plan: Plan) -> int:
    """Return the number of clients that share the fixed cost of a step."""
    return 1 if plan.kind == "loop" else plan.chunk


@preserved_generators()
def _forward_flops(model: ClientModel, x: Tensor) -> float:
    """Return the floating-point operations of a forward pass per sample. x: inputs (B, ...)."""
    module = copy.deepcopy(model.module)
    bind(module, model.initial.trained, model.initial, model.initial.trained)
    with torch.no_grad():
        return forward_flops_per_sample(module.eval(), x)
