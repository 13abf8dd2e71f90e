"""Files of a run: the run directory, checkpoints, client states, metrics and growing tables."""
