"""Contestants of `fl bench`: programs, run by the python of whatever environment has their package (protocol.py)."""
