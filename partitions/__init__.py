"""Partitioners: which rows are whose. One rule per file, each a pure function (rows, labels or ids) -> (indices, offsets)."""

DEFAULTS = {"partition": "iid"}  # kind -> part of a configuration that names none
