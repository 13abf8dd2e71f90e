"""Partitioners, streams and shifts. A partition rule is a pure function (rows, labels or ids) -> (indices, offsets)."""

DEFAULTS = {"partition": "iid"}  # kind -> part of a configuration that names none
