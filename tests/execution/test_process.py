"""The buffer pool: a buffer is reused when nothing refers to it."""

import torch

from fl.tensors.buffers import pooled_buffer


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
