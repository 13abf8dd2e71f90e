"""Tasks: loss, outputs and metrics."""

DEFAULTS = {"task": "classification"}  # kind -> part of a configuration that names none
