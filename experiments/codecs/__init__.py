"""Experiments on the accuracy that codecs cost."""
