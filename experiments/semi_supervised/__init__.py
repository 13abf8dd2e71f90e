"""Experiments on few labels: semi-supervised methods, the labels of `labels:` and both bounds."""
