"""Tasks: objective, outputs and metrics."""
