"""Runnable experiments: YAML files, one folder per paper or benchmark."""
