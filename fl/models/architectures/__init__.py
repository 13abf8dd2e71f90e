"""Architectures by name: `build(shape of one sample, outputs)` returns an `nn.Module`."""
