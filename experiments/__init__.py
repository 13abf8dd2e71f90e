"""Runnable experiments: YAML, one folder per paper or benchmark."""
