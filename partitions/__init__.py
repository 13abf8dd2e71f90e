"""Partitioners, streams and shifts. A partition rule is a pure function (rows, labels or ids) -> (indices, offsets)."""

import fl as fl  # lets a user's folder of the same name share it: fl/own_packages.py

DEFAULTS = {"partition": "iid"}  # kind -> part of a configuration that names none
