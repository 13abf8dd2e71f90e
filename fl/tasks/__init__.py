"""Tasks: loss, outputs and metrics."""
