"""Transforms of updates for privacy and robustness."""
