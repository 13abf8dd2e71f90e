"""Memory of a process: a buffer is reused when nothing refers to it, and holes of the heap return to the system."""

import subprocess
import sys

import pytest
import torch

from fl.tensors.buffers import pooled_buffer

MB = 1 << 20


def test_memory_goes_to_the_next_when_nobody_refers_to_it():
    first = pooled_buffer(12345)
    first.fill_(1)
    view, place = first[100:200], first.data_ptr()
    del first
    second = pooled_buffer(12345).fill_(2)  # a view still refers to the first buffer
    assert second.data_ptr() != place and torch.equal(view, torch.ones(100))
    del view
    assert pooled_buffer(12345).data_ptr() == place
    assert pooled_buffer(12346).data_ptr() not in (place, second.data_ptr())


GROWS = """
import sys, time, torch
from fl.execution.workers.process import MemoryWatch, ServerMemory, configure_process, own_memory
configure_process()
after, grows = (MemoryWatch().after_chunk, 100) if sys.argv[1] == "chunk" else (ServerMemory().after_round, 300)
after()
seen = [own_memory()]
large, small = [], []
for _ in range(grows):  # what stays lies between what is freed
    large.append(torch.ones(1 << 18))
    small.append(torch.ones(8192))
large.clear()
seen.append(own_memory())
time.sleep(0.2)  # it does not look again at once
after()
print(*seen, own_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("work", ["chunk", "round"])
def test_memory_that_a_process_freed_returns_when_the_process_has_grown(work):
    done = subprocess.run([sys.executable, "-c", GROWS, work], capture_output=True, text=True, check=True)
    before, grown, after = (int(number) / MB for number in done.stdout.split())
    assert grown > before + 80  # the allocator keeps what is freed
    assert after < before + 20
