"""Baselines that a run can be compared with, one per file."""
