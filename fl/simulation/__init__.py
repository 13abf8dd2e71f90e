"""The engine of a run on the driver: set-up, the loop over rounds, exchanges, evaluation, commits."""
