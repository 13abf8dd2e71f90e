"""Models by name: `build(shape of one sample, outputs)` gives an `nn.Module`."""
