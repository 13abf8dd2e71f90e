"""Runnable experiments: YAML files, one folder per paper or benchmark."""

import fl as fl  # lets a user's folder of the same name share it: fl/own_packages.py
