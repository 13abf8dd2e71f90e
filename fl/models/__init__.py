"""Models: the `model` section, architectures, adapters, pretrained weights, and how modules hold their tensors."""
