"""Settings of all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # sums depend on the number of threads

settings.register_profile("fl", deadline=None)  # a first call may import or compile
settings.load_profile("fl")
