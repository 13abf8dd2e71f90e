"""Which training rows of the clients keep their labels, one rule per file: `labels: NAME`."""
