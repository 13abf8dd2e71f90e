"""Contestants of `fl bench`: programs that run in a Python environment with their package (see protocol.py)."""
