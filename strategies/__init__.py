"""Server rules, one per file."""

import fl as fl  # lets a user's folder of the same name share it: fl/own_packages.py
