"""Trackers: callbacks that a configuration names, `tracking: [csv, tensorboard]`.

A tracker is a dataclass that is a `fl.Callback`. It opens in `start`, and closes in `end` and `failure`. A user's own
is `tracking: [./file.py:Name]`.
"""
