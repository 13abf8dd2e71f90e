"""Client algorithms, one per file."""

DEFAULTS = {"client": "sgd"}  # kind -> part of a configuration that names none
