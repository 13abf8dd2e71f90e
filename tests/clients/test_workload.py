"""Workloads for virtual time: local steps, and gradients of single samples."""

import numpy as np
import pytest

from clients.feddpa_lora import FedDPALoRA
from clients.fedewc import FedEWC
from clients.fedrep import FedRep
from clients.fot import FOT
from clients.reptile import Reptile
from clients.scaffold import Scaffold
from clients.tiny_metafed import TinyMetaFed
from clients.tiny_reptile import TinyReptile

SIZES, SETTINGS = np.array([20, 3, 0]), {"epochs": 2, "batch": 8}


@pytest.mark.parametrize(
    "algorithm, name, steps, samples, extra",
    [
        (Scaffold(option=2, **SETTINGS), "train", [6, 2, 0], [40, 6, 0], [0, 0, 0]),
        (
            Scaffold(option=1, **SETTINGS),
            "train",
            [6, 2, 0],
            [60, 9, 0],
            [20, 3, 0],
        ),  # a gradient over all samples besides
        (FedDPALoRA(**SETTINGS), "train", [6, 2, 0], [80, 12, 0], [0, 0, 0]),  # two adapters
        (FedRep(head_epochs=1, **SETTINGS), "train", [9, 3, 0], [60, 9, 0], [0, 0, 0]),
        (Reptile(samples=8, **SETTINGS), "train", [2, 2, 0], [16, 6, 0], [0, 0, 0]),
        (TinyReptile(samples=8), "train", [8, 3, 0], [8, 3, 0], [0, 0, 0]),
        # 4 samples rebuild the local part in 2 steps; the other samples are steps of one sample
        (TinyMetaFed(rebuild=4, rebuild_steps=2), "train", [16, 0, 0], [24, 6, 0], [8, 6, 0]),
        (TinyMetaFed(rebuild=4, rebuild_steps=2, samples=10), "train", [6, 0, 0], [14, 6, 0], [8, 6, 0]),
        (FedEWC(**SETTINGS), "train", [6, 2, 0], [40, 6, 0], [0, 0, 0]),
        (FedEWC(**SETTINGS), "fisher", [0, 0, 0], [20, 3, 0], [20, 3, 0]),
        (FOT(**SETTINGS), "gpse", [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    ],
)
def test_workload(algorithm, name, steps, samples, extra):
    found = *algorithm.workload(SIZES, 0, 9, name), algorithm.extra_samples(SIZES, 0, 9, name)
    assert [column.tolist() for column in found] == [steps, samples, extra]
