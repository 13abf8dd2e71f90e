"""Local training: one client at a time or many together.

loop.py, steps.py, graph.py                        one client at a time, for any model
memory_format.py, convolutions.py                  how images are stored there; convolutions in machine code
server.py                                          the server on its own rows
batched.py, batches.py, chunk.py                   many clients together, with the gradients of a backend:
kernels.py, flat.py, vmap.py, compiled.py          the backends; machine code lies in native/
plan.py, customised.py                             which of them trains a run's clients
device.py                                          CPU or GPU
"""
